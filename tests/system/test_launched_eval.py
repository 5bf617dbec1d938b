"""An evaluation over two processes that a launcher starts, and the commands that refuse to be started twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.launched import PATIENCE_S, said, started_command, wait_until

from selfcorrect.__main__ import main

pytestmark = pytest.mark.slow


def evaluation(out: Path, *more: str) -> list[str]:
    words = ["eval", "--model", "addition-base", "--task", "addition", "--out", str(out), "--device", "cpu"]
    return [*words, "--dtype", "float64", "--max-tokens", "6", "--max-num-seqs", "4", *more]


def test_eval_on_two_processes_leaves_the_files_of_one(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    with started_command(evaluation(two, "--limit", "11", "--controls"), two) as processes:
        assert [process.wait(240) for process in processes] == [0, 0], said(two)
    assert main(evaluation(one, "--limit", "11", "--controls")) == 0
    assert said(two, 1) == "" and said(two).count("Acc@t1") > 0
    files = sorted(path.relative_to(one) for path in one.rglob("*.json*") if path.name != "summary.json")
    assert len(files) == 7
    for file in files:
        assert (two / file).read_bytes() == (one / file).read_bytes(), file
    ours, others = (json.loads((out / "summary.json").read_text())["results"] for out in (one, two))
    assert ours == others


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_eval_shows_what_it_has_once_and_is_continued_by_one(number: signal.Signals, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    first = out / "episodes/eval-attempts.jsonl"
    with started_command(evaluation(out, "--limit", "800"), out) as processes:
        wait_until(lambda: first.exists() and first.stat().st_size > 0, out)
        processes[1].send_signal(number)
        assert [process.wait(PATIENCE_S) for process in processes] == [128 + number] * 2
    stored = first.read_bytes().count(b"\n")
    assert 0 < stored < 800 and stored % 8 == 0, "all stop after the same chunk, of 4 episodes each"
    assert said(out).count("the same command resumes from here") == 1 and "Acc@t1" in said(out)
    assert said(out, 1) == ""
    assert main(evaluation(out, "--limit", "800")) == 0
    assert main(evaluation(whole, "--limit", "800")) == 0
    assert first.read_bytes() == (whole / "episodes/eval-attempts.jsonl").read_bytes()


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_an_eval(victim: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = out / "episodes/eval-attempts.jsonl"
    with started_command(evaluation(out, "--limit", "5000"), out) as processes:
        wait_until(lambda: first.exists() and first.stat().st_size > 0, out)
        processes[victim].kill()
        assert processes[1 - victim].wait(PATIENCE_S) == 1
    assert said(out, 1 - victim).count("another process of this run ended") == 1
    assert "Traceback" not in said(out, 1 - victim)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "nowhere"], "`show` runs in one process, but a launcher started 2"),
        pytest.param(
            ["eval", "--model", "m", "--task", "addition", "--base-url", "http://localhost:1", "--out", "x"],
            "on a server",
            marks=pytest.mark.nightly,
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
