"""A run over two processes that a launcher starts: the files of one process, one owner, and no end that loses work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.crash import SHORTER
from support.jobs import OneFails
from support.models import tiny_model
from support.processes import free_port, launcher_environment

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper.plan import RunSpec
from selfcorrect.paper.worker_pool import work_through
from selfcorrect.runs.fork import config_prefix
from selfcorrect.storage.files import read_jsonl

pytestmark = pytest.mark.slow
SETTINGS = [*SHORTER, "model.dtype=float64", "rollout.batch_size=16", "log.turn_gradients_every=2"]
PATIENCE_S = 20
"""The seconds in which a process ends after another one did."""
EXACT = ("metrics.jsonl", "checkpoints/score/model.safetensors", "episodes/eval-score-sampled.jsonl")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(1, dtype=torch.float32).save(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    out = tmp_path_factory.mktemp("launched") / "undisturbed"
    with started(model_folder, out) as processes:
        assert [process.wait(240) for process in processes] == [0, 0], said(out)
    return out


@contextmanager
def started(model: Path, out: Path, *changes: str, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the command of a run in every process; whatever happens, they end with the block."""
    settings = [*SETTINGS, f"model.source={model}", *changes]
    words = ["train", "demo", "--out", str(out), "--resume", "auto", "-v", "--no-report"]
    words += [word for setting in settings for word in ("--set", setting)]
    with started_command(words, out, count=count) as processes:
        yield processes


@contextmanager
def started_command(words: Sequence[str], out: Path, *, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a command in every process; their logs stand beside ``out``, and they end with the block."""
    port = free_port()
    logs = [out.with_name(f"{out.name}-{rank}.log").open("wb") for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "selfcorrect", *words],
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
    wait_until(lambda: f"score {step}/" in said(out), out)


def wait_until(it_is: Callable[[], bool], out: Path, *, patience_s: int = 60) -> None:
    for _ in range(10 * patience_s):
        if it_is():
            return
        time.sleep(0.1)
    raise AssertionError(said(out))


def finish(model: Path, out: Path, *, count: int = 2) -> None:
    with started(model, out, count=count) as processes:
        assert [process.wait(240) for process in processes] == [0] * count, said(out)


def test_two_processes_leave_the_files_of_one(model_folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    finish(model_folder, out, count=1)
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
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-9)


def test_only_the_first_process_speaks(undisturbed: Path) -> None:
    assert "Acc@t1" in said(undisturbed, 0) and said(undisturbed, 1) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_continues(
    victim: int, model_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    with started(model_folder, out) as processes:
        wait_for_step(out, 3)
        processes[victim].send_signal(signal.SIGKILL)
        assert processes[1 - victim].wait(PATIENCE_S) == 1
    if victim == 1:
        assert "another process of this run ended" in said(out) and "Traceback" not in said(out)
    finish(model_folder, out)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.nightly
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    model_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "stopped"
    with started(model_folder, out) as processes:
        wait_for_step(out, 1)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in processes] == [143, 143]
    assert "everything is saved" in said(out) and said(out, 1) == ""
    finish(model_folder, out)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.nightly
def test_a_run_of_two_processes_is_continued_by_one(model_folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with started(model_folder, out) as processes:
        wait_for_step(out, 1)
        processes[0].send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_S) for process in processes] == [143, 143]
    finish(model_folder, out, count=1)
    ours, others = (json.loads((run / "summary.json").read_text())["results"] for run in (out, undisturbed))
    assert ours == others


def test_a_refused_run_is_one_message(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "refused"
    with started(model_folder, out, "task.train_problems=1") as processes:
        assert {process.wait(60) for process in processes} == {2}
    assert "task.train_problems = 1" in said(out, 0) and "Traceback" not in said(out, 0)
    assert said(out, 1) == ""
    assert not (out / "config.toml").exists()


# -- eval ------------------------------------------------------------------------------------------------------------


def evaluation(model: Path, out: Path, *more: str) -> list[str]:
    words = ["eval", "--model", str(model), "--task", "addition", "--out", str(out), "--device", "cpu"]
    return [*words, "--dtype", "float64", "--max-tokens", "6", "--max-num-seqs", "4", *more]


def test_eval_on_two_processes_leaves_the_files_of_one(model_folder: Path, tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    with started_command(evaluation(model_folder, two, "--limit", "11", "--controls"), two) as processes:
        assert [process.wait(240) for process in processes] == [0, 0], said(two)
    assert main(evaluation(model_folder, one, "--limit", "11", "--controls")) == 0
    assert said(two, 1) == "" and said(two).count("Acc@t1") > 0
    files = sorted(path.relative_to(one) for path in one.rglob("*.json*") if path.name != "summary.json")
    assert len(files) == 5
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes(), file
    ours, others = (json.loads((out / "summary.json").read_text())["results"] for out in (one, two))
    assert ours == others


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_eval_shows_what_it_has_once_and_is_continued_by_one(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    first = out / "episodes/eval-attempts.jsonl"
    with started_command(evaluation(model_folder, out, "--limit", "800"), out) as processes:
        wait_until(lambda: first.exists() and first.stat().st_size > 0, out)
        processes[1].send_signal(number)
        assert [process.wait(PATIENCE_S) for process in processes] == [128 + number] * 2
    stored = first.read_bytes().count(b"\n")
    assert 0 < stored < 800 and stored % 8 == 0, "all stop after the same chunk, of 4 episodes each"
    assert said(out).count("the same command resumes from here") == 1 and "Acc@t1" in said(out)
    assert said(out, 1) == ""
    assert main(evaluation(model_folder, out, "--limit", "800")) == 0
    assert main(evaluation(model_folder, whole, "--limit", "800")) == 0
    assert first.read_bytes() == (whole / "episodes/eval-attempts.jsonl").read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_an_eval(victim: int, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = out / "episodes/eval-attempts.jsonl"
    with started_command(evaluation(model_folder, out, "--limit", "5000"), out) as processes:
        wait_until(lambda: first.exists() and first.stat().st_size > 0, out)
        processes[victim].kill()
        assert processes[1 - victim].wait(PATIENCE_S) == 1
    assert said(out, 1 - victim).count("another process of this run ended") == 1
    assert "Traceback" not in said(out, 1 - victim)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere"], "`show` runs in one process, but a launcher started 2"),
        (
            ["eval", "--model", "m", "--task", "addition", "--base-url", "http://localhost:1", "--out", "x"],
            "on a server",
        ),
    ],
    ids=["show", "server"],
)
def test_what_several_processes_do_not_share_is_refused_once(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started_command(words, out) as processes:
        assert {process.wait(60) for process in processes} == {2}
    assert message in said(out) and len(said(out).splitlines()) == 1 and said(out, 1) == ""


def test_one_message_reaches_the_user_of_torchrun(tmp_path: Path) -> None:
    """Torchrun kills the first process when another one ends, so nobody may end before the message is out."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "selfcorrect",
    ]
    ended = subprocess.run(
        [*command, "train", "demo", "--set", "task.train_problems=1", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode != 0 and ended.stderr.count("task.train_problems = 1") == 1, ended.stderr


# -- paper -----------------------------------------------------------------------------------------------------------


def test_a_run_of_the_comparison_on_two_processes(model_folder: Path, tmp_path: Path) -> None:
    config = load_config("demo", [*SETTINGS, f"model.source={model_folder}"])
    base = config_prefix(config, 0)
    own, job = RunSpec("own", base, tmp_path / "own", None), RunSpec("shared", base, tmp_path / "shared", None)
    (done,) = work_through([job], workers=1, processes=2)
    assert done.error is None and job.finished
    own.finish(Callbacks())
    ours, others = (json.loads((spec.path / "summary.json").read_text())["results"] for spec in (own, job))
    assert ours == others


@pytest.mark.nightly
def test_the_whole_comparison_on_two_processes(model_folder: Path, tmp_path: Path) -> None:
    """With forks and further evaluations, some of which have too little context at first."""
    settings = [word for setting in (*SETTINGS, f"model.source={model_folder}") for word in ("--set", setting)]
    for name, more in (("two", ["--processes", "2"]), ("one", [])):
        out = str(tmp_path / name)
        rows = ["--only", "base,score", "--seeds", "1", "--workers", "1"]
        assert main(["paper", "demo", "--out", out, *rows, *more, *settings]) == 0
    summaries = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("summary.json"))
    assert len(summaries) >= 6
    for summary in summaries:
        ours, others = (json.loads((tmp_path / name / summary).read_text())["results"] for name in ("one", "two"))
        assert ours == others, summary


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (OneFails("raises", Path("raises")), "ValueError: the disk is full"),
        pytest.param(
            OneFails("killed", Path("killed")), "process 1 of 2 ended without a message", marks=pytest.mark.nightly
        ),
        pytest.param(
            OneFails("together", Path("together")), "process 1 of 2 failed: ValueError", marks=pytest.mark.nightly
        ),
    ],
    ids=lambda value: value.name if isinstance(value, OneFails) else "",
)
def test_the_message_of_the_process_that_failed_reaches_the_comparison(job: OneFails, message: str) -> None:
    (done,) = work_through([job], workers=1, processes=2)
    assert message in str(done.error)


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_comparison_ends_all_processes(
    number: signal.Signals, model_folder: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "out-0.log"
    settings = [*SETTINGS, f"model.source={model_folder}", "stages.score.steps=400", "optimizer.schedule=constant"]
    words = [
        "paper",
        "demo",
        "--out",
        str(out),
        "--only",
        "score",
        "--seeds",
        "1",
        "--workers",
        "1",
        "--processes",
        "2",
    ]
    words += [word for setting in settings for word in ("--set", setting)]
    steps = out / "score/seed-0/metrics.jsonl"
    with log.open("wb") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "selfcorrect", *words], stdout=file, stderr=file, process_group=0
        )
    try:
        wait_until(lambda: steps.exists() and b'"score"' in steps.read_bytes(), out, patience_s=240)
        if number == signal.SIGKILL:
            command.kill()
        else:
            os.killpg(command.pid, number)  # as a terminal does
        assert command.wait(60) == (130 if number == signal.SIGINT else -number), said(out)
        wait_until(lambda: not group_exists(command.pid), out, patience_s=PATIENCE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    assert ("everything is saved" in said(out)) == (number == signal.SIGINT) and "Traceback" not in said(out)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
