"""Test other architectures than Llama: decoder and head give what the whole model gives, in policy and engine."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.episodes import episode, sample_key, turn
from support.families import SMALL, TOKENIZER
from support.gradients import relative_gap
from support.models import tiny_model
from support.packing import pack_episodes

from selfcorrect.config.schema import LoRAConfig
from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.errors import ModelError
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.models.reading import load_tokenizer, readable
from selfcorrect.training.scoring import score
from selfcorrect.training.sft import supervised_backward

KINDS: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Mistral": {"sliding_window": None},
    "Gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "Granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "Cohere": {"logit_scale": 0.5, "num_key_value_heads": 2},
}
ROWS = [
    episode(turn([3, 7, 16, 8, 2, 4], [9, 10, 2]), turn([3, 20, 2, 4], [11, 2])),
    episode(turn([3, 7, 2, 4], [9, 2]), turn([3, 20, 2, 4], [11, 12, 13, 2])),
]


def of_kind(kind: str) -> LanguageModel:
    settings = {**SMALL, "head_dim": 16, **KINDS[kind]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**settings)
        config.initializer_range = 0.3
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    return LanguageModel(model.double(), TOKENIZER)


@pytest.mark.parametrize("kind", KINDS)
def test_policy_and_engine_agree_with_the_whole_model(kind: str) -> None:
    model = of_kind(kind)
    found = score(model, pack_episodes(ROWS, [0, 1], pad_id=0), 1.0).logprobs_S
    expected = []
    for row in ROWS:
        logprobs = torch.log_softmax(model.model(input_ids=torch.tensor([row.ids])).logits[0].double(), -1)
        places = [6, 7, 8, 13, 14] if row is ROWS[0] else [4, 5, 10, 11, 12, 13]
        expected += [logprobs[t - 1, row.ids[t]] for t in places]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    request = Request(ROWS[0].turns[0].observation_ids, sample_key())
    engine, sampling = HFEngine(model), Sampling(1.0, 8)
    (one,) = engine.generate([request], sampling, keep=True)
    follow = (*request.ids, *one.ids, 2, 3, 20, 2, 4)
    (two,) = engine.generate([Request(follow, sample_key(turn=1), one.handle)], sampling)
    played = episode(
        turn(request.ids, one.ids, logprobs=one.logprobs), turn((2, 3, 20, 2, 4), two.ids, logprobs=two.logprobs)
    )
    rows = pack_episodes([played], [0], pad_id=0)
    gap = (score(model, rows, 1.0).logprobs_S - rows.logprobs_S).abs().max()
    assert gap < 1e-5


def test_a_head_that_treats_its_logits_in_another_way_is_refused() -> None:
    model = tiny_model()

    class Odd(type(model.model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    model.model.__class__ = Odd
    with pytest.raises(ModelError, match="Odd: decoder plus output embedding differ"):
        LanguageModel(model.model, model.tokenizer)


def test_without_an_end_token_a_model_is_refused() -> None:
    model = tiny_model()
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        LanguageModel(model.model, model.tokenizer)


def test_saved_weights_and_tokenizer_are_loaded_as_they_were(tmp_path: Any) -> None:
    model = tiny_model(dtype=torch.float32)
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.digest() == model.digest()
    assert again.end_ids == model.end_ids
    assert again.tokenizer.chat_template == model.tokenizer.chat_template
    assert again.tokenizer("1+2=")["input_ids"] == model.tokenizer("1+2=")["input_ids"]


def test_a_missing_model_is_one_clear_error(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(tmp_path)


DAMAGED = {
    "nested": b"[" * 200_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "empty": b"",
    "another type": b"[1, 2]",
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_damaged_file_of_a_model_is_no_bug(name: str, damage: str, tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    (tmp_path / name).write_bytes(DAMAGED[damage])
    for load in (load_model, load_tokenizer):
        with contextlib.suppress(ModelError):  # some files are not read, or may be empty
            load(tmp_path)
    if name in ("config.json", "model.safetensors"):
        with pytest.raises(ModelError, match=f"model {str(tmp_path)!r} could not be loaded: "):
            load_model(tmp_path)


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    tiny_model(hidden_size=16, num_attention_heads=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path)
    with pytest.raises(ModelError, match="could not be loaded: RuntimeError"):
        load_model(tmp_path)


def test_no_memory_is_no_damage() -> None:
    for error in (torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")):
        with pytest.raises(type(error)), readable("model 'm'"):
            raise error


def test_digests_tell_one_bit() -> None:
    model = tiny_model()
    before = model.digest()
    with torch.no_grad():
        weight = next(iter(model.parameters()))
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf, dtype=weight.dtype))
    assert model.digest() != before


def test_a_frozen_copy_stays_while_the_model_moves() -> None:
    model = tiny_model()
    twin = model.frozen_copy()
    before = twin.digest()
    assert before == model.digest()
    assert not twin.parameters()
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    assert twin.digest() == before != model.digest()


def test_dropout_is_off_in_training_too() -> None:
    model = tiny_model(attention_dropout=0.9)
    rows = pack_episodes(ROWS, [0, 1], pad_id=0)
    assert torch.equal(score(model, rows, 1.0).logprobs_S, score(model, rows, 1.0).logprobs_S)


def test_supervised_gradients_are_those_of_the_mean_over_all_scored_tokens() -> None:
    from support.gradients import gradient

    model, plain = tiny_model(), tiny_model()
    batches = [pack_episodes(ROWS, [i], pad_id=0, turns=[1]) for i in (0, 1)]
    fits = supervised_backward(model, batches)
    losses: list[torch.Tensor] = []
    for row, places in zip(ROWS, ([13, 14], [10, 11, 12, 13]), strict=True):
        logprobs = torch.log_softmax(plain.model(input_ids=torch.tensor([row.ids])).logits[0], -1)
        losses += [-logprobs[t - 1, row.ids[t]] for t in places]
    (sum(losses) / 6).backward()
    assert relative_gap(gradient(model), gradient(plain)) < 1e-12
    halves = losses[:2], losses[2:]
    assert [fit.loss for fit in fits] == pytest.approx(
        [float(sum(half).detach()) / len(half) for half in halves], rel=1e-12
    )
    # Every one of its tokens has to be more likely than not.
    assert [fit.known for fit in fits] == [
        float(all(float(loss.detach()) < math.log(2) for loss in half)) for half in halves
    ]


def test_a_row_is_known_when_all_its_tokens_are_likely() -> None:
    model = tiny_model(spread=0.25)
    known = tuple(int(i) for i in model.model(input_ids=torch.tensor([[7, 8]])).logits[0, -1].topk(1).indices)
    logits = model.model(input_ids=torch.tensor([[7, 8]])).logits[0, -1]
    likely = float(torch.softmax(logits.detach(), -1).max()) > 0.5
    (fit,) = supervised_backward(model, [pack_episodes([episode(turn([7, 8], list(known)))], [0], pad_id=0)])
    assert fit.known == float(likely)


@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("adapted", [False, True])
def test_whoever_may_read_a_saved_model_may_read_its_weights(tmp_path: Any, mask: int, adapted: bool) -> None:
    model = tiny_model(0, dtype=torch.float32)
    before = os.umask(mask)
    try:
        (model.with_adapter("policy", LoRAConfig(rank=2), seed=0) if adapted else model).save(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert len(modes) > 2 and set(modes.values()) == {0o666 & ~mask}, modes
