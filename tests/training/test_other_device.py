"""Test that sampling and learning give the CPU's results on another device, and mix no tensors of two devices.

The tests simulate the device (`elsewhere.py`), so they check where tensors live, as on a GPU; `test_gpu.py` checks a GPU's
own kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from support.elsewhere import DEVICE, a_device, there
from support.episodes import SCRIPT, problem, sample_key
from support.families import LORA, of_family
from support.gradients import relative_gap
from support.trainers import make_trainer, settings
from support.two_turns import both_turns
from support.verifiers import FunctionVerifier
from torch.optim.optimizer import register_optimizer_step_pre_hook

from selfcorrect.config.toml import make_config
from selfcorrect.engines import Completion, Engine, HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.training.sft_trainer import SFTTrainer
from selfcorrect.zoo.addition import make_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    with a_device() as made:
        yield made


def test_the_device_refuses_tensors_of_the_cpu(device: torch.device) -> None:
    """A GPU rejects this too; numbers, that is tensors without dimensions, may come from either device."""
    here, other = torch.ones(3), torch.ones(3, device=device)
    assert (other + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert (other + here.to(device)).device == device
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        here + other
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        other[torch.tensor([0, 2])]
    assert other.cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "family", ["Llama", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("Qwen3", "Gemma2"))]
)
def test_the_same_two_turns_are_sampled(family: str) -> None:
    """Prompts have two lengths and four samples each; rows end at different times, and turn 2 continues turn 1."""
    model = of_family(family, tied=True, dtype=torch.float32, cpu_kernels=False)

    def sampled(by: LanguageModel) -> list[Completion]:
        engine, sampling = HFEngine(by, max_num_seqs=6), Sampling(1.0, 12)
        prompts = [(3, 7, 16, 8), (3, 9)]
        first = [Request(prompts[i // 4], sample_key(f"p{i // 4}", i % 4)) for i in range(8)]
        return [*itertools.chain(*both_turns(engine, sampling, first))]

    for found, expected in zip(sampled(there(model)), sampled(model), strict=True):
        assert found.ids == expected.ids
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@dataclass
class Recorder:
    """An engine that passes on another's completions and keeps them for `Replay`."""

    engine: Engine
    kept: list[list[Completion]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        self.kept.append(self.engine.generate(requests, sampling, keep=keep))
        return self.kept[-1]

    def load_weights(self, policy: LanguageModel) -> None:
        self.engine.load_weights(policy)

    def close(self) -> None:
        self.engine.close()


@dataclass
class Replay:
    """An engine that answers with what another one sampled, so that two trainers learn from the same episodes."""

    kept: list[list[Completion]]

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        return [replace(completion, handle=None) for completion in self.kept.pop(0)]

    def load_weights(self, policy: LanguageModel) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def gradients_of_updates() -> Iterator[list[torch.Tensor]]:
    """Record the gradient of every optimizer step within the block, each as one float64 vector on the CPU."""
    found: list[torch.Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append(torch.cat([grad.cpu().flatten().double() for grad in grads]))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


VARIANTS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "as it comes": ({}, torch.float64),
    "small micro-batches": ({"optimizer": {"micro_batch_tokens": 100}}, torch.float64),
    "prompts apart": ({"optimizer": {"share_prompts": False}}, torch.float64),
    "full KL in the loss": ({"kl": {"estimator": "full", "placement": "loss"}}, torch.float64),
    "float32 masters of bfloat16": ({}, torch.bfloat16),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_learns_the_same(variant: str) -> None:
    """In float64, each device samples for itself. In bfloat16, a rounding may change a sampled token and all that
    follows, so both learn from the CPU's episodes, for one step, since updated weights differ by roundings.

    bfloat16 rounds to 2**-9 = 0.2%; over the layers, forward and backward, gradients differ by 2% with any of torch's
    instruction sets. A tensor in the wrong place, or a lost one, changes them by far more than 5%.
    """
    groups, dtype = VARIANTS[variant]
    exact = dtype == torch.float64
    policy, base = (of_family("Llama", tied=False, dtype=dtype, seed=seed, cpu_kernels=False) for seed in (0, 1))
    on_cpu = make_trainer(settings(**groups), policy=policy, base=base)
    other = make_trainer(settings(**groups), policy=there(policy), base=there(base))
    assert next(other.policy.model.parameters()).device == DEVICE
    if not exact:
        on_cpu.sampler.engine = recorder = Recorder(on_cpu.engine)
        other.sampler.engine = Replay(recorder.kept)
    for _ in range(2 if exact else 1):
        with gradients_of_updates() as gradients:
            expected, found = on_cpu.step().metrics, other.step().metrics
        assert [found["r1"], found["r2"]] == [expected["r1"], expected["r2"]]
        for name in ("entropy_t1", "entropy_t2"):
            assert found[name] == pytest.approx(expected[name], rel=1e-12 if exact else 0.01), name
        assert gradients[0].norm() > 0
        assert relative_gap(gradients[1], gradients[0]) < (1e-12 if exact else 0.05)
    if exact:
        for ours, theirs in zip(other.policy.parameters(), on_cpu.policy.parameters(), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs, atol=1e-8, rtol=1e-6)


def test_adapters_learn_the_same() -> None:
    plain = of_family("Llama", tied=True, cpu_kernels=False)
    metrics = []
    for base in (there(plain), plain):
        policy = base.with_adapter("policy", LORA, seed=3)
        trainer = make_trainer(settings(), policy=policy, base=base)
        metrics.append([trainer.step().metrics["gradient_norm"] for _ in range(2)])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)
    assert min(metrics[0]) > 0


def test_supervised_learning_is_the_same() -> None:
    stage = {"method": "star", "steps": 4, "rounds": 2}
    config = make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4},
            "task": {"train_problems": 16},
            "stages": {"stage": stage},
        }
    )
    plain = of_family("Llama", tied=False, cpu_kernels=False)
    found = []
    for policy in (there(plain), plain):
        trainer = SFTTrainer(
            config,
            "stage",
            policy=policy,
            references={},
            problems=[problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
            chat=ChatFormat(make_tokenizer(), SCRIPT),
            verifier=FunctionVerifier(lambda problem, text: len(text) % 2 == 1),
        )
        found.append([{k: v for k, v in trainer.step().metrics.items() if isinstance(v, float)} for _ in range(4)])
    assert any("gradient_norm" in metrics for metrics in found[0])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
