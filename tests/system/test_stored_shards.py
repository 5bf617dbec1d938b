"""Training states of sharded models: all kinds of weights and trainers, written by two and by four processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import launch
from support.stored_shards import ALWAYS, STATES
from support.stored_shards_asserts import assert_continued, assert_exported, assert_near

pytestmark = pytest.mark.nightly
SCRIPT = Path(__file__).parents[1] / "support/stored_shards.py"


@pytest.fixture(scope="module", params=[2, 4])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which several processes write."""
    folder = tmp_path_factory.mktemp("stored")
    launch(SCRIPT, request.param, folder, [str(folder)], time_limit_s=900)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("rank-*.pt"))]


@pytest.mark.parametrize("name", [name for name in STATES if name != ALWAYS])
def test_a_saved_run_is_continued_by_the_same_processes_and_by_one_and_exported(
    name: str, folder: Path, ranks: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert_continued(name, folder, ranks)
    assert_exported(name, folder, tmp_path)


def test_a_supervised_stage_keeps_its_first_weights_as_shards(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["supervised"] == [True, True, True] for rank in ranks)


@pytest.mark.parametrize("name", ["float64", "bfloat16"])
def test_a_checkpoint_of_one_process_is_continued_as_shards(name: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        alone, shards = rank["gathered"][name]
        assert shards["sharded"] and not alone["again"]["sharded"]
        assert_near(alone["again"]["weights"], alone["weights"], within=0.0)
        assert_near(shards["weights"], alone["weights"], within=1e-12 if name == "float64" else 1e-2)
