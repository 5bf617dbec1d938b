"""Test Llama, Qwen and Gemma, tied and untied, with and without LoRA, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.episodes import episode, sample_key, turn
from support.families import FAMILIES, lively, of_family
from support.gradients import gradient, relative_gap
from support.packing import pack_episodes
from support.trainers import make_trainer, settings

from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.scoring import score, score_reference

GLUE = (2, 3, 20, 2, 4)
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4)]
MATRIX = [
    pytest.param((family, tied, lora), marks=() if tied or family == "Llama" else pytest.mark.slow)
    for family in FAMILIES
    for tied in (False, True)
    for lora in (False, True)
]
GAPS = {torch.float32: 1e-4, torch.bfloat16: 0.3}
"""The tolerated difference of a token's log-probability between engine and policy, in nats; logits here exceed 5."""


def name_of(value: Any) -> str | None:
    if isinstance(value, tuple):
        family, tied, lora = value
        return "-".join([family, "tied" if tied else "untied", "lora" if lora else "full"])
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def models(
    kind: tuple[str, bool, bool], dtype: torch.dtype = torch.float64, *, cpu_kernels: bool = True
) -> tuple[LanguageModel, LanguageModel]:
    """Return policy and reference: two views of the same weights under LoRA, otherwise two models."""
    family, tied, lora = kind
    base = of_family(family, tied=tied, dtype=dtype, cpu_kernels=cpu_kernels)
    if lora:
        return lively(base), base
    return of_family(family, tied=tied, dtype=dtype, seed=1, cpu_kernels=cpu_kernels), base


def played(model: LanguageModel, engine: HFEngine | None = None) -> tuple[list[Any], MicroBatch]:
    """Sample two turns of every prompt; return the episodes and their rows."""
    engine, sampling = engine or HFEngine(model), Sampling(1.0, 6)
    first = [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(2)]
    ones = engine.generate(first, sampling, keep=True)
    follow = [
        Request((*r.ids, *one.ids, *GLUE), sample_key(r.key.problem, r.key.sample, 1), one.handle)
        for r, one in zip(first, ones, strict=True)
    ]
    twos = engine.generate(follow, sampling)
    episodes = [
        episode(turn(r.ids, one.ids, logprobs=one.logprobs), turn(GLUE, two.ids, logprobs=two.logprobs))
        for r, one, two in zip(first, ones, twos, strict=True)
    ]
    return episodes, pack_episodes(episodes, range(len(episodes)), pad_id=model.pad_id)


def whole_model_logprobs(model: LanguageModel, episodes: list[Any]) -> torch.Tensor:
    """Score row by row with the model's own forward pass."""
    found = []
    for one in episodes:
        with model.adapters.on(model.adapter):
            logits = model.model(input_ids=torch.tensor([one.ids])).logits[0]
        logprobs, position = torch.log_softmax(logits, -1), 0
        for part in one.turns:
            start = position + len(part.observation_ids)
            position = start + len(part.ids)
            found += [logprobs[t - 1, one.ids[t]] for t in range(start, position)]
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("kind", MATRIX, ids=name_of)
def test_engine_and_policy_agree_over_both_turns(kind: tuple[str, bool, bool], dtype: torch.dtype) -> None:
    policy, base = models(kind, dtype)
    for model in (policy, base):
        episodes, rows = played(model)
        found = score(model, rows, 1.0).logprobs_S.detach()
        assert (found.double() - rows.logprobs_S).abs().max() < GAPS[dtype]
        whole = whole_model_logprobs(model, episodes).detach()
        torch.testing.assert_close(found, whole.float(), atol=GAPS[dtype], rtol=0)
    assert (score(policy, rows, 1.0).logprobs_S - score(base, rows, 1.0).logprobs_S).abs().max() > 0.05


@pytest.mark.parametrize("kind", MATRIX, ids=name_of)
def test_gradients_are_those_of_the_whole_model(kind: tuple[str, bool, bool]) -> None:
    """This holds even if the backward pass recomputes every layer (here: of tied models) after the reference has run."""
    policy, base = models(kind)
    episodes, rows = played(policy)
    if kind[1]:
        policy.enable_gradient_checkpointing()
    weights = torch.linspace(-1, 1, len(rows.logprobs_S), dtype=torch.float64)
    loss = (weights * score(policy, rows, 1.0).logprobs_S).sum()
    with torch.no_grad():
        score(base, rows, 1.0)
    loss.backward()
    found = gradient(policy)
    policy.model.zero_grad()
    with policy.adapters.on(policy.adapter):
        (weights * whole_model_logprobs(policy, episodes)).sum().backward()
    assert found.norm() > 1e-3
    assert relative_gap(found, gradient(policy)) < 1e-5


@pytest.mark.parametrize("kind", MATRIX, ids=name_of)
def test_prompts_read_once_change_neither_scores_nor_gradients(
    kind: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, base = models(kind, cpu_kernels=False)  # the general forward pass; `test_llama.py` has the fast one
    episodes, _ = played(policy)
    fed: list[int] = []
    decode = LanguageModel.decode

    def counted(model: LanguageModel, ids_BT: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        fed.append(len(ids_BT))
        return decode(model, ids_BT, *rest, **settings)

    monkeypatch.setattr(LanguageModel, "decode", counted)

    def learnt(share: bool, order: list[int]) -> list[torch.Tensor]:
        policy.model.zero_grad()
        rows = pack_episodes(episodes, order, pad_id=policy.pad_id, share_prompts=share).to(policy.device)
        reference = score_reference(base, rows, 1.0, keep_hidden=True)
        found = score(policy, rows, 1.0, [reference], full_kl=True)
        weights = torch.linspace(-1, 1, len(rows.logprobs_S), dtype=torch.float64)
        (weights * (found.logprobs_S + found.kl_RS[0])).sum().backward()
        return [found.logprobs_S, found.entropy_S, found.kl_RS, reference.logprobs_S, gradient(policy)]

    order = [4, 1, 0, 3, 2, 5]
    for shared, plain in zip(learnt(True, order), learnt(False, order), strict=True):
        torch.testing.assert_close(shared, plain, atol=1e-6, rtol=1e-6)  # some families' softmax is float32
    assert fed == [3, 6, 3, 6, 6, 6]  # rows: three prompts and six continuations, twice; six whole rows, twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("kind", MATRIX, ids=name_of)
def test_a_step_trains_the_policy_and_leaves_the_reference(kind: tuple[str, bool, bool], dtype: torch.dtype) -> None:
    policy, base = models(kind, dtype)
    before, reference, weights = policy.digest(), base.digest(), plain_bits(policy)
    kl = {"placement": "loss", "estimator": "full"} if dtype == torch.float32 else {}
    trainer = make_trainer(settings(kl=kl, optimizer={"learning_rate": 1e-2}), policy=policy, base=base)
    found = trainer.step().metrics
    assert found["max_logprob_diff"] < GAPS[dtype]
    assert found["gradient_norm"] > 0
    assert policy.digest() != before
    assert base.digest() == reference
    assert all(torch.equal(a, b) for a, b in zip(plain_bits(policy), weights, strict=True)) == kind[2]


def plain_bits(model: LanguageModel) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.adapters.plain_tensors().values()]


@pytest.mark.parametrize("kind", MATRIX, ids=name_of)
def test_saved_models_are_loaded_to_the_bit_by_us_and_by_their_libraries(
    kind: tuple[str, bool, bool], tmp_path: Path
) -> None:
    dtype = "bfloat16"
    policy, base = models(kind, getattr(torch, dtype))
    base.save(tmp_path / "base")
    policy.save(tmp_path / "policy")
    again = load_model(tmp_path / "policy", dtype=dtype)
    assert again.digest() == policy.digest()
    assert load_model(tmp_path / "base", dtype=dtype).digest() == base.digest()
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad(), policy.adapters.on(policy.adapter):
        expected = policy.model(input_ids=ids).logits
        found = reader(kind[2])(tmp_path, getattr(torch, dtype))(input_ids=ids).logits
    assert torch.equal(found, expected)


def reader(lora: bool) -> Callable[[Path, torch.dtype], Any]:
    """Load the policy as a user without this package would."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load(folder: Path, dtype: torch.dtype) -> Any:
        if not lora:
            return AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype).eval()
        plain = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype)
        return PeftModel.from_pretrained(plain, folder / "policy").eval()

    return load
