"""Commands that a launcher starts in several processes, and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from selfcorrect.storage.files import read_jsonl
from support.crash import SHORTER
from support.processes import free_port, launcher_environment

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
EXACT = ("metrics.jsonl", "checkpoints/score/model.safetensors", "episodes/eval-score-sampled.jsonl")
"""The files whose bytes two undisturbed runs have in common."""


def settings(*changes: str) -> list[str]:
    """Return the words of a command line that make these settings."""
    return [word for setting in (*SETTINGS, *changes) for word in ("--set", setting)]


def words(out: Path, *changes: str) -> list[str]:
    """Return the words of the command that starts or resumes a short run of the demo."""
    return ["train", "demo", "--out", str(out), "--resume", "auto", "-v", "--no-report", *settings(*changes)]


@contextmanager
def started(out: Path, *changes: str, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a short run of the demo in every process; whatever happens, they end with the block."""
    with started_command(words(out, *changes), out, count=count) as processes:
        yield processes


@contextmanager
def started_command(command: Sequence[str], out: Path, *, count: int = 2) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start a command in every process; their logs stand beside ``out``, and they end with the block."""
    port = free_port()
    logs = [out.with_name(f"{out.name}-{rank}.log").open("wb") for rank in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "selfcorrect", *command],
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


def finish(out: Path, *changes: str, count: int = 2) -> None:
    with started(out, *changes, count=count) as processes:
        assert [process.wait(240) for process in processes] == [0] * count, said(out)


def assert_same_run(ours: Path, others: Path) -> None:
    """Assert that two runs have the same episodes and results, and the same weights to rounding."""
    files = sorted(path.name for path in (others / "episodes").iterdir())
    assert files == sorted(path.name for path in (ours / "episodes").iterdir())
    for name in files:
        one, two = (read_jsonl(run / "episodes" / name) for run in (ours, others))
        assert [e["turns"] for e in one] == [e["turns"] for e in two], name
    results = [json.loads((run / "summary.json").read_text())["results"] for run in (ours, others)]
    assert results[0] == results[1]
    weights = [load_file(run / "checkpoints/score/model.safetensors") for run in (ours, others)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert float((weight - weights[1][name]).norm()) <= 1e-12 * float(weight.norm()), name
    gradients = [[line["gradient_norm"] for line in read_jsonl(run / "metrics.jsonl")] for run in (ours, others)]
    assert min(gradients[0]) > 0 and gradients[0] == pytest.approx(gradients[1], rel=1e-9)
