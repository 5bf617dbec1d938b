"""What a plain directory contains is what `transformers` says, weight by weight; where it says otherwise, nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import of_family

from selfcorrect.distributed.exporting import _stored, save_from_state
from selfcorrect.distributed.loading import blank_of, weights_of
from selfcorrect.distributed.shard_files import STATE, write_shards
from selfcorrect.distributed.world import ALONE

MODEL = of_family("Llama", tied=True, dtype=torch.float32)


@pytest.fixture
def blank(tmp_path: Path) -> Any:
    MODEL.save(tmp_path / "plain")
    return blank_of(tmp_path / "plain", dtype="float32", trust_remote_code=False)[0]


class Saves:
    """A model that saves itself in its own way."""

    def __init__(self, blank: Any, change: Any) -> None:
        self.blank, self.change = blank, change

    def state_dict(self, **options: Any) -> Any:
        return self.blank.state_dict(**options)

    def save_pretrained(self, folder: str, state_dict: dict[str, Any], **_: Any) -> None:
        self.blank.save_pretrained(folder, state_dict=state_dict)
        file = Path(folder) / "model.safetensors"
        save_file(self.change(load_file(file)), file)


def test_names_that_the_family_changes_are_followed(blank: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    renaming = Saves(blank, lambda tensors: {f"old.{name}": tensor for name, tensor in tensors.items()})
    stored = _stored(renaming, tmp_path / "out")
    assert stored is not None and all(name == f"old.{weight}" for name, weight in stored.items())
    assert len(stored) == len(list(blank.parameters()))
    assert [path.name for path in (tmp_path / "out").iterdir() if "safetensors" in path.name] == []


def _merged(tensors: dict[str, Any]) -> dict[str, Any]:
    first, second, *rest = tensors
    return {first: torch.cat([tensors[first], tensors[second]]), **{name: tensors[name] for name in rest}}


def _lost(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(list(tensors.items())[1:])


def _twice(tensors: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(tensors))
    return {**tensors, "copy": tensors[first].clone()}


@pytest.mark.parametrize("change", [_merged, _lost, _twice])
def test_a_family_that_stores_something_else_is_left_to_transformers(change: Any, blank: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert _stored(Saves(blank, change), tmp_path / "out") is None
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_be_written_weight_by_weight_is_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MODEL.save(tmp_path / "checkpoint")
    expected = (tmp_path / "checkpoint/model.safetensors").read_bytes()
    (tmp_path / "checkpoint/model.safetensors").unlink()
    write_shards(weights_of(MODEL), tmp_path / "checkpoint" / STATE, ALONE)
    for stored in (True, False):
        out = tmp_path / f"out {stored}"
        out.mkdir()
        with monkeypatch.context() as patch:
            if not stored:
                patch.setattr("selfcorrect.distributed.exporting._stored", lambda blank, folder: None)
            save_from_state(tmp_path / "checkpoint", out, ALONE, dtype="float32", trust_remote_code=False)
        assert (out / "model.safetensors").read_bytes() == expected
        assert (out / "tokenizer.json").is_file() and (out / "config.json").is_file()


def test_a_full_disk_is_not_taken_for_another_arrangement(blank: Any, tmp_path: Path) -> None:
    def full(tensors: Any) -> Any:
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space left"):
        _stored(Saves(blank, full), tmp_path / "out")
