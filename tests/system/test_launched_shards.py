"""A run whose models lie in shards over the processes of a launcher: the files of one process, and no end that loses work."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support.launched import EXACT, assert_same_run, finish, said, started, wait_for_step

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
