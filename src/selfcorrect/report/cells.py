"""Tables as data: cells with their intervals in text, rows with their seeds in words, and notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from selfcorrect.report.rows import Row
from selfcorrect.report.statistics import Estimate
from selfcorrect.types import Part

SAME_PROBLEMS = "All seeds answer the same problems, so that interval does not cover the choice of problems."


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and the small text below it: its interval, or nothing."""

    value: str
    below: str = ""

    @property
    def text(self) -> str:
        """Return both in one line."""
        return f"{self.value} {self.below}".rstrip()


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row's label, its seeds in words and its cells; ``minor`` marks a method's intermediate models."""

    label: str
    seeds: str
    cells: Sequence[Cell]
    minor: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its title and the notes below it.

    ``groups`` are headings over the columns: (words, number of columns).
    """

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[TableRow]
    notes: Sequence[str]
    groups: Sequence[tuple[str, int]] = ()

    @property
    def full_columns(self) -> list[str]:
        """Return the columns with their group's words, except in the first group, so that equal names differ."""
        over = [words for words, count in self.groups for _ in range(count)]
        first = over[0] if over else None
        return [name if of == first else f"{name} ({of})" for name, of in zip_longest(self.columns, over)]


def interval_note(rows: Sequence[Row], part: Part = Part.ATTEMPTS) -> str:
    """Return the number of problems and the rows' kinds of interval, in words."""
    several = any(len(row.results(part)) > 1 for row in rows)
    alone = [results[0] for row in rows if len(results := row.results(part)) == 1]
    single = sorted({str(r["ci_method"]) for r in alone})
    words = [f"{how_many(rows, part)}."]
    if several:
        words.append(f"Several seeds: mean and 95% t-interval over the seeds. {SAME_PROBLEMS}")
    sets = dict.fromkeys(row.problem_set for row in rows)
    if len(sets) > 1:
        members = {name: ", ".join(row.label for row in rows if row.problem_set == name) for name in sets}
        listed = "; ".join(f"{name or 'unknown'}: {labels}" for name, labels in members.items())
        words.append(f"The rows answer different problems, so they are not comparable ({listed}).")
    return " ".join([*words, *(f"One run: {kind_of_interval(method)}." for method in single)])


def kind_of_interval(method: str) -> str:
    """Return a summary's kind of interval in this page's spelling."""
    return method.replace(" %", "%")


def how_many(rows: Sequence[Row], part: Part = Part.ATTEMPTS) -> str:
    """Return ``n = 5,000 problems``, the number of each seed."""
    counts = sorted({(r["n"], r["samples"]) for row in rows for r in row.results(part)})
    return f"n = {' or '.join(_counted(*count) for count in counts)}"


def table_rows(rows: Sequence[Row], cells: Sequence[Sequence[Cell]], part: Part = Part.ATTEMPTS) -> list[TableRow]:
    """Return a table row for each row, from its cells."""
    return [
        TableRow(row.label, _row_note(row, part), line, minor=not row.final)
        for row, line in zip(rows, cells, strict=True)
    ]


def seeds_in_words(row: Row, part: Part = Part.ATTEMPTS) -> str:
    """Return ``3 seeds: 0, 1, 2``, ``5 seeds: 0–4``, or ``one model`` if all seeds measured the same."""
    drawn = [m.seed for m in [*row.measured, *row.again]] if len(row.results(part)) > 1 else row.seeds
    if len(drawn) == 1 and (row.again or row.model == "base"):
        return "one model"
    in_a_row = len(drawn) > 3 and drawn == [*range(drawn[0], drawn[0] + len(drawn))]
    listed = f"{drawn[0]}–{drawn[-1]}" if in_a_row else ", ".join(map(str, drawn))
    return f"seed {listed}" if len(drawn) == 1 else f"{len(drawn)} seeds: {listed}"


def _row_note(row: Row, part: Part) -> str:
    """Return the row's seeds in words, with the name of its problems if rows differ in them."""
    return seeds_in_words(row, part) + (f"; problems {row.problem_set}" if row.problem_set else "")


def percent(value: float | None, *, signed: bool = False) -> str:
    """Return a fraction in %, ``12.3``, with a true minus sign; ``–`` for None.

    >>> percent(0.1234), percent(-0.05, signed=True), percent(None)
    ('12.3', '−5.0', '–')
    """
    if value is None:
        return "–"
    value = round(100 * value, 1) + 0.0  # + 0.0: no "-0.0"
    return f"{value:{'+' if signed else ''}.1f}".replace("-", "−")


def cell_of(estimate: Estimate | None, *, signed: bool = False) -> Cell:
    """Return an estimate in % with its interval: as ± over seeds, where it is symmetric, else as its ends."""
    return _cell(estimate, partial(percent, signed=signed), percent)


def count_cell(estimate: Estimate | None) -> Cell:
    """Return an estimate of a mean count with its interval, as `cell_of` does.

    >>> count_cell(Estimate(1234.56, 1200.0, 1269.12, 1)), count_cell(None)
    (Cell(value='1,234.6', below='[1,200.0, 1,269.1]'), Cell(value='–', below=''))
    """
    return _cell(estimate, "{:,.1f}".format, "{:,.1f}".format)


def _cell(estimate: Estimate | None, shown: Callable[[float], str], width: Callable[[float], str]) -> Cell:
    if estimate is None:
        return Cell("–")
    if estimate.low is None or estimate.high is None:
        return Cell(shown(estimate.mean))
    if estimate.runs > 1:
        return Cell(shown(estimate.mean), f"± {width(estimate.high - estimate.mean)}")
    return Cell(shown(estimate.mean), f"[{shown(estimate.low)}, {shown(estimate.high)}]")


def _counted(n: int, samples: float) -> str:
    return f"{n:,} problems" if samples == 1 else f"{n:,} problems × {samples:g} samples"
