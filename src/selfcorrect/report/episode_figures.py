"""Figures computed from stored episodes: edits, flips by difficulty, more attempts, and votes among samples.

If only some episodes are stored, a figure covers those; each states its n.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from selfcorrect.evaluation.intervals import wilson_interval
from selfcorrect.evaluation.metrics import edit_distance_ratio, flip
from selfcorrect.report.cells import interval_note, percent
from selfcorrect.report.figures import Figure
from selfcorrect.report.rows import Measured, Row, Rows
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.report.statistics import over_seeds, t_estimate
from selfcorrect.types import Attempt, Flip, Part

BIN = 0.05
"""Bin width of the edit-distance histogram; unchanged texts have a separate bin."""
MAX_LEVELS = 12
"""Maximum number of difficulty levels shown; more levels are merged into this many ranges."""
FEW = 20
"""Minimum number of episodes for a level in the difficulty figure; `assets/charts.js` has the same number."""
BUDGETS = (2, 4, 8, 16, 32)
"""Responses per problem in a majority vote, 2^1 to 2^5."""


def episode_figures(rows: Rows) -> list[Figure]:
    """Return all figures whose episodes are stored."""
    pairs = {row.label: _two_attempts(row) for row in rows.finals}
    shown = [row for row in rows.finals if pairs[row.label]]
    figures = []
    if shown:
        figures.append(edits_figure(shown, [pairs[row.label] for row in shown]))
        figures += difficulty_figure(shown, [pairs[row.label] for row in shown])
    figures += more_attempts_figure([*rows.finals, *rows.extra])
    return [*figures, *votes_figure([*rows.rows, *rows.extra])]


Pair = tuple[str | None, Flip, float, str]
"""An episode's difficulty, flip, edit-distance ratio and problem. No texts: a comparison has a million episodes."""


def _two_attempts(row: Row) -> list[Pair]:
    found: list[Pair] = []
    for measured in row.measured:
        for episode in measured.episodes(Part.ATTEMPTS, None):
            attempts = episode.graded()
            if len(attempts) > 1:
                ratio = edit_distance_ratio(attempts[0].text, attempts[1].text)
                found.append((episode.difficulty, flip(attempts), ratio, sys.intern(str(episode.problem_id))))
    return found


# ---------------------------------------------------------------- edits


def edits_figure(rows: Sequence[Row], pairs: Sequence[Sequence[Pair]]) -> Figure:
    """Return the histogram of how much of the text the second attempt changes."""
    table: list[list[Any]] = []
    spoken = []
    for row, episodes in zip(rows, pairs, strict=True):
        ratios = [ratio for _, _, ratio, _ in episodes]
        counts = Counter(edit_bin(ratio) for ratio in ratios)
        table += [
            [
                row.label,
                row.series,
                max(0.0, round((b - 1) * BIN, 4)),
                round(b * BIN, 4),
                counts[b] / len(ratios),
                len(ratios),
            ]
            for b in range(max(counts) + 1)
        ]
        mean = sum(ratios) / len(ratios)
        share = percent(counts[0] / len(ratios))
        spoken.append(f"{row.label}: {share}% unchanged, mean ratio {mean:.3f}, n = {len(ratios):,}")
    return Figure(
        "edits",
        "How much the second attempt changes",
        "Edit distance between the two attempts in characters, divided by the sum of their lengths. The first bar counts "
        "identical texts. Fractions of the stored episodes of all seeds.",
        "; ".join(spoken) + ".",
        ["label", "series", "ratio_above", "ratio_up_to", "share", "n"],
        table,
        rows,
    )  # fmt: skip


def edit_bin(ratio: float) -> int:
    """Return the bin of a ratio: 0 for no change, b for ratios in ((b - 1) BIN, b BIN].

    >>> [edit_bin(ratio) for ratio in (0.0, 0.01, 0.05, 0.051, 1.0)]
    [0, 1, 1, 2, 20]
    """
    return math.ceil(round(ratio / BIN, 9))


# ---------------------------------------------------------------- difficulty


def difficulty_figure(rows: Sequence[Row], pairs: Sequence[Sequence[Pair]]) -> list[Figure]:
    """Return the flips by the problems' difficulty; nothing if the task has fewer than two levels."""
    names = {difficulty for episodes in pairs for difficulty, *_ in episodes if difficulty is not None}
    level_of = difficulty_levels(names)
    levels = list(dict.fromkeys(level_of[name] for name in sorted(names, key=natural)))
    if len(levels) < 2:
        return []
    table: list[list[Any]] = []
    for row, episodes in zip(rows, pairs, strict=True):
        for level in levels:
            here = [
                (kind, problem) for name, kind, _, problem in episodes if name is not None and level_of[name] == level
            ]
            flips, problems = Counter(kind for kind, _ in here), len({problem for _, problem in here})
            if here:
                rates = [flips[Flip.I2C] / len(here), flips[Flip.C2I] / len(here)]
                # A problem is one observation, no matter how many seeds answer it.
                intervals = [wilson_interval(rate * problems, problems) for rate in rates]
                numbers = [
                    x for p, ends in zip(rates, intervals, strict=True) for x in (p, *(round(e, 5) for e in ends))
                ]
                table.append([row.label, row.series, level, *numbers, len(here), problems])
    spoken = []
    for row in rows:
        own = [line for line in table if line[0] == row.label and line[9] >= FEW]
        for line in dict.fromkeys([0, len(own) - 1]) if own else ():
            _, _, level, corrected, _, _, regressed, _, _, episodes, _ = own[line]
            spoken.append(
                f"{row.label}, {level} (n = {episodes:,}): {percent(corrected)} corrected, {percent(regressed)} regressed"
            )
    return [
        Figure(
            "difficulty",
            "Flips by difficulty",
            "Fraction of each level's problems that turn from incorrect to correct (i→c) and from correct to incorrect "
            "(c→i), with the episodes of all seeds pooled. Thin bars: 95% Wilson score intervals that count each problem as one "
            f"observation, no matter how many seeds answer it. Levels with fewer than {FEW} episodes are in the table only.",
            f"The easiest and the hardest level with at least {FEW} episodes, in %. " + "; ".join(spoken) + ".",
            [
                "label",
                "series",
                "level",
                "i_to_c",
                "i_to_c_low",
                "i_to_c_high",
                "c_to_i",
                "c_to_i_low",
                "c_to_i_high",
                "n",
                "problems",
            ],
            table,
            rows,
        )
    ]


def natural(name: str) -> list[tuple[int, float, str]]:
    """Return a sort key that orders numbers in names by value: "level 2" before "level 10"."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]


def difficulty_levels(names: Iterable[str]) -> dict[str, str]:
    """Map every difficulty to the level that shows it: its own, or one of MAX_LEVELS ranges with equally many names."""
    ordered = sorted(names, key=natural)
    if len(ordered) <= MAX_LEVELS:
        return {name: name for name in ordered}
    size = math.ceil(len(ordered) / MAX_LEVELS)
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return {name: part[0] if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts for name in part}


# ---------------------------------------------------------------- more attempts


def more_attempts_figure(rows: Sequence[Row]) -> list[Figure]:
    """Return the accuracy of every attempt of the models with more than two."""
    shown = [row for row in rows if row.measured and len(row.results()[0]["turns"]) > 2]
    table: list[list[Any]] = []
    for row in shown:
        for k in range(len(row.results()[0]["turns"])):
            found = row.estimate(f"acc_t{k + 1}")
            assert found is not None
            table.append(
                [
                    row.label,
                    row.series,
                    k + 1,
                    found.mean,
                    found.low,
                    found.high,
                    " ".join(map(str, row.seeds)),
                    row.problems,
                ]
            )
    if not table:
        return []
    spoken = [
        f"{row.label} ({_asked(row)}): {', '.join(percent(line[3]) for line in table if line[0] == row.label)}"
        for row in shown
    ]
    return [
        Figure(
            "more_attempts",
            "Accuracy over further attempts",
            "Every attempt sees the ones before it. Models also make attempts beyond the number they were trained for. "
            f"{'; '.join(f'{row.label}: {_asked(row)}' for row in shown)}. Shaded: 95% intervals; {interval_note(shown)}",
            "Accuracy in %, attempt by attempt. " + "; ".join(spoken) + ".",
            ["label", "series", "attempt", "accuracy", "low", "high", "seeds", "n"],
            table,
            shown,
        )
    ]


def _asked(row: Row) -> str:
    """Return how many problems each seed answered, and which seeds, in words."""
    return f"{row.problems:,} problems, seed{'s' if len(row.seeds) > 1 else ''} {', '.join(map(str, row.seeds))}"


# ---------------------------------------------------------------- votes


def votes_figure(rows: Sequence[Row]) -> list[Figure]:
    """Compare majority votes among parallel and among corrected samples at the same number of responses."""
    table: list[list[Any]] = []
    shown = []
    for row in rows:
        groups = [samples for m in row.measured if (samples := _samples(m))]
        lines = [
            [row.label, row.series, kind, budget, *_estimated(groups, budget, kind)]
            for budget in BUDGETS
            for kind in ("parallel", "sequential")
            if groups and all(len(samples) >= budget for group in groups for samples in group)
        ]
        table += lines
        shown += [row] if lines else []
    if not table:
        return []
    spoken = [f"{x[0]}, {x[2]}, {x[3]} responses: {percent(x[4])}" for x in table if x[3] == max(y[3] for y in table)]
    return [
        Figure(
            "votes",
            "Parallel and sequential samples under majority vote",
            "Each problem gets the same number of responses: either all are first attempts, which vote (parallel), or half are "
            "first attempts and half their corrections, which vote (sequential). Ties go to the answer sampled first, so two "
            "parallel responses are as good as one. The samples are divided into as many disjoint blocks as they fill. "
            "Shaded: 95% t-interval over the problems, or over several seeds. "
            f"{'; '.join(f'{row.label}: {_asked(row)}' for row in shown)}.",
            "Accuracy of the majority in %. " + "; ".join(spoken) + ".",
            ["label", "series", "kind", "responses", "accuracy", "low", "high", "problems"],
            table,
            shown,
        )
    ]


def _samples(measured: Measured) -> list[list[tuple[Attempt, ...]]]:
    """Return every problem's samples from the part of an evaluation that drew several; nothing if none did."""
    part = _sampled_part(measured.source)
    if part is None:
        return []
    found: dict[str, list[tuple[Attempt, ...]]] = {}
    for episode in measured.episodes(part, None):
        found.setdefault(episode.problem_id, []).append(episode.graded())
    groups = list(found.values())
    return groups if groups and all(len(sample) > 1 for samples in groups for sample in samples) else []


def _sampled_part(source: Run | Evaluated) -> Part | None:
    if isinstance(source, Run):
        return Part.SAMPLED if source.settings.get("eval", {}).get("samples", 1) > 1 else None
    if source.plan["samples"] < 2:
        return None
    return Part.ATTEMPTS if source.plan["temperature"] > 0 else Part.SAMPLED


def _estimated(groups: Sequence[Sequence[Sequence[tuple[Attempt, ...]]]], budget: int, kind: str) -> list[Any]:
    per_run = [[voted(samples, budget, kind) for samples in group] for group in groups]
    own = t_estimate(per_run[0]) if len(per_run[0]) > 1 else None
    interval = (own.low, own.high) if own and own.low is not None and own.high is not None else None
    found = over_seeds([sum(values) / len(values) for values in per_run], interval)
    return [found.mean, found.low, found.high, len(per_run[0])]


def voted(samples: Sequence[tuple[Attempt, ...]], budget: int, kind: str) -> float:
    """Return the fraction of one problem's blocks of ``budget`` responses whose majority is correct."""
    turn, size = (0, budget) if kind == "parallel" else (1, budget // 2)
    blocks = [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]
    return sum(majority_right([sample[turn] for sample in block]) for block in blocks) / len(blocks)


def majority_right(attempts: Sequence[Attempt]) -> bool:
    """Return whether the most frequent answer is correct; a missing answer has no vote, ties go to the first."""
    answers = [attempt.extracted for attempt in attempts if attempt.extracted is not None]
    if not answers:
        return False
    winner = Counter(answers).most_common(1)[0][0]  # ties keep the order of first occurrence
    return next(attempt.correct for attempt in attempts if attempt.extracted == winner)
