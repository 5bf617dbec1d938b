"""Rows of a published code data set, from a local JSON Lines file (also ``.gz``) or the hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcorrect.documents import is_there, read_regular
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import require
from selfcorrect.tasks.rows import refuse
from selfcorrect.tasks.sources import parsed_lines

DataRow = Mapping[str, Any]


def read_rows(source: str | Path, name: str) -> list[DataRow]:
    """Return all rows of a file or, if there is no such file, of all splits of the data set with that hub id.

    Raises:
        ConfigError: neither exists, or the package that loads from the hub is missing.
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    path = Path(source).expanduser()
    if is_there(path):
        return _from_file(path, name)
    if path.suffix in (".jsonl", ".json", ".gz") and str(source).count("/") != 1:
        raise ConfigError(f"task {name!r}: there is no file {str(source)!r}.")
    return _from_hub(str(source), name)


def _from_file(path: Path, name: str) -> list[DataRow]:
    errors: list[str] = []
    try:
        data = read_regular(path)
        content = gzip.decompress(data) if path.suffix == ".gz" else data
        if content.lstrip().startswith(b"["):  # one JSON list, as the sanitized MBPP comes
            return [row for row in json.loads(content) if isinstance(row, dict)]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"task {name!r}: {path} cannot be read: {error}.") from error
    rows = parsed_lines(content, path.name, errors)
    refuse(name, errors)
    return [row for _, row in rows]


def _from_hub(source: str, name: str) -> list[DataRow]:
    why = f"task {name!r}: {source!r} is not a local file, and loading it from the hub"
    datasets = require("datasets", extra="data", why=why)
    try:
        splits = datasets.load_dataset(source)
    except Exception as error:  # the boundary to the hub's client, which raises whatever its HTTP library does
        raise ConfigError(
            f"task {name!r}: {source!r} is not a local file, and cannot be loaded from the hub "
            f"({type(error).__name__}: {error})"[:600]
        ) from error
    return [dict(row) for split in splits.values() for row in split]


def require_fields(rows: Sequence[DataRow], fields: Sequence[str], name: str) -> None:
    """Reject rows in which a field is missing or not text.

    Raises:
        DataError: there is no row, or rows are malformed; the message lists the first twenty.
    """
    if not rows:
        raise DataError(f"task {name!r}: its source has no rows.")
    refuse(
        name,
        [
            f"row {index}: field {field!r} is {'missing' if field not in row else 'not text'}"
            for index, row in enumerate(rows, 1)
            for field in fields
            if not isinstance(row.get(field), str)
        ],
    )
