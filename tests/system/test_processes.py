"""A step on several processes is the step on one: the same episodes, the same metrics, the same weights.

Each process holds the whole model, or its shard of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import LORA, of_family
from support.models import tiny_model
from support.processes import SCENARIOS, Processes, launch, results
from support.shards import MODELS
from support.stored_shards import ALWAYS, LAYERS, PLAIN
from support.stored_shards_asserts import assert_continued, assert_exported, assert_same_model

from selfcorrect.config.toml import load_config
from selfcorrect.distributed.world import ALONE
from selfcorrect.errors import CheckpointError
from selfcorrect.models import language_model
from selfcorrect.models.language_model import load_model
from selfcorrect.runs.estimate import estimate
from selfcorrect.runs.model_shape import GIB, Cluster, Lengths, ModelShape
from selfcorrect.storage.run_dir import verify_checkpoint

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


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("the KL of a step is limited")])
def test_they_undo_the_first_step_and_take_the_second(name: str) -> None:
    assert [metrics["undone"] for metrics in one_process(name)["metrics"]] == [1, 0]


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


@pytest.mark.pitfall(22)
def test_an_optimizer_made_after_a_forward_pass_is_refused(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    assert all("3 of 21 trained parameters are whole" in rank["late optimizer"] for rank in ranks)


def test_an_adapter_may_come_after_the_shards(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    assert {rank["later adapter"] for rank in ranks} == {
        of_family("Llama", tied=True).with_adapter("policy", LORA, seed=3).digest()
    }


# -- files of shards -----------------------------------------------------------------------------------------------


@pytest.mark.pitfall(22)
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_directory_is_read_by_parts_and_written_from_them(
    name: str, ranks: list[dict[Any, dict[str, Any]]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dtype, trained = PLAIN[name]
    with torch.no_grad():
        whole = load_model(folder / f"{name}-plain", dtype=dtype, cpu_kernels=False)
        logits = whole.logits(whole.decode(torch.arange(6)[None]).last_hidden_state)
    for found in (rank["stored"]["plain"][name] for rank in ranks):
        assert found["sharded"] and found["digest"] == whole.digest()
        assert found["stored"] == {"torch.float32" if trained and dtype == "bfloat16" else f"torch.{dtype}"}
        assert found["streamed"] == {f"torch.{dtype}"}
        assert found["as one process has them"], "float32 shards keep more of a float32 file than weights in bfloat16"
        assert torch.equal(found["logits"], logits), (
            "the buffers, which no file holds, are not those of `from_pretrained`"
        )
    monkeypatch.setattr(language_model, "FILE_BYTES", 9000)
    assert_same_model(folder / f"{name}-again", whole, files=3, tmp_path=tmp_path)


def test_a_model_under_other_names_is_read_whole_and_sharded(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    expected = of_family("Llama", tied=True, dtype=torch.float32).digest()
    assert {rank["stored"]["decoder"] for rank in ranks} == {expected}


def test_a_process_holds_its_share_and_little_more(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    for held in (rank["stored"]["held"] for rank in ranks):
        share = held["share"]
        assert share == pytest.approx(1 / len(ranks), rel=0.05)
        assert share <= held["loading"] < share + 3.5 / LAYERS, "a pass gathers a layer, in a buffer and as weights"
        assert share <= held["saving"] < share + 0.1
        assert share <= held["exporting"] < share + 1 / 8 + 1 / LAYERS, "a file of an eighth of the model"


@pytest.mark.pitfall(14)
def test_a_saved_sharded_run_is_continued_and_exported(
    ranks: list[dict[Any, dict[str, Any]]], folder: Path, tmp_path: Path
) -> None:
    assert_continued(ALWAYS, folder, [rank["stored"] for rank in ranks])
    assert_exported(ALWAYS, folder, tmp_path)
    own = sorted(path.name for path in (folder / f"run {ALWAYS}/checkpoints/stage-000001/state").iterdir())
    assert own == [f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors" for rank in range(len(ranks))]


def test_a_changed_or_lost_file_of_shards_is_noticed(folder: Path, tmp_path: Path) -> None:
    run = folder / f"run {ALWAYS}/checkpoints/stage-000001"
    for number, file in enumerate(sorted((run / "state").iterdir())):
        for how in ("cut", "flipped", "gone"):
            copy = tmp_path / f"{number}-{how}"
            shutil.copytree(run, copy)
            verify_checkpoint(copy)
            victim, content = copy / "state" / file.name, file.read_bytes()
            if how == "gone":
                victim.unlink()
            else:
                victim.write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(
                CheckpointError, match=r"shard-0000\d-model-00001-of-00001\.safetensors is missing or differs"
            ):
                verify_checkpoint(copy)


def test_each_file_is_checked_by_one_process_and_its_damage_told_by_all(ranks: list[dict[Any, dict[str, Any]]]) -> None:
    said = ranks[0]["stored"]["damaged"]
    assert len(said) >= 8 and all("the checkpoint is damaged" in text for text in said)
    assert len(set(said)) == len(said) and all(rank["stored"]["damaged"] == said for rank in ranks)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_save_that_fails_in_one_process_fails_in_all_and_leaves_the_last_one(
    asynchronous: bool, ranks: list[dict[Any, dict[str, Any]]]
) -> None:
    for rank in (rank["stored"]["failing"] for rank in ranks):
        for where in ("write", "flush"):
            said, there = rank[f"{where}, {asynchronous}"]
            assert said.startswith("later: ") == asynchronous
            assert "cannot write to" in said and "No space left on device. Everything saved before is intact" in said
            assert there == ["base", "stage-000001"]
        assert rank[f"after, {asynchronous}"] == ["base", "stage-000003"]


@pytest.mark.pitfall(14)
def test_a_save_in_the_background_ends_before_the_next_and_has_the_weights_of_its_step(
    ranks: list[dict[Any, dict[str, Any]]],
) -> None:
    for before, waited, own_weights, end in (rank["stored"]["slow"] for rank in ranks):
        assert before == ["base", "stage-000001"], "the one before stays until the new one is whole"
        assert waited == ["base", "stage-000002"] and own_weights
        assert end == ["base", "stage-000003"]


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
