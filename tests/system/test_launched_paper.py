"""A comparison whose runs are shared by two processes each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import OneFails
from support.launched import PATIENCE_S, SETTINGS, said, settings, wait_until

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper.plan import RunSpec
from selfcorrect.paper.worker_pool import work_through
from selfcorrect.runs.fork import config_prefix

pytestmark = pytest.mark.slow


@pytest.mark.nightly
def test_a_run_of_the_comparison_on_two_processes(tmp_path: Path) -> None:
    config = load_config("demo", SETTINGS)
    base = config_prefix(config, 0)
    own, job = RunSpec("own", base, tmp_path / "own", None), RunSpec("shared", base, tmp_path / "shared", None)
    (done,) = work_through([job], workers=1, processes=2)
    assert done.error is None and job.finished
    own.finish(Callbacks())
    ours, others = (json.loads((spec.path / "summary.json").read_text())["results"] for spec in (own, job))
    assert ours == others


@pytest.mark.nightly
def test_the_whole_comparison_on_two_processes(tmp_path: Path) -> None:
    """With forks and further evaluations, some of which have too little context at first."""
    for name, more in (("two", ["--processes", "2"]), ("one", [])):
        out = str(tmp_path / name)
        rows = ["--only", "base,score", "--seeds", "1", "--workers", "1"]
        assert main(["paper", "demo", "--out", out, *rows, *more, *settings()]) == 0
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
def test_the_end_of_the_comparison_ends_all_processes(number: signal.Signals, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "out-0.log"
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
    words += settings("stages.score.steps=400", "optimizer.schedule=constant")
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
