"""TRL's best settings on a workload: one setting at a time, each value tried for a few steps, the fastest kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from selfcorrect.bench.children import Side, trl_command
from selfcorrect.bench.trl_settings import CHOICES, default
from selfcorrect.bench.workloads import Workload
from selfcorrect.errors import TrainingError

STEPS, LONG, HOPELESS = 2, 30.0, 2.0
"""Counted steps of every trial, after one that does not count; a single one where a step takes longer than so many seconds; and
none where the first step takes so many times that of the best settings so far: it is stopped then."""


def best_trl(
    workload: Workload,
    python: Path,
    *,
    threads: int,
    on_trial: Callable[[dict[str, Any]], None] = lambda trial: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fastest settings, and all that were tried: seconds of the first step and of the counted ones (None: it failed, for want
    of memory say), and the number of these (0: the first was stopped after so many seconds)."""
    from selfcorrect.bench.work import write_work

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
    return best, tried


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
