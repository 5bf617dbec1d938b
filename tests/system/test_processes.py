"""A step on several processes is the step on one: the same episodes, the same metrics, the same weights.

Each process holds the whole model, or its shard of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import SCENARIOS, Processes, launch, results

from selfcorrect.distributed.world import ALONE

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "support/processes.py"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.nightly)])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[bool, dict[str, Any]]]:
    """What each of several processes has at the end of every scenario, without shards and with them."""
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, request.param, folder, [str(folder)])
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(request.param)]


_one: dict[str, dict[str, Any]] = {}


def one_process(name: str) -> dict[str, Any]:
    if name not in _one:
        _one[name] = results(name, Processes(ALONE))
    return _one[name]


@pytest.mark.pitfall(22)
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_several_processes_take_the_steps_of_one(
    name: str, sharded: bool, ranks: list[dict[bool, dict[str, Any]]]
) -> None:
    expected, first = one_process(name), ranks[0][sharded][name]
    assert expected["still"] == [], "a weight never moves, so equal ones say nothing"
    dtype = next(iter(expected["weights"].values())).dtype
    within = 10 * TOLERANCE[dtype]
    for found in (rank[sharded][name] for rank in ranks):
        assert found["sharded"] == sharded
        assert found["ids"] == expected["ids"] and found["verdicts"] == expected["verdicts"]
        for weight, other in zip(found["weights"].values(), expected["weights"].values(), strict=True):
            assert float((weight - other).norm()) <= TOLERANCE[dtype] * float(other.norm())
        for metrics, others in zip(found["metrics"], expected["metrics"], strict=True):
            assert metrics.keys() == others.keys()
            for key, value in others.items():
                near = pytest.approx(value, rel=within, abs=within) if isinstance(value, float) else value
                assert metrics[key] == near, key
        assert found["metrics"] == first["metrics"], "all processes have the metrics of the first"
        assert found["selection"] == pytest.approx(expected["selection"])
        for key, weight in found["weights"].items():
            assert torch.equal(weight, first["weights"][key]), "all processes have the weights of the first"
