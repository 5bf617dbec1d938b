"""Search TRL's fastest settings on a workload: one setting at a time, each value is timed for a few steps and the
fastest is kept. At the end the fastest two alternate once more if they were close."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.step.process import Side, trl_command
from benchmarks.step.trl_settings import CHOICES, default
from benchmarks.step.workloads import Workload
from selfcorrect.errors import TrainingError

STEPS, LONG, HOPELESS = 2, 30.0, 2.0
"""Counted steps of a trial, after one warm-up step; a step longer than LONG seconds is counted once; a trial whose first step
takes HOPELESS times that of the best settings so far is stopped."""
CLOSE = 1.2
"""The fastest two are timed again, alternating, if the second took at most this many times the seconds of the first."""


def best_trl(
    workload: Workload,
    python: Path,
    *,
    threads: int,
    on_trial: Callable[[dict[str, Any]], None] = lambda trial: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the fastest settings and all trials: seconds of the first step and of the counted ones (None: it failed, for
    instance out of memory), and the number of counted steps (0: the first step was stopped after those seconds)."""
    from benchmarks.step.inputs import write_work

    tried: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="selfcorrect-bench-") as name:
        folder = Path(name)
        write_work(workload, folder)

        def seconds(settings: dict[str, Any]) -> float:
            known = [trial["seconds"] for trial in tried if trial["settings"] == settings]
            if known:
                return _or_never(known[0])
            fastest = min(tried, key=lambda trial: _or_never(trial["seconds"]), default={"first": math.inf})
            first, found, counted = _trial(folder, python, settings, threads, _or_never(fastest["first"]))
            tried.append({"settings": settings, "first": first, "seconds": found, "counted": counted})
            on_trial(tried[-1])
            return _or_never(found)

        best = default(workload)
        for key, values in _axes(workload):
            best = min(({**best, key: value} for value in values), key=seconds)
        rounds = _final(folder, python, tried, threads)
        for trial in rounds:
            on_trial(trial)
        if rounds:
            best = min(rounds, key=lambda trial: float(trial["seconds"]))["settings"]
    return best, tried + rounds


def _final(folder: Path, python: Path, tried: Sequence[dict[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Time the fastest two in alternating steps, which share the machine's drift. Return nothing if the second was not close, or
    if memory does not hold both at once."""
    counted = sorted((trial for trial in tried if trial["counted"]), key=lambda trial: float(trial["seconds"]))[:2]
    if len(counted) < 2 or counted[1]["seconds"] > CLOSE * counted[0]["seconds"]:
        return []
    try:
        with ExitStack() as stack:
            sides = [
                stack.enter_context(Side("trl", trl_command(folder, python, trial["settings"]), threads=threads))
                for trial in counted
            ]
            taken = [[float(side.ask("step")["seconds"]) for side in sides] for _ in range(1 + STEPS)]
    except TrainingError:
        return []
    return [
        {"settings": trial["settings"], "first": first, "seconds": median(steps), "counted": STEPS, "final": True}
        for trial, (first, *steps) in zip(counted, zip(*taken, strict=True), strict=True)
    ]


def _axes(workload: Workload) -> Iterator[tuple[str, list[Any]]]:
    if not workload.whole:
        rows = {max(1, workload.rows // 4), workload.rows, 4 * workload.rows, workload.episodes}
        yield "rows", sorted(r for r in rows if r <= workload.episodes and workload.episodes % r == 0)
    for key, values in CHOICES.items():
        yield key, list(values)


def _trial(
    folder: Path, python: Path, settings: dict[str, Any], threads: int, first_of_fastest: float
) -> tuple[float | None, float | None, int]:
    patience = HOPELESS * first_of_fastest
    first = None
    try:
        with Side("trl", trl_command(folder, python, settings), threads=threads) as side:
            first = float(side.ask("step", patience)["seconds"])
            counted = STEPS if first < LONG else 1
            return first, median(float(side.ask("step")["seconds"]) for _ in range(counted)), counted
    except TimeoutError:
        return patience, patience, 0
    except TrainingError:
        return first, None, 0


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
