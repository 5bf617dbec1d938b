"""The page's tables as plain text, as Markdown and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfcorrect.report.cells import Table


def table_text(table: Table) -> str:
    """Return a table as text: values, their intervals below, and the notes; without the intermediate models.

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
    """Return a table as Markdown, each interval after its value; ``minor`` includes the intermediate models.

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
    """Return the whole table, intermediate models included; ``cells`` are pairs of a value and the text below it."""
    rows = [{"row": r.label, "seeds": r.seeds, "cells": [[c.value, c.below] for c in r.cells]} for r in table.rows]
    return {"id": table.id, "title": table.title, "columns": table.columns, "notes": table.notes, "rows": rows}


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Align columns right, the first and the last left; drop empty lines."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    found = []
    for first, *middle, last in lines:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        found.append("  ".join([first.ljust(widths[0]), *cells, last]).rstrip())
    return [line for line in found if line]
