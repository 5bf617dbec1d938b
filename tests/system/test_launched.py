"""A run over two processes that a launcher starts: the files of one process, one owner, and no end that loses work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.crash import SHORTER
from support.processes import free_port, launcher_environment

from selfcorrect.storage.files import read_jsonl

pytestmark = pytest.mark.slow
SETTINGS = [
    *SHORTER,
    "rollout.max_tokens=8",
    "model.dtype=float64",
    "rollout.batch_size=16",
    "log.turn_gradients_every=2",
]
"""The demo's own base is correct often enough to learn; without rewards, all gradients would be 0 and all weights equal."""
PATIENCE_S = 20
"""The seconds in which a process ends after another one did."""
ONE_PASS = "model.cpu_kernels=false"
"""One forward pass everywhere: shards cannot use the CPU's own, which differs from it in float32 norms."""
SHARDED = (ONE_PASS, "distributed.shard=true")
EXACT = ("metrics.jsonl", "checkpoints/score/model.safetensors", "episodes/eval-score-sampled.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    out = tmp_path_factory.mktemp("launched") / "undisturbed"
    finish(out)
    return out


@contextmanager
def started(out: Path, *changes: str, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the command of a run in every process; whatever happens, they end with the block."""
    port, settings = free_port(), [*SETTINGS, *changes]
    command = [
        sys.executable,
        "-m",
        "selfcorrect",
        "train",
        "demo",
        "--out",
        str(out),
        "--resume",
        "auto",
        "-v",
        "--no-report",
    ]
    logs = [out.with_name(f"{out.name}-{rank}.log").open("wb") for rank in range(count)]
    processes = [
        subprocess.Popen(
            [*command, *(word for setting in settings for word in ("--set", setting))],
            env=launcher_environment(rank, count, port),
            stdout=log,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        yield processes
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()


def said(out: Path, rank: int = 0) -> str:
    return out.with_name(f"{out.name}-{rank}.log").read_text()


def wait_for_step(out: Path, step: int) -> None:
    """Wait until stage `score` has taken its step."""
    for _ in range(600):
        if f"score {step}/" in said(out):
            return
        time.sleep(0.1)
    raise AssertionError(said(out))


def finish(out: Path, *changes: str, count: int = 2) -> None:
    with started(out, *changes, count=count) as processes:
        assert [process.wait(240) for process in processes] == [0] * count, said(out)


def test_two_processes_leave_the_files_of_one(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    finish(out, count=1)
    files = sorted(path.name for path in (out / "episodes").iterdir())
    assert files == sorted(path.name for path in (undisturbed / "episodes").iterdir())
    for name in files:
        ours, others = read_jsonl(undisturbed / "episodes" / name), read_jsonl(out / "episodes" / name)
        assert [e["turns"] for e in ours] == [e["turns"] for e in others], name
    summaries = [json.loads((run / "summary.json").read_text())["results"] for run in (out, undisturbed)]
    assert summaries[0] == summaries[1]
    assert (undisturbed / "config.toml").read_text() == (out / "config.toml").read_text()
    steps = [read_jsonl(run / "metrics.jsonl") for run in (out, undisturbed)]
    for one, two in zip(*steps, strict=True):
        assert one["gradient_norm"] > 0, "nothing is learned"
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-9)


def test_only_the_first_process_speaks(undisturbed: Path) -> None:
    assert "Acc@t1" in said(undisturbed, 0) and said(undisturbed, 1) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_continues(
    victim: int, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    with started(out) as processes:
        wait_for_step(out, 3)
        processes[victim].send_signal(signal.SIGKILL)
        assert processes[1 - victim].wait(PATIENCE_S) == 1
    if victim == 1:
        assert "another process of this run ended" in said(out) and "Traceback" not in said(out)
    finish(out)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.nightly
def test_a_signal_to_one_process_stops_all_after_the_same_step(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with started(out) as processes:
        wait_for_step(out, 1)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in processes] == [143, 143]
    assert "everything is saved" in said(out)
    finish(out)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.nightly
def test_a_run_of_two_processes_is_continued_by_one(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with started(out) as processes:
        wait_for_step(out, 1)
        processes[0].send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in processes] == [143, 143]
    finish(out, count=1)
    ours, others = (json.loads((run / "summary.json").read_text())["results"] for run in (out, undisturbed))
    assert ours == others


def test_a_refused_run_is_one_message(tmp_path: Path) -> None:
    out = tmp_path / "refused"
    with started(out, "task.train_problems=1") as processes:
        assert {process.wait(60) for process in processes} == {2}
    assert "task.train_problems = 1" in said(out, 0) and "Traceback" not in said(out, 0) + said(out, 1)
    assert not (out / "config.toml").exists()


# -- shards --------------------------------------------------------------------------------------------------------


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
def test_a_killed_sharded_process_ends_the_other_and_the_same_command_continues(
    undisturbed_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    with started(out, *SHARDED) as processes:
        wait_for_step(out, 3)
        processes[1].send_signal(signal.SIGKILL)
        assert processes[0].wait(60) == 1, said(out)
    assert "another process of this run ended" in said(out) and "Traceback" not in said(out)
    finish(out, *SHARDED)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed_shards / file).read_bytes(), file
