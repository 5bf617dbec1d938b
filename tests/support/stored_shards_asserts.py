"""What must hold of the files that several processes wrote, seen from one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from selfcorrect.distributed.world import ALONE
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.storage.run_dir import MANIFEST
from support.stored_shards import STATES, continued, norms_in_their_dtype


def assert_same_model(folder: Path, expected: LanguageModel | Path, *, files: int, tmp_path: Path) -> None:
    """The folder holds the bytes that one process writes, in ``files`` files of weights at least."""
    if isinstance(expected, Path):
        others = expected
    else:
        others = tmp_path / "expected"
        expected.save(others)
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    assert names == sorted(path.name for path in others.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    assert len(weights) >= files
    for name in names:
        assert (folder / name).read_bytes() == (others / name).read_bytes(), name


def assert_continued(name: str, folder: Path, ranks: Sequence[Mapping[str, Any]]) -> None:
    """A saved run goes on to the same bits with the same processes, and to rounding with one, which holds it whole."""
    tight = STATES[name][1].model.dtype == "float64"
    expected = ranks[0]["runs"][name]
    for rank in ranks:
        found = rank["runs"][name]
        assert found["again"]["sharded"]
        assert found["again"]["metrics"] == found["metrics"][-len(found["again"]["metrics"]) :]
        assert_near(found["again"]["weights"], expected["weights"], within=0.0)
    with norms_in_their_dtype():
        alone = continued(name, folder, ALONE)
    assert not alone["sharded"]
    assert_near(alone["weights"], expected["weights"], within=1e-12 if tight else 1e-2)
    if tight:
        norms = [line["gradient_norm"] for line in alone["metrics"]]
        assert min(norms) > 0
        assert norms == pytest.approx([line["gradient_norm"] for line in expected["again"]["metrics"]], rel=1e-10)


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, within: float) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        gap = float((found[name].double() - weight.double()).norm())
        assert gap <= within * float(weight.double().norm()), name


def assert_exported(name: str, folder: Path, tmp_path: Path) -> None:
    """The model of a training state is a plain directory with the bits that the state holds, whoever reads it."""
    dtype = STATES[name][1].model.dtype
    whole = folder / f"run {name}/checkpoints/stage"
    state = load_file(whole / "model.safetensors")
    again = load_model(whole, dtype=dtype)
    assert not {path.name for path in whole.iterdir()} & {"trainer.pt", "state"}
    parts = folder / f"exported {name}"
    index = json.loads((parts / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1 and index.keys() == state.keys()
    assert load_model(parts, dtype=dtype).digest() == again.digest()
    for key, tensor in state.items():
        stored = load_file(parts / index[key])[key]
        assert stored.dtype == getattr(torch, dtype) and torch.equal(stored, tensor), key
    assert_same_model(whole, again, files=1, tmp_path=tmp_path)
