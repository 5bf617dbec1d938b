"""A run whose models lie in shards over the processes of a launcher: the files of one process, and no end that loses work."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.launched import EXACT, finish, said, started, wait_for_step

from selfcorrect.storage.files import read_jsonl

pytestmark = pytest.mark.slow


ONE_PASS = "model.cpu_kernels=false"
"""One forward pass everywhere: shards cannot use the CPU's own, which differs from it in float32 norms."""
SHARDED = (ONE_PASS, "distributed.shard=true")


@pytest.fixture(scope="module")
def undisturbed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes, each of which held its shard of the models."""
    out = tmp_path_factory.mktemp("sharded") / "undisturbed"
    finish(out, *SHARDED)
    return out


def assert_same_run(ours: Path, others: Path) -> None:
    """The episodes and results are the same, the weights to rounding."""
    for file in sorted((others / "episodes").iterdir()):
        one, two = read_jsonl(ours / "episodes" / file.name), read_jsonl(file)
        assert [e["turns"] for e in one] == [e["turns"] for e in two], file.name
    results = [json.loads((run / "summary.json").read_text())["results"] for run in (ours, others)]
    assert results[0] == results[1]
    weights = [load_file(run / "checkpoints/score/model.safetensors") for run in (ours, others)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert float((weight - weights[1][name]).norm()) <= 1e-12 * float(weight.norm()), name
    gradients = [[line["gradient_norm"] for line in read_jsonl(run / "metrics.jsonl")] for run in (ours, others)]
    assert min(gradients[0]) > 0 and gradients[0] == pytest.approx(gradients[1], rel=1e-9)


@pytest.mark.nightly
def test_a_sharded_run_leaves_the_files_of_one_process(undisturbed_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    finish(out, ONE_PASS, count=1)
    assert_same_run(undisturbed_shards, out)
    folders = [run / "checkpoints/score" for run in (out, undisturbed_shards)]
    files = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert files[0] == files[1]
    assert (folders[0] / "config.json").read_bytes() == (folders[1] / "config.json").read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sharded_run_is_continued_by_any_number_of_processes(
    count: int, undisturbed_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    with started(out, *SHARDED) as processes:
        wait_for_step(out, 1)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in processes] == [143, 143], said(out)
    finish(out, *SHARDED, count=count)
    assert_same_run(out, undisturbed_shards)
    if count == 2:
        for file in EXACT:
            assert (out / file).read_bytes() == (undisturbed_shards / file).read_bytes(), file


@pytest.mark.nightly
@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_killed_sharded_process_ends_the_other_and_the_same_command_continues(
    asynchronous: str, undisturbed_shards: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "killed", (*SHARDED, f"distributed.async_save={asynchronous}")
    with started(out, *settings) as processes:
        wait_for_step(out, 3)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(60) == 1, said(out)
    assert "another process of this run ended" in said(out) and "Traceback" not in said(out)
    finish(out, *settings)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed_shards / file).read_bytes(), file
