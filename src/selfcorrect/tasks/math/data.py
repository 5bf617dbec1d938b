"""MATH and GSM8K problems from a file, a directory or the Hugging Face hub, in their published schemas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from selfcorrect.documents import is_there, open_regular
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import require
from selfcorrect.tasks.jsonl import read_lines
from selfcorrect.tasks.math.reading import boxed_answer
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.rows import Source
from selfcorrect.tasks.splits import normalise

DataRow = Mapping[str, Any]
Convert = Callable[[DataRow], dict[str, Any]]

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
WHERE = (
    "Give a .jsonl or .parquet file, a directory of a dataset, or a hub id (OWNER/NAME, OWNER/NAME/CONFIG, "
    "OWNER/NAME:SPLIT)."
)


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
    raw = _file(Path(place), errors) if is_there(Path(place)) else _dataset(str(place))
    seen: set[str] = set()
    rows: list[tuple[str, DataRow]] = []
    for where, row in raw.rows:
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
        errors.append(f"{raw.name}: there is no row; at least one problem is needed")
    return Source(raw.name, rows)


def without(source: Source, others: Source) -> Source:
    """Return the rows whose problem is not among ``others``, such as the 12,000 of MATH without MATH-500."""
    known = {normalise(row["prompt"]) for _, row in others.rows}
    return Source(source.name, [pair for pair in source.rows if normalise(pair[1]["prompt"]) not in known])


def set_apart(source: Source, count: int) -> tuple[Source, Source]:
    """Split off ``count`` problems, at most a tenth, chosen by a hash; return the rest and the chosen ones."""
    order = sorted(source.rows, key=lambda pair: blake2b(normalise(pair[1]["prompt"]).encode(), digest_size=8).digest())
    apart = {where for where, _ in order[: min(count, len(order) // 10)]}
    rest = [pair for pair in source.rows if pair[0] not in apart]
    return Source(source.name, rest), Source(source.name, [pair for pair in source.rows if pair[0] in apart])


def _text(row: DataRow, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {key!r} = {value!r:.60} is not text; the fields are {', '.join(map(repr, row))}")
    return value


def _file(path: Path, errors: list[str]) -> Source:
    if path.suffix in (".jsonl", ".json"):
        return read_lines(path, path.name, errors)
    with open_regular(path):  # a pipe or a device is rejected before pyarrow waits for it
        pass
    if path.suffix != ".parquet":
        raise ConfigError(f"problems in {path}: the suffix is {path.suffix!r}. {WHERE}")
    parquet = require("pyarrow.parquet", extra="math", why=f"reading {path.name}")
    try:
        rows = parquet.read_table(path).to_pylist()
    except Exception as error:  # the boundary to pyarrow, whose errors have no common root
        raise DataError(f"cannot read the problems in {path} as Parquet: {error}") from error
    return Source(path.name, [(f"{path.name}[{i}]", row) for i, row in enumerate(rows)])


def _dataset(place: str) -> Source:
    """Read a dataset of the hub, or a directory laid out like one: one configuration and split, or all of them."""
    folder, _, split = place.partition(":")
    if _is_folder(Path(folder)):
        name, config = folder, None
    elif (match := HUB_ID.fullmatch(place)) and Path(place).suffix not in (".jsonl", ".json", ".parquet"):
        name, config, split = match["id"], match["config"], match["split"] or ""
    else:
        raise ConfigError(f"problems in {place}: there is no such file or directory, and it is not a hub id. {WHERE}")
    datasets = require("datasets", extra="math", why=f"reading {place}")
    try:
        rows = list(_dataset_rows(datasets, name, config, split))
    except Exception as error:  # the boundary to the hub: the client raises whatever its HTTP library does
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        raise DataError(
            f"the problems in {place} cannot be loaded ({reason}). {WHERE} Without a network, download the "
            f"file elsewhere and give its path."
        ) from error
    return Source(Path(name).name if Path(name).is_dir() else name, rows)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no directory can have
        return False


def _dataset_rows(datasets: Any, name: str, config: str | None, split: str) -> Iterator[tuple[str, DataRow]]:
    for part in [config] if config else datasets.get_dataset_config_names(name):
        loaded = datasets.load_dataset(name, part, split=split or None)
        for label, rows in ({split: loaded} if split else loaded).items():
            for i, row in enumerate(rows):
                yield f"{part}/{label}[{i}]", row
