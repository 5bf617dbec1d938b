"""Make requests of two turns for the tests of vLLM, and a model that vLLM can run (heads of width 32)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from selfcorrect import runtime
from selfcorrect.engines import Completion, Engine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.scoring import score
from support.episodes import episode, sample_key, turn
from support.models import tiny_model
from support.packing import pack_episodes

GLUE = (3, 20, 19, 2, 4)
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4), (3, 12, 2, 4)]
GREEDY = Sampling(0.0, 12)


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    """Set the environment variables that the command line sets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runtime.ENVIRONMENT.items():
            if name.startswith("VLLM_"):
                patch.setenv(name, value)
        yield


def real(seed: int, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Return a model whose turns end at different times, with its own generation settings, which nobody may use."""
    model = tiny_model(seed, dtype=dtype, hidden_size=64)
    with torch.no_grad():
        model.model.lm_head.weight[min(model.end_ids)] *= 2.5
    own = {"do_sample": True, "temperature": 0.1, "top_p": 0.1, "top_k": 2, "repetition_penalty": 5.0}
    model.model.generation_config.update(**own)
    return model


def requests(copies: int = 3) -> list[Request]:
    return [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(copies)]


def second(first: Sequence[Request], done: Sequence[Completion]) -> list[Request]:
    return [
        Request((*request.ids, *one.ids, *GLUE), sample_key(request.key.problem, request.key.sample, 1), one.handle)
        for request, one in zip(first, done, strict=True)
    ]


def both_turns(engine: Engine, sampling: Sampling, first: Sequence[Request]) -> list[tuple[Completion, Completion]]:
    ones = engine.generate(first, sampling, keep=True)
    return list(zip(ones, engine.generate(second(first, ones), sampling), strict=True))


def tokens(played: Sequence[tuple[Completion, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(completion.ids for completion in row) for row in played]


def gap(engine: Engine, policy: LanguageModel, temperature: float) -> float:
    """Return the greatest difference between the engine's log-probabilities of two sampled turns and the policy's."""
    first = requests()
    made = [
        episode(turn(request.ids, one.ids, logprobs=one.logprobs), turn(GLUE, two.ids, logprobs=two.logprobs))
        for request, (one, two) in zip(first, both_turns(engine, Sampling(temperature, 12), first), strict=True)
    ]
    rows = pack_episodes(made, range(len(made)), pad_id=policy.pad_id)
    with torch.no_grad():
        return float((score(policy, rows, temperature).logprobs_S.double() - rows.logprobs_S).abs().max())
