"""MATH and GSM8K problems from a file, a directory or the Hugging Face hub, in their published schemas."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from selfcorrect.tasks.math.reading import boxed_answer
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.rows import Source
from selfcorrect.tasks.sources import read_parts
from selfcorrect.tasks.splits import normalise

DataRow = Mapping[str, Any]
Convert = Callable[[DataRow], dict[str, Any]]


def math_row(row: DataRow) -> dict[str, Any]:
    r"""Convert a row of MATH: ``problem``, ``solution`` or ``answer``, ``level``, ``unique_id``.

    The reference is ``answer`` where there is one (MATH-500), or else the content of the solution's last box. Boxes with
    only ``and``, ``or`` or a comma between them are one list.

    >>> math_row({"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."})
    {'prompt': '1+1?', 'answer': '2', 'difficulty': 'level 1'}
    """
    reference = row.get("answer")
    if reference is None:
        reference = boxed_answer(_text(row, "solution"))
        if reference is None:
            raise ValueError("no field 'answer', and no closed \\boxed{...} with an answer in 'solution'")
    _check_reference(reference)
    level = re.sub(r"(?i)^level\s*", "", str(row.get("level", "")).strip())
    converted = {"prompt": _text(row, "problem"), "answer": reference, "difficulty": f"level {level or '?'}"}
    return converted | ({"id": row["unique_id"]} if row.get("unique_id") else {})


def _check_reference(reference: object) -> None:
    """Refuse a reference that no answer can equal."""
    if isinstance(reference, str | int | float) and bare(str(reference)).casefold() in ("", "nan", "\\boxed{}"):
        raise ValueError(f"the reference {reference!r:.60} is empty; give the answer, or leave the row out")


def gsm8k_row(row: DataRow) -> dict[str, Any]:
    """Convert a row of GSM8K: ``question``, and ``answer`` with the worked solution and the number after ``####``.

    >>> gsm8k_row({"question": "How many?", "answer": "1000+1=<<1000+1=1001>>1001\\n#### 1,001"})
    {'prompt': 'How many?', 'answer': '1001', 'difficulty': '1 steps'}
    """
    solution, hashes, number = _text(row, "answer").rpartition("####")
    if not hashes or not number.strip():
        raise ValueError("field 'answer' does not end in '#### NUMBER'")
    _check_reference(number)
    steps = len([line for line in solution.splitlines() if line.strip()])
    return {
        "prompt": _text(row, "question"),
        "answer": number.strip().replace(",", ""),
        "difficulty": f"{steps} steps",
    }


def read_source(place: str | Path, convert: Convert, errors: list[str]) -> Source:
    """Return all problems of a place, each once; add rows that cannot be read to ``errors``.

    Raises:
        ConfigError: the place is not a file, a directory or a hub id, or a package for reading it is missing.
        DataError: the place cannot be read or fetched.
    """
    parts = read_parts(place, errors, extra="math", merge_configs=True)
    seen: set[str] = set()
    rows: list[tuple[str, DataRow]] = []
    for where, row in chain.from_iterable(part.source.rows for part in parts):
        try:
            converted = convert(row)
        except ValueError as error:
            errors.append(f"{where}: {error}")
            continue
        text = normalise(converted["prompt"])
        if text not in seen:  # MATH has some problems twice
            seen.add(text)
            rows.append((where, {"id": where, **converted}))
    if not rows and not errors:
        errors.append(f"{parts[0].source.name}: there is no row; at least one problem is needed")
    commits = {hub: commit for part in parts for hub, commit in part.source.commits.items()}
    return Source(parts[0].source.name, rows, commits)


def without(source: Source, others: Source) -> Source:
    """Return the rows whose problem is not among ``others``, such as the 12,000 of MATH without MATH-500."""
    known = {normalise(row["prompt"]) for _, row in others.rows}
    return replace(source, rows=[pair for pair in source.rows if normalise(pair[1]["prompt"]) not in known])


def set_apart(source: Source, count: int) -> tuple[Source, Source]:
    """Split off ``count`` problems, at most a tenth, chosen by a hash; return the rest and the chosen ones."""
    order = sorted(source.rows, key=lambda pair: blake2b(normalise(pair[1]["prompt"]).encode(), digest_size=8).digest())
    apart = {where for where, _ in order[: min(count, len(order) // 10)]}
    rest = [pair for pair in source.rows if pair[0] not in apart]
    return replace(source, rows=rest), replace(source, rows=[pair for pair in source.rows if pair[0] in apart])


def _text(row: DataRow, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {key!r} = {value!r:.60} is not text; the fields are {', '.join(map(repr, row))}")
    return value
