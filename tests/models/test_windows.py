"""Sliding windows shorter than an episode: what is sampled is scored alike, and no padding gives NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from support.episodes import SCRIPT, problem
from support.families import SMALL, TOKENIZER, of_family
from support.models import exact_norms
from support.verifiers import FunctionVerifier

from selfcorrect.engines import HFEngine, Sampling
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, roll_out
from selfcorrect.training.batch import pack
from selfcorrect.training.sample import TrainingSample
from selfcorrect.training.scoring import score

GEMMA3: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.mark.parametrize(
    ("family", "more"), [("Gemma3Text", GEMMA3), ("Gemma2", {}), ("Mistral", {})], ids=["gemma3", "gemma2", "mistral"]
)
def test_two_turns_longer_than_the_window_are_sampled_and_scored_alike(family: str, more: dict[str, Any]) -> None:
    """Prompts of several lengths share a batch, so rows are padded; a window counts a row's tokens, not its padding."""
    make = _gemma3 if family == "Gemma3Text" else _of_family
    model = make(family, sliding_window=6, **more)
    assert model.slots_limit == 6
    chat = ChatFormat(model.tokenizer, SCRIPT)
    requests = [RolloutRequest(problem(str(i), f"{10**i}+{i}=", "1"), s, 0, "t", 0) for i in range(4) for s in range(2)]
    episodes = roll_out(
        requests,
        engine=HFEngine(model, max_num_seqs=3),
        chat=chat,
        verifier=FunctionVerifier(lambda one, text: False),
        sampling=Sampling(1.0, 9),
    )
    assert min(len(episode.ids) for episode in episodes) > 6
    samples = [TrainingSample.of_episode(episode) for episode in episodes]
    rows = pack(samples, range(len(samples)), pad_id=model.pad_id)
    with torch.no_grad():
        scored_S = score(model, rows, 1.0).logprobs_S
    assert float((scored_S - rows.logprobs_S).abs().max()) < 1e-6  # Gemma's attention computes in float32
    whole = [model.model(input_ids=torch.tensor([episode.ids])).logits[0].log_softmax(-1) for episode in episodes]
    rows_S, places_S = rows.scored
    expected = [whole[r][t - 1, rows.tokens_BT[r, t]] for r, t in zip(rows_S.tolist(), places_S.tolist(), strict=True)]
    torch.testing.assert_close(scored_S, torch.stack(expected).detach(), atol=1e-6, rtol=0)


def _of_family(family: str, **more: Any) -> LanguageModel:
    return of_family(family, tied=False, cpu_kernels=False, **more)


def _gemma3(_: str, **more: Any) -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Gemma3TextConfig(**{**SMALL, **more})
        config.initializer_range = 0.25
        model = transformers.Gemma3ForCausalLM(config).double()
    exact_norms(model)
    return LanguageModel(model, TOKENIZER, cpu_kernels=False)
