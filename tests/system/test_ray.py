"""Runs whose workers Ray Train starts and restarts: the run of one process, whatever is lost, and one message for an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.launched import EXACT, assert_same_run, finish, said, settings, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PATIENCE_S = 300
"""Ray starts in 10 to 60 s on a busy machine, and once more after a loss."""
QUICK = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
LONG = "stages.score.steps=16"
"""Enough steps to be disturbed among them."""
SMALL = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
"""A machine of a cluster."""


def of_ray() -> set[int]:
    """Return the processes of all Ray clusters of this machine; Ray gives its workers titles of their own."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (place / "cmdline").read_bytes()
            if command.startswith(b"ray::") or b"/raylet/raylet" in command or b"gcs_server" in command:
                found.add(int(place.name))
    return found


@contextmanager
def started(out: Path, *changes: str, options: Sequence[str] = ("--workers", "2")) -> Iterator[subprocess.Popen[bytes]]:
    """Start `selfcorrect ray` on a short run of the demo; its log stands beside ``out``, and it ends with the block."""
    words = ["ray", "demo", "--out", str(out), "-v", "--no-report", *options, *settings(*changes)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (
        out.with_name(f"{out.name}-0.log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "selfcorrect", *words], env=environment | QUICK, stdout=log, stderr=log
        ) as command,
    ):
        try:
            yield command
        finally:
            command.kill()


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Demand that the processes of a cluster end with the block; Ray's agents look once a minute whether they are needed."""
    before = of_ray()
    yield
    for _ in range(1200):
        if not of_ray() - before:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of Ray outlive the command: {of_ray() - before}")


def worker(before: set[int]) -> int:
    """Return a worker of the cluster that has started since."""
    return max(
        number
        for number in of_ray() - before
        if (Path("/proc") / str(number) / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two workers."""
    out = tmp_path_factory.mktemp("ray") / "undisturbed"
    with leaving_nothing(), started(out, LONG) as command:
        assert command.wait(PATIENCE_S) == 0, said(out)
    return out


def wait_in(out: Path, step: int) -> None:
    wait_until(lambda: f"score {step}/" in said(out), out, patience_s=PATIENCE_S)


@pytest.mark.nightly
def test_two_workers_leave_the_run_of_one_process(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    finish(out, LONG, count=1)
    assert_same_run(undisturbed, out)
    assert "started with 2 workers" in said(undisturbed)
    assert "Greedy decoding" in said(undisturbed), "the command prints what the first worker prints"
    assert "pid=" not in said(undisturbed), "the logs of Ray belong to --debug"


@pytest.mark.nightly
def test_a_killed_worker_is_replaced_and_the_run_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "killed", of_ray()
    with leaving_nothing(), started(out, LONG) as command:
        wait_in(out, 5)
        os.kill(worker(before), signal.SIGKILL)
        assert command.wait(PATIENCE_S) == 0, said(out)
    assert "restarted from the last checkpoint with 2 workers" in said(out)
    for file in EXACT:
        assert (out / file).read_bytes() == (undisturbed / file).read_bytes(), file


@pytest.mark.nightly
def test_a_lost_machine_leaves_fewer_workers(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "fewer"
    with leaving_nothing():
        cluster = Cluster(initialize_head=True, head_node_args=SMALL)
        try:
            second = cluster.add_node(**SMALL)
            cluster.wait_for_nodes()
            with started(out, LONG, options=("--workers", "1:2", "--address", cluster.address)) as command:
                wait_in(out, 5)
                cluster.remove_node(second, allow_graceful=False)
                assert command.wait(PATIENCE_S) == 0, said(out)
        finally:
            cluster.shutdown()
    assert "started with 2 workers" in said(out) and "restarted from the last checkpoint with 1 worker\n" in said(out)
    assert_same_run(out, undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_workers_after_a_step(number: int, status: int, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    with leaving_nothing(), started(out, LONG) as command:
        wait_in(out, 5)
        command.send_signal(number)
        assert command.wait(PATIENCE_S) == status, said(out)
    assert "everything is saved" in said(out) and "restarted" not in said(out)
    finish(out, LONG, count=1)
    assert_same_run(out, undisturbed)


@pytest.mark.nightly
def test_an_error_of_the_work_is_one_message_and_not_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "refused"
    with leaving_nothing(), started(out, f"model.source={tmp_path / 'absent'}") as command:
        assert command.wait(PATIENCE_S) == 2, said(out)
    assert said(out).count("error: ") == 1 and "absent" in said(out)
    assert "restarted" not in said(out) and "Traceback" not in said(out)
    assert not out.exists()


@pytest.mark.nightly
def test_a_second_signal_quits_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "quit"
    with leaving_nothing(), started(out, LONG) as command:
        wait_in(out, 1)
        command.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 143, said(out)


@pytest.mark.nightly
def test_workers_that_keep_being_lost_are_an_error(tmp_path: Path) -> None:
    out, before = tmp_path / "lost", of_ray()
    with leaving_nothing(), started(out, LONG, options=("--workers", "2", "--max-failures", "0")) as command:
        wait_in(out, 1)
        os.kill(worker(before), signal.SIGKILL)
        assert command.wait(PATIENCE_S) == 1, said(out)
    assert "--max-failures = 0" in said(out) and "Traceback" not in said(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "2", "--address", "127.0.0.1:1"), "cannot connect to the Ray cluster at '127.0.0.1:1'"),
        (("--workers", "2", "--address", "ray://127.0.0.1:10001"), "HOST:PORT or auto"),
        (("--workers", "100000:100000"), "write MIN:MAX"),
    ],
)
def test_a_cluster_that_is_not_there(options: Sequence[str], words: str, tmp_path: Path) -> None:
    out = tmp_path / "nowhere"
    with started(out, options=options) as command:
        assert command.wait(60) == 2, said(out)
    assert words in said(out) and said(out).count("\n") == 1


@pytest.mark.nightly
def test_more_workers_than_the_machine_holds_are_rejected(tmp_path: Path) -> None:
    out = tmp_path / "many"
    with leaving_nothing(), started(out, options=("--workers", "2", "--cpus-per-worker", "1000")) as command:
        assert command.wait(PATIENCE_S) == 2, said(out)
    assert "at least 2 with 1000 CPU each" in said(out) and said(out).count("\n") == 1
