"""A run over two processes that a launcher starts: the files of one process, one owner, and no end that loses work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.launched import EXACT, PATIENCE_S, assert_same_run, finish, said, started, wait_for_step, words

from selfcorrect.__main__ import main
from selfcorrect.storage.files import read_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    out = tmp_path_factory.mktemp("launched") / "undisturbed"
    finish(out)
    return out


def test_two_processes_leave_the_files_of_one(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    assert main(words(out)) == 0
    assert_same_run(undisturbed, out)
    assert (undisturbed / "config.toml").read_text() == (out / "config.toml").read_text()


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
    assert "everything is saved" in said(out) and said(out, 1) == ""
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


@pytest.mark.nightly
@pytest.mark.parametrize("renewed", [True, False])
def test_torchrun_restarts_a_killed_process(renewed: bool, undisturbed: Path, tmp_path: Path) -> None:
    """Torchrun's store of addresses must be a new one; with the old one, the message says so."""
    out, log = tmp_path / "restarted", tmp_path / "restarted-0.log"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m"]
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-m", *launcher, "selfcorrect", *words(out)],
            env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(renewed))},
            stdout=file,
            stderr=file,
        ) as command,
    ):
        wait_for_step(out, 3)
        [*_, victim] = children(command.pid)
        os.kill(victim, signal.SIGKILL)
        assert (command.wait(240) == 0) == renewed, said(out)
    if renewed:
        for name in EXACT:
            assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    else:
        assert "did not find each other" in said(out) and "This is a bug" not in said(out)


def children(parent: int) -> list[int]:
    """Return the processes that a process started."""
    return sorted(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))


@pytest.mark.nightly
def test_a_refused_run_is_one_message(tmp_path: Path) -> None:
    out = tmp_path / "refused"
    with started(out, "task.train_problems=1") as processes:
        assert {process.wait(60) for process in processes} == {2}
    assert "task.train_problems = 1" in said(out, 0) and "Traceback" not in said(out, 0)
    assert said(out, 1) == ""
    assert not (out / "config.toml").exists()


@pytest.mark.nightly
def test_episodes_that_wait_for_their_step_are_learnt_by_another_number_of_processes(tmp_path: Path) -> None:
    ahead = ("rollout.ahead=1", "optimizer.tis_cap=2")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "stopped"
    finish(undisturbed, *ahead)
    with started(out, *ahead) as processes:
        wait_for_step(out, 1)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in processes] == [143, 143], said(out)
    finish(out, *ahead, count=1)
    assert_same_run(out, undisturbed)
    assert "importance_weight" in read_jsonl(out / "metrics.jsonl")[-1]
