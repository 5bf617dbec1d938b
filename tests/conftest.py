"""Tiny builders that the tests share: a random Llama, episodes by hand, a scripted engine, a trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import make_config
from selfcorrect.engines import Completion, Request, Sampling
from selfcorrect.engines import kv_cache as cache
from selfcorrect.models.forward import GeneralForward
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import SampleKey
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode, Outcome, Problem, StopReason, Turn, Verdict
from selfcorrect.zoo.addition import make_tokenizer

SCRIPT = Script(revise="Please correct the error.")

torch.set_num_threads(1)
# The same examples every time, and no deadline: a loaded machine must not fail a test.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


def tiny_model(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, tokenizer: Any = None, spread: float = 0.25, **settings: Any
) -> LanguageModel:
    """A Llama of two layers with random weights; ``spread`` of 0.25 makes its distributions far from uniform."""
    tokenizer = tokenizer or make_tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": spread,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(dtype)
    if dtype == torch.float64:
        exact_norms(model)
    return LanguageModel(model, tokenizer)


def exact_norms(model: Any) -> None:
    """A family's own norm computes in float32 whatever the model is; tolerances of 1e-10 need all of it in float64."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                epsilon = getattr(child, "variance_epsilon", None) or child.eps
                norm = torch.nn.RMSNorm(len(child.weight), eps=epsilon, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                if type(child).__name__.startswith("Gemma"):
                    norm.weight.data += 1.0  # Gemma's weight counts from 1
                setattr(parent, name, norm)


@pytest.fixture(params=["fast forward pass", "fast, shared prefixes", "general forward pass"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of Llama's shape by the fast forward pass, prompts copied or shared by their rows, and as any other model."""
    monkeypatch.setattr(cache, "SHARED_FROM", -(2**60) if request.param == "fast, shared prefixes" else 2**60)
    if request.param == "general forward pass":
        monkeypatch.setattr(LanguageModel, "forward_pass", property(GeneralForward))


@contextmanager
def lenient_additions() -> Iterator[None]:
    """Additions are right if they begin with an even digit, so that a random model has something to learn from."""

    def verify(self: AdditionTask, problem: Problem, text: str) -> Verdict:
        return Verdict(Outcome.RIGHT if text.strip()[:1] in set("02468") else Outcome.WRONG, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdditionTask, "verify", verify)
        yield


@pytest.fixture(scope="module")
def lenient() -> Iterator[None]:
    """`lenient_additions` for all of a module: where runs are compared to the bit, their weights must move."""
    with lenient_additions():
        yield


def problem(name: str = "p", prompt: str = "1+2=", reference: str = "3") -> Problem:
    return Problem(name, prompt, reference)


def verdict(right: float) -> Verdict:
    return Verdict(Outcome.RIGHT if right else Outcome.WRONG)


def turn(
    observation_ids: Sequence[int],
    ids: Sequence[int],
    right: float = 0,
    *,
    logprobs: Sequence[float] | None = None,
    stop: StopReason = StopReason.END,
    online: bool = True,
) -> Turn:
    given = tuple(logprobs) if logprobs is not None else (-0.5,) * len(ids)
    return Turn(tuple(observation_ids), tuple(ids), given, " ".join(map(str, ids)), stop, verdict(right), online)


def episode(*turns: Turn, name: str = "p", sample: int = 0) -> Episode:
    return Episode(problem(name), sample, tuple(turns))


def sample_key(name: str = "p", sample: int = 0, turn: int = 0, *, seed: int = 0, step: int = 0) -> SampleKey:
    return SampleKey(seed, "test", step, name, sample, turn)


@dataclass
class ScriptedEngine:
    """Answers every request with what ``answer`` says, and remembers what it was asked."""

    answer: Callable[[Request], Sequence[int]]
    end_id: int
    asked: list[Request] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        self.asked.extend(requests)
        done = []
        for request in requests:
            ids = tuple(self.answer(request))[: sampling.max_tokens]
            stop = StopReason.END if ids[-1] == self.end_id else StopReason.LENGTH
            done.append(Completion(ids, (-0.25,) * len(ids), stop))
        return done

    def load_weights(self, policy: Any) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class FunctionVerifier:
    """Right is what ``right(problem, text)`` holds for."""

    right: Callable[[Problem, str], bool] = lambda problem, text: text == problem.reference
    seen: list[tuple[Problem, str]] = field(default_factory=list)

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.seen.extend(items)
        return [verdict(self.right(problem, text)) for problem, text in items]


STAGE = {"steps": 4, "reward_weights": [1, 1], "anchors": [{"base": 0.1}, {"base": 0.1}]}


def settings(*, stage: Mapping[str, Any] | None = None, earlier: Sequence[str] = (), **groups: Any) -> Config:
    """A configuration whose last stage is ``stage``: 8 episodes a step, 2 groups of 4, one big micro-batch."""
    return make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4, **groups.pop("rollout", {})},
            "optimizer": {"learning_rate": 1e-3, "clip_norm": 1e9, **groups.pop("optimizer", {})},
            "task": {"train_problems": 16, **groups.pop("task", {})},
            "stages": {**dict.fromkeys(earlier, STAGE), "stage": {**STAGE, **(stage or {})}},
            **groups,
        }
    )


def make_trainer(
    config: Config,
    *,
    policy: Any = None,
    base: Any = None,
    earlier: Mapping[str, LanguageModel] | None = None,
    problems: Sequence[Problem] | None = None,
    verifier: Any = None,
) -> Trainer:
    stage = config.stages["stage"]
    return Trainer(
        config,
        "stage",
        policy=policy or tiny_model(0),
        references={"base": base or tiny_model(1), **(earlier or {})},
        problems=problems or [problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
        chat=ChatFormat(make_tokenizer(), SCRIPT.with_turns(stage.turns)),
        verifier=verifier or FunctionVerifier(lambda problem, text: len(text) % 2 == 1),
    )


def gradient(model: Any) -> torch.Tensor:
    """All gradients of a model as one vector; no gradient counts as zero."""
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts]).double()


def relative_gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="session")
def policy64() -> LanguageModel:
    """A float64 model for tests that only read it."""
    return tiny_model(0)
