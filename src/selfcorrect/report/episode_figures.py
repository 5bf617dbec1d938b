"""Figures counted from stored episodes: edits, flips by difficulty, more attempts, and votes among samples.

Where only a part of the episodes is stored, the figures are of that part; every one says its n.
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
from selfcorrect.report.figures import Figure
from selfcorrect.report.rows import Measured, Row, Rows
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.report.statistics import over_seeds, t_estimate
from selfcorrect.report.tables import interval_note, percent
from selfcorrect.types import Attempt, Flip, Part

BIN = 0.05
"""Width of the bins of the edit-distance histogram; unchanged texts have one of their own."""
MAX_LEVELS = 12
"""Difficulty levels shown one by one; with more of them, numeric ones are shown in as many equal parts."""
FEW = 20
"""Episodes of a level that the figure of difficulty shows at least; `assets/charts.js` has the same number."""
BUDGETS = (2, 4, 8, 16, 32)
"""Responses per problem that are voted over, 2^1 .. 2^5."""


def episode_figures(rows: Rows) -> list[Figure]:
    """All figures for which the episodes are there."""
    pairs = {row.label: _two_attempts(row) for row in rows.finals}
    shown = [row for row in rows.finals if pairs[row.label]]
    figures = []
    if shown:
        figures.append(edits_figure(shown, [pairs[row.label] for row in shown]))
        figures += difficulty_figure(shown, [pairs[row.label] for row in shown])
    figures += more_attempts_figure([*rows.finals, *rows.extra])
    return [*figures, *votes_figure([*rows.rows, *rows.extra])]


Pair = tuple[str | None, Flip, float, str]
"""Of an episode: difficulty, flip, edit-distance ratio, problem. No texts: a comparison has a million episodes."""


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
    """How much of the text the second attempt changes."""
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
        spoken.append(f"{row.label}: {share} % unchanged, mean ratio {mean:.3f}, n = {len(ratios):,}")
    return Figure(
        "edits",
        "How much the second attempt changes",
        "Edit distance between both attempts in characters, over the sum of their lengths; the first bar are texts that "
        "did not change at all. Share of the stored episodes of all seeds.",
        "; ".join(spoken) + ".",
        ["label", "series", "ratio_above", "ratio_up_to", "share", "n"],
        table,
        rows,
    )  # fmt: skip


def edit_bin(ratio: float) -> int:
    """0 for no change; b for ratios in ((b - 1) BIN, b BIN].

    >>> [edit_bin(ratio) for ratio in (0.0, 0.01, 0.05, 0.051, 1.0)]
    [0, 1, 1, 2, 20]
    """
    return math.ceil(round(ratio / BIN, 9))


# ---------------------------------------------------------------- difficulty


def difficulty_figure(rows: Sequence[Row], pairs: Sequence[Sequence[Pair]]) -> list[Figure]:
    """Flips by the problems' difficulty; none where the task has fewer than two levels."""
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
                # A problem is one observation, however many seeds answer it.
                intervals = [wilson_interval(rate * problems, problems) for rate in rates]
                numbers = [
                    x for p, ends in zip(rates, intervals, strict=True) for x in (p, *(round(e, 5) for e in ends))
                ]
                table.append([row.label, row.series, level, *numbers, len(here), problems])
    spoken = []
    for row in rows:
        own = [line for line in table if line[0] == row.label and line[9] >= FEW]
        for line in dict.fromkeys([0, len(own) - 1]) if own else ():
            _, _, level, corrected, _, _, spoilt, _, _, episodes, _ = own[line]
            spoken.append(
                f"{row.label}, {level} (n = {episodes:,}): {percent(corrected)} corrected, {percent(spoilt)} spoilt"
            )
    return [
        Figure(
            "difficulty",
            "Flips by difficulty",
            "Share of the problems of each level that turn from wrong to right (i→c) and from right to wrong (c→i); "
            "episodes of all seeds together. Thin bars: 95 % Wilson score intervals in which each problem is one "
            f"observation, however many seeds answer it. Levels with fewer than {FEW} episodes are in the table only.",
            f"The easiest and the hardest level of {FEW} and more episodes, in per cent. " + "; ".join(spoken) + ".",
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
    """A key that sorts numbers in names by value: "level 2" before "level 10"."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]


def difficulty_levels(names: Iterable[str]) -> dict[str, str]:
    """The level that every difficulty is shown in: its own, or one of MAX_LEVELS ranges of equally many names."""
    ordered = sorted(names, key=natural)
    if len(ordered) <= MAX_LEVELS:
        return {name: name for name in ordered}
    size = math.ceil(len(ordered) / MAX_LEVELS)
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return {name: part[0] if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts for name in part}


# ---------------------------------------------------------------- more attempts


def more_attempts_figure(rows: Sequence[Row]) -> list[Figure]:
    """Accuracy of every attempt, where there are more than two."""
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
            "Every attempt sees the ones before it. Attempts beyond those that a model was trained for are asked of it all the "
            f"same. {'; '.join(f'{row.label}: {_asked(row)}' for row in shown)}. Shaded: 95 % intervals. {interval_note(shown)}",
            "Accuracy in per cent, attempt by attempt. " + "; ".join(spoken) + ".",
            ["label", "series", "attempt", "accuracy", "low", "high", "seeds", "n"],
            table,
            shown,
        )
    ]


def _asked(row: Row) -> str:
    """How many problems each seed answered, and which seeds."""
    return f"{row.problems:,} problems, seed{'s' if len(row.seeds) > 1 else ''} {', '.join(map(str, row.seeds))}"


# ---------------------------------------------------------------- votes


def votes_figure(rows: Sequence[Row]) -> list[Figure]:
    """Majority votes among parallel samples against votes among corrected ones, for the same number of responses."""
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
            "The same number of responses per problem, spent on that many first attempts (parallel), or on half as many "
            "first attempts with one correction each, of which the corrected ones vote (sequential). Of answers with as "
            "many votes the first one sampled wins; two parallel responses are therefore as good as one. The samples are "
            "cut into as many blocks as there are. Shaded: 95 % t-interval over the problems, or over several seeds. "
            f"{'; '.join(f'{row.label}: {_asked(row)}' for row in shown)}.",
            "Accuracy of the majority in per cent. " + "; ".join(spoken) + ".",
            ["label", "series", "kind", "responses", "accuracy", "low", "high", "problems"],
            table,
            shown,
        )
    ]


def _samples(measured: Measured) -> list[list[tuple[Attempt, ...]]]:
    """The samples of every problem, of the part of an evaluation that drew several; else nothing."""
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
    """Share of right majorities of one problem, over the blocks of samples that ``budget`` responses pay for."""
    turn, size = (0, budget) if kind == "parallel" else (1, budget // 2)
    blocks = [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]
    return sum(majority_right([sample[turn] for sample in block]) for block in blocks) / len(blocks)


def majority_right(attempts: Sequence[Attempt]) -> bool:
    """Whether the most frequent answer is right; no answer has no vote, and the first of equals wins."""
    answers = [attempt.extracted for attempt in attempts if attempt.extracted is not None]
    if not answers:
        return False
    winner = Counter(answers).most_common(1)[0][0]  # in the order of first sight among equals
    return next(attempt.correct for attempt in attempts if attempt.extracted == winner)
