"""The page's tables as plain text, as Markdown and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfcorrect.report.tables import Table


def table_text(table: Table) -> str:
    """A row of figures, their intervals below it, and the notes; without the models on the way.

    >>> from selfcorrect.report.tables import Cell, TableRow
    >>> print(table_text(Table("t", "Greedy", ["Acc"], [TableRow("a", "1 seed", [Cell("12.0", "± 1.0")])], ["n = 4."])))
    Greedy
         Acc
    a   12.0  1 seed
       ± 1.0
    n = 4.
    """
    lines: list[list[str]] = [["", *table.full_columns, ""]]
    for row in table.rows:
        if row.minor:
            continue
        lines.append([row.label, *(cell.value for cell in row.cells), row.seeds])
        lines.append(["", *(cell.below for cell in row.cells), ""])
    return "\n".join([table.title, *_aligned(lines), *table.notes])


def table_markdown(table: Table, *, minor: bool = False) -> str:
    """Return the same for a README, an interval behind its figure; ``minor``: with the models on the way.

    >>> from selfcorrect.report.tables import Cell, TableRow
    >>> print(table_markdown(Table("t", "Greedy", ["Acc"], [TableRow("a|b", "", [Cell("12.0", "± 1.0")])], ["n = 4."])))
    **Greedy**
    <BLANKLINE>
    | | Acc |
    |---|---|
    | a\\|b | 12.0 ± 1.0 |
    <BLANKLINE>
    n = 4.
    """
    lines = [["", *table.full_columns]]
    for row in table.rows:
        if minor or not row.minor:
            lines.append([row.label, *(cell.text for cell in row.cells)])
    drawn = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    drawn[0] = drawn[0].replace("|  |", "| |", 1)
    return "\n".join([f"**{table.title}**", "", drawn[0], "|---" * len(lines[0]) + "|", *drawn[1:], "", *table.notes])


def table_json(table: Table) -> dict[str, Any]:
    """The whole table, the models on the way too: ``cells`` are pairs of a figure and what stands below it."""
    rows = [{"row": r.label, "seeds": r.seeds, "cells": [[c.value, c.below] for c in r.cells]} for r in table.rows]
    return {"id": table.id, "title": table.title, "columns": table.columns, "notes": table.notes, "rows": rows}


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns on their right edge, the first and the last on their left; lines without anything are left out."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    found = []
    for first, *middle, last in lines:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        found.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return [line for line in found if line]
