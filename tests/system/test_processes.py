"""A step on several processes is the step on one: the same episodes, the same metrics, the same weights.

Each process holds the whole model, or its shard of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import LORA, of_family
from support.models import tiny_model
from support.processes import SCENARIOS, Processes, launch, results
from support.shards import MODELS

from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import ALONE
from selfcorrect.runs.estimate import GIB, Cluster, Lengths, ModelShape, estimate

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "support/processes.py"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.nightly)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which several processes write what each of them has at the end."""
    folder = tmp_path_factory.mktemp("processes")
    launch(SCRIPT, request.param, folder, [str(folder)])
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[Any, dict[str, Any]]]:
    """What each process has at the end of every scenario, without shards and with them, and of every sharded model."""
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob("rank-*.pt"))]


_one: dict[str, dict[str, Any]] = {}


def one_process(name: str) -> dict[str, Any]:
    if name not in _one:
        _one[name] = results(name, Processes(ALONE))
    return _one[name]


@pytest.mark.pitfall(22)
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_several_processes_take_the_steps_of_one(
    name: str, sharded: bool, ranks: list[dict[Any, dict[str, Any]]]
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


def test_the_estimate_of_shards_counts_what_the_processes_hold(
    ranks: list[dict[Any, dict[str, Any]]], tmp_path: Path
) -> None:
    tiny_model(0, dtype=torch.float32).save(tmp_path)
    changes = [f"model.source={tmp_path}", "model.dtype=float32", "distributed.shard=true"]
    config = load_config("demo", changes)
    shape, cluster = ModelShape.of(config), Cluster(len(ranks))
    found = estimate(config, shape, cluster, Lengths(8, 4))
    held = [rank[True]["float32"]["held"] for rank in ranks]
    shares = {name: sum(each[name] for each in held) / len(held) / GIB for name in held[0]}
    assert found.learning["weights"] == pytest.approx(shares["weights"])
    assert found.learning["gradients, Adam"] == pytest.approx(shares["moments"] * 12 / 8)
    assert found.learning["references"] == pytest.approx(shares["references"] / 2), "its reference is in float64"
    whole = one_process("float32")["held"]
    assert whole["weights"] / GIB == pytest.approx(found.sampling["whole weights"])


@pytest.mark.parametrize("name", MODELS)
def test_files_of_a_sharded_model_are_those_of_one_process(name: str, folder: Path, tmp_path: Path) -> None:
    MODELS[name]().save(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(path.name for path in (folder / name).iterdir())
    for file in files:
        assert (folder / name / file).read_bytes() == (tmp_path / file).read_bytes(), file


@pytest.mark.pitfall(22)
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_gets_all_weights_of_a_sharded_model(name: str, ranks: list[dict[Any, dict[str, Any]]]) -> None:
    model = MODELS[name]()
    expected = dict(model.plain_weights())
    for found in (rank["models"][name] for rank in ranks):
        assert found["digest"] == model.digest()
        assert list(found["streamed"]) == list(expected)
        for key, tensor in found["streamed"].items():
            assert torch.equal(tensor, expected[key]) and tensor.dtype == expected[key].dtype, key


def test_shards_of_bfloat16_are_their_own_float32_masters(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    name = "bfloat16, trained in float32"
    masters = ranks[0]["models"][name]["masters"]
    for master, weight in zip(masters, MODELS[name]().parameters(), strict=True):
        assert master.dtype == torch.float32 and torch.equal(master, weight.float())
    assert not any(len(master) for master in ranks[1]["models"][name]["masters"]), "only the first process writes"


@pytest.mark.pitfall(22)
def test_an_optimizer_made_after_a_forward_pass_is_refused(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    assert all("3 of 21 trained parameters are whole" in rank["late optimizer"] for rank in ranks)


def test_an_adapter_may_come_after_the_shards(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    assert {rank["later adapter"] for rank in ranks} == {
        of_family("Llama", tied=True).with_adapter("policy", LORA, seed=3).digest()
    }


JOINED = """
import os
import torch.distributed
from selfcorrect.distributed.world import joined
from selfcorrect.errors import ProcessError

try:
    with joined(timeout_s=60) as world:
        {body}
except ProcessError as error:
    print("ended:", error)
"""


def test_a_lost_process_is_named_where_the_shards_meet_and_other_errors_stay(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    exchange = "os._exit(0) if world.rank == 1 else torch.distributed.all_reduce(torch.zeros(1))"
    script.write_text(JOINED.format(body=exchange))
    assert "ended: another process of this run ended or did not answer" in launch(script, 2, tmp_path)[0]
    script.write_text(JOINED.format(body='raise RuntimeError("out of luck")'))
    with pytest.raises(AssertionError, match="RuntimeError: out of luck"):
        launch(script, 2, tmp_path)
