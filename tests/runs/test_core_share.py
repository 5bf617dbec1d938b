"""The warning about busy cores, with clocks made by hand, and where a run and an evaluation ask for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.crash import SETTINGS
from support.models import tiny_model

from selfcorrect import runtime
from selfcorrect.config.toml import load_config
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.runs.run import train
from selfcorrect.runtime import CoreShare


class Machine:
    """A machine whose wall time, processor time and load are set by hand."""

    def __init__(self, threads: int = 2, load: float = 8.0) -> None:
        self.wall, self.used, self.load = 100.0, 5.0, load
        self.share = CoreShare(
            threads, clock=lambda: self.wall, used=lambda: self.used, load=lambda: self.load, cores=2
        )

    def look(self, wall: float, used: float) -> str | None:
        self.wall, self.used = self.wall + wall, self.used + used
        return self.share.look()


def test_a_process_that_gets_little_of_busy_cores_says_so_once() -> None:
    machine = Machine()
    found = machine.look(200.0, 42.0)
    assert found is not None
    assert "2 threads, but got 42 s of processor time in 200 s (load average 8.0 on 2 cores)" in found
    assert "OMP_NUM_THREADS=1" in found
    assert machine.look(200.0, 42.0) is None


@pytest.mark.parametrize(
    ("machine", "wall", "used"),
    [
        (Machine(), 200.0, 380.0),
        (Machine(), 10.0, 1.0),
        (Machine(threads=1), 200.0, 42.0),
        (Machine(load=1.0), 200.0, 42.0),
    ],
    ids=["the cores are its own", "too short", "one thread", "idle cores: it waits for something else"],
)
def test_other_processes_are_silent(machine: Machine, wall: float, used: float) -> None:
    assert machine.look(wall, used) is None


def test_only_the_time_since_the_last_look_counts() -> None:
    machine = Machine()
    assert machine.look(1000.0, 1990.0) is None
    assert machine.look(10.0, 1.0) is None, "adds up with the next"
    assert machine.look(15.0, 2.0) is not None


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cores are busy, and every look covers enough time."""
    monkeypatch.setattr(
        CoreShare, "of", classmethod(lambda cls, device: CoreShare(2, used=lambda: 0.0, load=lambda: 1e6))
    )
    monkeypatch.setattr(runtime, "LEAST_WALL_S", 0.0)


@pytest.mark.usefixtures("busy")
def test_an_evaluation_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    with caplog.at_level(logging.WARNING, "selfcorrect"):
        evaluate(model.model, "addition", tokenizer=model.tokenizer, limit=2, max_tokens=4)
    assert caplog.text.count("other programs use the cores") == 1


@pytest.mark.usefixtures("busy", "lenient")
def test_a_run_warns_once(model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config("demo", [*SETTINGS, f"model.source={model_folder}"])
    with caplog.at_level(logging.WARNING, "selfcorrect"):
        train(config, tmp_path / "run")
    assert caplog.text.count("other programs use the cores") == 1
