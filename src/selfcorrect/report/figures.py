"""What the page draws: each figure as a table of plain numbers with its words; the drawing is in ``assets/charts.js``.

A figure's table is also its CSV and its text alternative, so nothing is drawn that cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.report.methods import Method
from selfcorrect.report.rows import Row, Rows
from selfcorrect.report.sources import Run
from selfcorrect.report.statistics import Estimate
from selfcorrect.report.tables import interval_note, percent

CURVES = {
    "r1": "r1",
    "r2": "r2",
    "r3": "r3",
    "delta": "delta",
    "kl_t1": "kl_base_t1",
    "kl_t2": "kl_base_t2",
    "kl_t3": "kl_base_t3",
    "answer_change_rate": "answer_change_rate",
}
"""Columns of the training curves, and their names in ``metrics.jsonl``."""
MAX_POINTS = 120
"""Points of a run's curve; longer runs show means of as many blocks of steps."""


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure.

    Attributes:
        id: names the drawing function and the CSV file.
        reading: how to read it, and what its intervals are.
        summary: what it shows, in words: the text alternative.
        rows: a list of values for each of ``columns``.
        origins: the rows of the report that it was made from.
    """

    id: str
    title: str
    reading: str
    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    origins: Sequence[Row]


def result_figures(rows: Rows) -> list[Figure]:
    """The two attempts, and the flips between them."""
    two = [row for row in rows.rows if row.estimate("delta")]
    return [attempts_figure(two), flips_figure(two)] if two else []


def attempts_figure(rows: Sequence[Row]) -> Figure:
    """Accuracy of the first and second attempt of every model."""
    names = ("acc_t1", "acc_t2", "delta")
    spoken = [
        f"{row.label}: {_spoken(row, 'acc_t1')} to {_spoken(row, 'acc_t2')} ({_spoken(row, 'delta', signed=True)})"
        for row in rows
    ]
    return Figure(
        "attempts",
        "From the first attempt to the second",
        f"Ring: first attempt. Dot: second attempt. Thin bars: 95 % intervals. {interval_note(rows)}",
        "Accuracy in per cent, first to second attempt. " + "; ".join(spoken) + ".",
        [*_LABELS, *(f"{name}{end}" for name in names for end in _ENDS)],
        [[*_labels(row), *(x for name in names for x in _triple(row.estimate(name)))] for row in rows],
        rows,
    )


def flips_figure(rows: Sequence[Row]) -> Figure:
    """How many answers the second attempt corrects, and how many it spoils."""
    names = ("i_to_c", "c_to_i", "delta")
    spoken = [f"{row.label}: {_spoken(row, 'i_to_c')} corrected, {_spoken(row, 'c_to_i')} spoilt" for row in rows]
    return Figure(
        "flips",
        "Corrected and spoilt",
        "To the right, problems whose answer turns from wrong to right (i→c); to the left, from right to wrong (c→i). "
        "The tick is delta, the one minus the other. Thin bars: 95 % intervals, as above.",
        "Per cent of all problems. " + "; ".join(spoken) + ".",
        [*_LABELS, *(f"{name}{end}" for name in names for end in _ENDS)],
        [[*_labels(row), *(x for name in names for x in _triple(row.estimate(name)))] for row in rows],
        rows,
    )


_LABELS = ("label", "series", "final", "seeds", "n")
_ENDS = ("", "_low", "_high")


def _labels(row: Row) -> tuple[str, str, bool, str, int]:
    return row.label, row.series, row.final, " ".join(map(str, row.seeds)), row.problems


def _triple(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (_short(found.mean), _short(found.low), _short(found.high))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _spoken(row: Row, figure: str, *, signed: bool = False) -> str:
    found = row.estimate(figure)
    return percent(found.mean if found else None, signed=signed)


# ---------------------------------------------------------------- training


def curves_figure(methods: Sequence[Method]) -> list[Figure]:
    """Training curves of every run; none where no run has taken a step."""
    rows = [[method.name, run.seed, *point] for method in methods for run in method.runs for point in curve_points(run)]
    if not rows:
        return []
    binned = any(len(_sampling(run)) > MAX_POINTS for method in methods for run in method.runs)
    reading = (
        "Thin lines: one seed each; thick lines: their mean. Rewards, delta and the answer-change rate are those of the "
        "training samples; KL is to the base model, in nats per turn. Steps are those that sample: the updates of a supervised "
        "stage, which sample nothing and measure no KL, are left out. Dotted rules: a new stage or round begins."
    )
    if binned:
        reading += f" Runs of more than {MAX_POINTS} steps are drawn as means over blocks of steps."
    return [
        Figure(
            "curves",
            "Training curves",
            reading,
            "Means over the last tenth of training. " + " ".join(_curve_ends(method) for method in methods),
            ["method", "seed", "stage", "step", *CURVES],
            rows,
            [],
        )
    ]


def _sampling(run: Run) -> list[dict[str, Any]]:
    """The steps that sampled; all but the updates of supervised stages."""
    return [line for line in run.steps if line.get("r1") is not None]


def _part(line: Mapping[str, Any]) -> str:
    """The stage of a step, and the round of a supervised one."""
    return f"{line['stage']}, round {line['round']}" if "round" in line else str(line["stage"])


def curve_points(run: Run) -> Iterator[list[Any]]:
    """``[stage, step over all stages, figures...]``: each step that sampled, or the mean of each block of them."""
    steps = _sampling(run)
    size = max(1, math.ceil(len(steps) / MAX_POINTS))
    before = 0
    for part in dict.fromkeys(map(_part, steps)):
        lines = [line for line in steps if _part(line) == part]
        for start in range(0, len(lines), size):
            block = lines[start : start + size]
            middle = before + start + (len(block) + 1) / 2
            yield [part, round(middle, 1), *(_mean(block, name) for name in CURVES.values())]
        before += len(lines)


def _mean(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if line.get(name) is not None]
    return float(f"{sum(values) / len(values):.4g}") if values else None


def _curve_ends(method: Method) -> str:
    if not any(run.stages for run in method.runs):
        return f"{method.name}: not trained."
    sampled = [_sampling(run) for run in method.runs]
    tails = [line for steps in sampled for line in steps[-max(1, len(steps) // 10) :]]
    figures = {words: _mean(tails, name) for words, name in CURVES.items()}
    told = ", ".join(f"{words.replace('_', ' ')} {value:.3g}" for words, value in figures.items() if value is not None)
    return f"{method.name}: {told}." if told else f"{method.name}: no steps yet."
