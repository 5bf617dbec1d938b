"""Which problems the rows of a report answer: rows of different problems are not comparable, and the page says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count

from selfcorrect.report.rows import Measured, Row, Rows
from selfcorrect.report.sources import Run


def marked(rows: Rows) -> tuple[Rows, Mapping[str, str]]:
    """Return the rows with the name of the problems that each answers, A, B, ..., and the problems in words by that name.

    Nothing is named if all rows answer the same problems, as far as their directories record which.
    """
    digests = dict.fromkeys(digest for row in rows.rows for digest in _digests(row))
    if len(digests) < 2:
        return rows, {}
    names = dict(zip(digests, _letters(), strict=False))
    new = [replace(row, problem_set=" and ".join(names[digest] for digest in _digests(row))) for row in rows.rows]
    words = {name: _in_words(digest, rows) for digest, name in names.items()}
    return Rows(new, rows.extra), words


def _digests(row: Row) -> list[str]:
    return [*dict.fromkeys(m.source.data_digest for m in [*row.measured, *row.again] if m.source.data_digest)]


def _letters() -> Iterator[str]:
    """Yield A to Z, then A2, B2, ..."""
    for round_ in count(1):
        yield from (f"{letter}{'' if round_ == 1 else round_}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _in_words(digest: str, rows: Rows) -> str:
    """Return the task and its problems, and which rows answer them."""
    answering = [(row, m) for row in rows.rows for m in row.measured if m.source.data_digest == digest]
    labels = dict.fromkeys(row.label for row, _ in answering)
    return f"{_problems(answering[0][1])} ({', '.join(labels)})" if answering else ""


def _problems(measured: Measured) -> str:
    source, n = measured.source, int(measured.results["n"])
    if isinstance(source, Run):
        task, settings = source.settings.get("task", {}), source.settings.get("eval", {})
        where = task.get("name", "addition"), settings.get("split", "test"), task.get("data_seed", 0)
    else:
        problems = source.identity["problems"]
        where = source.identity["task"]["name"], problems["split"], problems["data_seed"]
    name, split, seed = where
    return f"{n:,} problems of {name}, split {split}, data seed {seed}"
