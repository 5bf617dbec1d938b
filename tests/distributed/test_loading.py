"""Which models are read by parts, and how one process reads what several have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import of_family
from support.models import tiny_model

from selfcorrect.config.schema import ModelConfig
from selfcorrect.distributed import loading, shard_files
from selfcorrect.distributed.loading import WEIGHTS, stored_names, weights_of
from selfcorrect.distributed.shard_files import STATE, names_in, read_shards, write_shards
from selfcorrect.distributed.world import ALONE
from selfcorrect.errors import ModelError
from selfcorrect.zoo.resolve import card_of, find_model

TIED = of_family("Llama", tied=True, dtype=torch.float32)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    TIED.save(tmp_path / "plain")
    return tmp_path / "plain"


def named(place: Path, dtype: torch.dtype = torch.float32, **attributes: Any) -> Any:
    root = loading._without_weights(place, dtype="float32", trust_remote_code=False)
    for name, value in attributes.items():
        setattr(root, name, value)
    return stored_names(place, root, dtype)


def test_a_model_without_weights_has_its_buffers_and_ties(plain: Path) -> None:
    root = loading._without_weights(plain, dtype="float32", trust_remote_code=False)
    assert all(weight.is_meta for weight in root.parameters())
    buffers = dict(TIED.model.named_buffers())
    assert buffers and all(torch.equal(buffer, buffers[name]) for name, buffer in root.named_buffers())
    assert root.get_output_embeddings().weight is root.get_input_embeddings().weight
    assert not torch.nn.Linear(2, 2).weight.is_meta, "only while the model is made"


def test_a_plain_directory_is_read_by_parts(plain: Path) -> None:
    names = named(plain)
    assert set(names.values()) == set(load_file(plain / "model.safetensors"))
    assert len(names) == len(list(TIED.model.parameters()))


def _twice(plain: Path) -> None:
    shutil.copy2(plain / "model.safetensors", plain / "model.fp16.safetensors")


def _both_of_a_tie(plain: Path) -> None:
    tensors = load_file(plain / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    save_file(tensors | head, plain / "model.safetensors", metadata={"format": "pt"})


def _renamed(plain: Path) -> None:
    tensors = load_file(plain / "model.safetensors")
    save_file({key.removeprefix("model."): value for key, value in tensors.items()}, plain / "model.safetensors")


def _pickled(plain: Path) -> None:
    torch.save(load_file(plain / "model.safetensors"), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()


def _broken_index(plain: Path) -> None:
    (plain / "model.safetensors").rename(plain / "model-00001-of-00001.safetensors")
    (plain / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize("change", [_twice, _both_of_a_tie, _renamed, _pickled, _broken_index])
def test_files_that_do_not_hold_each_weight_once_by_its_name_are_read_by_transformers(
    change: Callable[[Path], None], plain: Path
) -> None:
    change(plain)
    assert named(plain) is None


def test_weights_that_keep_a_dtype_of_their_own_are_read_by_transformers(plain: Path) -> None:
    assert named(plain, torch.bfloat16, _keep_in_fp32_modules=["norm"]) is None
    assert named(plain, torch.float32, _keep_in_fp32_modules=["norm"]) is not None


def test_a_quantized_model_is_read_by_transformers(plain: Path) -> None:
    settings = json.loads((plain / "config.json").read_text())
    root = loading._without_weights(plain, dtype="float32", trust_remote_code=False)
    root.config.quantization_config = {"quant_method": "unheard of"}
    assert settings and stored_names(plain, root, torch.float32) is None


def _cut(plain: Path) -> None:
    (plain / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes()[:100])


def _unknown(plain: Path) -> None:
    (plain / "config.json").write_text('{"model_type": "unheard of"}')


@pytest.mark.parametrize("change", [_cut, _unknown, _renamed])
def test_what_is_wrong_with_a_directory_is_left_to_transformers_to_say(
    change: Callable[[Path], None], plain: Path
) -> None:
    assert loading._by_parts(plain, dtype="float32", trust_remote_code=False) is not None
    change(plain)
    assert loading._by_parts(plain, dtype="float32", trust_remote_code=False) is None
    (plain / STATE).mkdir()
    if change is _unknown:
        with pytest.raises(ModelError, match="unheard of"):  # nothing else can read a training state
            loading._by_parts(plain, dtype="float32", trust_remote_code=False)


def test_one_process_reads_the_shards_of_a_training_state(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain / "model.safetensors").unlink()
    monkeypatch.setattr(shard_files, "PIECE_BYTES", 4000)
    written = write_shards(weights_of(TIED), plain / STATE, ALONE)
    assert len(written) > 2 and all(
        name.startswith(WEIGHTS) for names in names_in(plain / STATE).values() for name in names
    )
    found = find_model(ModelConfig(source=str(plain), device="cpu"), seed=0)
    assert found.digest() == TIED.digest()
    assert found.model.get_output_embeddings().weight is found.model.get_input_embeddings().weight
    written[0].unlink()
    with pytest.raises(ModelError, match="could not be loaded"):
        find_model(ModelConfig(source=str(plain), device="cpu"), seed=0)


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_shards({"a": torch.arange(6.0).view(2, 3)}, tmp_path, ALONE)
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    read_shards({"a": half}, tmp_path)
    assert half.tolist() == [[0, 1, 2], [3, 4, 5]], "converted as it is read"
    for wrong in ({"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}):
        with pytest.raises((RuntimeError, ValueError)):
            read_shards(wrong, tmp_path)


def test_a_card_is_read_without_the_weights(tmp_path: Path) -> None:
    tiny_model().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    card = card_of(str(tmp_path), ModelConfig(source=str(tmp_path)))
    assert card.context_limit == 256 and card.tokenizer.eos_token == tiny_model().tokenizer.eos_token
