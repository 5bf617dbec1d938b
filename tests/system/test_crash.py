"""Test that a run killed at any moment resumes to the exact bits of an undisturbed run (pitfall 14)."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.crash import REFUSED, Harness

from selfcorrect.models.language_model import load_model


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, lenient: None) -> Harness:
    harness = Harness(tmp_path_factory.mktemp("crash"))
    base, end = (load_model(harness.folder / "undisturbed/checkpoints" / name) for name in ("base", "score"))
    assert base.digest() != end.digest(), "nothing was learnt, so nothing could be lost"
    return harness


@pytest.mark.slow
@pytest.mark.pitfall(14)
def test_killed_runs_end_with_the_same_bits(harness: Harness) -> None:
    randomly = random.Random(14)
    for number in range(8):
        seconds = randomly.uniform(0.05, harness.seconds)
        assert harness.run(f"killed{number}", seconds=seconds) == harness.undisturbed, f"killed after {seconds:.3f} s"


@pytest.mark.slow
@pytest.mark.pitfall(14)
def test_killed_runs_one_step_off_end_with_the_same_bits(tmp_path: Path, lenient: None) -> None:
    harness = Harness(tmp_path, "rollout.ahead=1", "optimizer.tis_cap=2")
    total = harness.events()
    for event in range(0, total, -(-total // 6)):
        assert harness.run(f"event{event}", event=event) == harness.undisturbed, f"crash at event {event} of {total}"
    randomly = random.Random(23)
    for number in range(6):
        seconds = randomly.uniform(0.2, 0.8) * harness.seconds  # most of it is training
        assert harness.run(f"killed{number}", seconds=seconds) == harness.undisturbed, f"killed after {seconds:.3f} s"


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["eight", "every"])
def test_a_crash_at_a_file_system_event_loses_nothing(harness: Harness, every: bool) -> None:
    total = harness.events()
    assert total > 100
    for event in range(0, total, 1 if every else -(-total // 8)):
        assert harness.run(f"event{event}", event=event) == harness.undisturbed, f"crash at event {event} of {total}"


@pytest.mark.slow
@pytest.mark.pitfall(14)
def test_a_write_torn_in_the_middle_loses_nothing(harness: Harness) -> None:
    largest = max(p.stat().st_size for p in (harness.folder / "undisturbed").glob("checkpoints/*/*"))
    for number, size in enumerate((largest // 7, largest // 2, largest - 1)):
        assert harness.run(f"torn{number}", file_size=size) == harness.undisturbed, f"files cut at {size} bytes"


@pytest.mark.slow
def test_a_full_disk_is_one_clear_refusal_and_loses_nothing(harness: Harness) -> None:
    """A limit on file sizes simulates a full disk: writes beyond it fail with an error."""
    largest = max(p.stat().st_size for p in (harness.folder / "undisturbed").glob("checkpoints/*/*"))
    for number, size in enumerate((1000, largest // 2, largest - 1)):
        assert harness.child(harness.folder / f"full{number}", disk_size=size) == REFUSED
        assert harness.run(f"full{number}") == harness.undisturbed


@pytest.mark.nightly
def test_the_script_counts_its_crashes() -> None:
    script = Path(__file__).parents[1] / "support/crash.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert '"crashes": 0' in result.stdout
