"""The page's figures as tables of plain numbers with their captions; ``assets/charts.js`` draws them.

A figure's table is also its CSV file and its text alternative, so everything drawn can also be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.decomposition import SHOWN
from selfcorrect.report.cells import interval_note, percent
from selfcorrect.report.methods import Method
from selfcorrect.report.rows import Row, Rows
from selfcorrect.report.sources import Run
from selfcorrect.report.statistics import Estimate

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
"""Maximum points of a run's curve; longer runs show means over blocks of steps."""


@dataclass(frozen=True, eq=False)
class Figure:
    """One figure.

    Attributes:
        id: the name of the drawing function and of the CSV file.
        reading: the caption: how to read the figure, and its kind of interval.
        summary: the text alternative: what the figure shows.
        rows: one list of values per row, in the order of ``columns``.
        origins: the rows of the report that it shows.
    """

    id: str
    title: str
    reading: str
    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    origins: Sequence[Row]


def result_figures(rows: Rows) -> list[Figure]:
    """Return the figures of the two attempts, of the flips between them, and of what delta is made of."""
    two = [row for row in rows.rows if row.estimate("delta")]
    blind = [row for row in two if row.term("re_answering")]
    return [*([attempts_figure(two), flips_figure(two)] if two else []), *([made_of_figure(blind)] if blind else [])]


def attempts_figure(rows: Sequence[Row]) -> Figure:
    """Return the accuracy of every model's first and second attempt."""
    names = ("acc_t1", "acc_t2", "delta")
    spoken = [
        f"{row.label}: {_spoken(row, 'acc_t1')} to {_spoken(row, 'acc_t2')} ({_spoken(row, 'delta', signed=True)})"
        for row in rows
    ]
    return Figure(
        "attempts",
        "From the first attempt to the second",
        f"Ring: first attempt. Dot: second attempt, labelled with delta in points. Bars: 95% intervals; {interval_note(rows)}",
        "Accuracy in %, first to second attempt. " + "; ".join(spoken) + ".",
        [*_LABELS, *(f"{name}{end}" for name in names for end in _ENDS)],
        [[*_labels(row), *(x for name in names for x in _triple(row.estimate(name)))] for row in rows],
        rows,
    )


def flips_figure(rows: Sequence[Row]) -> Figure:
    """Return the fractions of answers that the second attempt corrects and that regress."""
    names = ("i_to_c", "c_to_i", "delta")
    spoken = [f"{row.label}: {_spoken(row, 'i_to_c')} corrected, {_spoken(row, 'c_to_i')} regressed" for row in rows]
    return Figure(
        "flips",
        "Corrected and regressed answers",
        "To the right, problems whose answer turns from incorrect to correct (i→c); to the left, from correct to incorrect "
        f"(c→i). The tick is delta, their difference. Thin bars: 95% intervals, as above.{_truncated_flips(rows)}",
        "In % of all problems. " + "; ".join(spoken) + ".",
        [*_LABELS, *(f"{name}{end}" for name in names for end in _ENDS)],
        [[*_labels(row), *(x for name in names for x in _triple(row.estimate(name)))] for row in rows],
        rows,
    )


def made_of_figure(rows: Sequence[Row]) -> Figure:
    """Return the terms of delta with another problem's draft; earlier versions stored reading as one term."""
    names = ("delta", *SHOWN)
    return Figure(
        "made_of",
        "What delta is made of",
        "Each bar adds its terms, gains to the right and losses to the left; the tick is delta, their sum, with its 95% "
        "interval. Re-answering: what a second attempt gains when its draft is another problem's. Keep and repair: what it gains "
        "from reading its own draft, on problems whose first attempt is correct and on the others. Repair alone cannot come "
        f"from asking again.{_truncated_flips(rows)}",
        "In percentage points of all problems. " + "; ".join(f"{row.label}: {_made_of(row)}" for row in rows) + ".",
        [*_LABELS, *(f"{name}{end}" for name in names for end in _ENDS)],
        [
            [*_labels(row), *_triple(row.estimate("delta")), *(x for name in SHOWN for x in _triple(row.term(name)))]
            for row in rows
        ],
        rows,
    )


def _truncated_flips(rows: Sequence[Row]) -> str:
    """Return the sentences of which flips begin with a truncated first attempt; empty if none does."""
    return "".join(f" {row.label}: {text}." for row in rows if (text := row.truncated_flips()))


def _made_of(row: Row) -> str:
    terms = {words: row.term(name) for name, words in SHOWN.items()}
    sums = ", ".join(f"{words} {percent(term.mean, signed=True)}" for words, term in terms.items() if term)
    return f"delta {_spoken(row, 'delta', signed=True)} ({sums})"


_LABELS = ("label", "series", "final", "seeds", "n")
_ENDS = ("", "_low", "_high")


def _labels(row: Row) -> tuple[str, str, bool, str, int]:
    return row.label, row.series, row.final, " ".join(map(str, row.seeds)), row.problems


def _triple(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    if estimate is None:
        return None, None, None
    return _short(estimate.mean), _short(estimate.low), _short(estimate.high)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _spoken(row: Row, figure: str, *, signed: bool = False) -> str:
    estimate = row.estimate(figure)
    return percent(estimate.mean if estimate else None, signed=signed)


# ---------------------------------------------------------------- training


def curves_figure(methods: Sequence[Method]) -> list[Figure]:
    """Return the training curves of every run; nothing if no run has taken a step."""
    rows = [[method.name, run.seed, *point] for method in methods for run in method.runs for point in curve_points(run)]
    if not rows:
        return []
    binned = any(len(_sampling(run)) > MAX_POINTS for method in methods for run in method.runs)
    reading = (
        "Thin lines: one seed each; thick lines: their mean. Rewards, delta and the answer-change rate come from the training "
        "samples; KL is to the base model, in nats per turn. The steps are those that sample; a supervised stage's updates, "
        "which sample nothing and measure no KL, are left out. Dotted vertical lines: a new stage or round begins."
    )
    if binned:
        reading += f" Runs with more than {MAX_POINTS} steps show means over blocks of steps."
    return [
        Figure(
            "curves",
            "Training curves",
            reading,
            "Means over the last tenth of the steps. " + " ".join(_curve_ends(method) for method in methods),
            ["method", "seed", "stage", "step", *CURVES],
            rows,
            [],
        )
    ]


def _sampling(run: Run) -> list[dict[str, Any]]:
    """Return the steps that sampled: all but the updates of supervised stages."""
    return [line for line in run.steps if line.get("r1") is not None]


def _part(run: Run, line: Mapping[str, Any]) -> str:
    """Return what the stage of a step is called, with the round of a supervised one."""
    label = run.label(str(line["stage"]))
    return f"{label}, round {line['round']}" if "round" in line else label


def curve_points(run: Run) -> Iterator[list[Any]]:
    """Yield ``[stage, step over all stages, metrics...]`` for each step that sampled, or for each block of them."""
    steps = _sampling(run)
    size = max(1, math.ceil(len(steps) / MAX_POINTS))
    before = 0
    for part in dict.fromkeys(_part(run, line) for line in steps):
        lines = [line for line in steps if _part(run, line) == part]
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
    means = {words: _mean(tails, name) for words, name in CURVES.items()}
    listed = ", ".join(f"{words.replace('_', ' ')} {value:.3g}" for words, value in means.items() if value is not None)
    return f"{method.name}: {listed}." if listed else f"{method.name}: no steps yet."
