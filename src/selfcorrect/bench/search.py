"""TRL's best settings on a workload: one setting at a time, each value tried for a few steps, the fastest kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from selfcorrect.bench.children import Side, trl_command
from selfcorrect.bench.trl_settings import CHOICES, default
from selfcorrect.bench.workloads import Workload
from selfcorrect.errors import TrainingError

STEPS = 2
"""Counted steps of every trial, after one that does not count."""


def best_trl(
    workload: Workload,
    python: Path,
    *,
    threads: int,
    on_trial: Callable[[dict[str, Any], float | None], None] = lambda settings, seconds: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The fastest settings, and all that were tried with their seconds (None: it failed, for want of memory say)."""
    from selfcorrect.bench.work import write_work

    tried: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="selfcorrect-bench-") as name:
        folder = Path(name)
        write_work(workload, folder)

        def seconds(settings: dict[str, Any]) -> float:
            known = [trial["seconds"] for trial in tried if trial["settings"] == settings]
            found = known[0] if known else _trial(folder, python, settings, threads)
            if not known:
                tried.append({"settings": settings, "seconds": found})
                on_trial(settings, found)
            return float("inf") if found is None else float(found)

        best = default(workload)
        for key, values in _axes(workload):
            best = min(({**best, key: value} for value in values), key=seconds)
    return best, tried


def _axes(workload: Workload) -> Iterator[tuple[str, list[Any]]]:
    rows = {max(1, workload.rows // 4), workload.rows, 4 * workload.rows, workload.episodes}
    yield "rows", sorted(r for r in rows if r <= workload.episodes and workload.episodes % r == 0)
    for key, values in CHOICES.items():
        yield key, list(values)


def _trial(folder: Path, python: Path, settings: dict[str, Any], threads: int) -> float | None:
    try:
        with Side("trl", trl_command(folder, python, settings), threads=threads) as side:
            seconds: list[float] = [side.ask("step")["seconds"] for _ in range(STEPS + 1)]
            return median(seconds[1:])
    except TrainingError:
        return None
