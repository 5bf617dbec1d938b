"""Rows of a published code data set, from a local JSON Lines file (also compressed) or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from selfcorrect.documents import is_there
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import require
from selfcorrect.hub import NO_ANSWER, cache_without_network
from selfcorrect.tasks.compressed import COMPRESSED, read_unpacked
from selfcorrect.tasks.rows import Source, refuse
from selfcorrect.tasks.sources import HUB_ID, commits_of, parsed_lines, placed

DataRow = Mapping[str, Any]


def read_rows(source: str | Path, name: str) -> Source:
    """Return all rows of a file or, if there is no such file, of all splits of the data set with that hub id.

    A hub id is ``OWNER/NAME``, ``OWNER/NAME/CONFIG`` or ``OWNER/NAME:SPLIT``, each also with ``@REVISION`` at its end.

    Raises:
        ConfigError: neither exists, or the package that loads from the hub is missing.
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    path = Path(source).expanduser()
    if is_there(path):
        return _from_file(path, name)
    if path.suffix in (".jsonl", ".json", *COMPRESSED) and str(source).count("/") != 1:
        raise ConfigError(f"task {name!r}: there is no file {str(source)!r}.")
    return _from_hub(str(source), name)


def _from_file(path: Path, name: str) -> Source:
    errors: list[str] = []
    try:
        content = read_unpacked(path)
        if content.lstrip().startswith(b"["):  # one JSON list, as the sanitized MBPP comes
            listed = [row for row in json.loads(content) if isinstance(row, dict)]
            return Source(path.name, [(f"{path.name}[{i}]", row) for i, row in enumerate(listed)])
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"task {name!r}: {path} cannot be read: {error}.") from error
    rows = parsed_lines(content, path.name, errors)
    refuse(name, errors)
    return Source(path.name, rows)


def _from_hub(source: str, name: str) -> Source:
    why = f"task {name!r}: {source!r} is not a local file, and loading it from the hub"
    datasets = require("datasets", extra="data", why=why)
    asked = None if Path(source).is_dir() else HUB_ID.fullmatch(source)
    hub = asked["id"] if asked else source
    config, split, revision = asked.group("config", "split", "revision") if asked else (None, None, None)
    answers = True
    try:
        with nullcontext(True) if Path(source).is_dir() else cache_without_network() as answers:
            loaded = datasets.load_dataset(hub, config, split=split, revision=revision)
    except Exception as error:  # the boundary to the hub's client, which raises whatever its HTTP library does
        reason = f"{type(error).__name__}: {error}" if answers else NO_ANSWER
        raise ConfigError(
            f"task {name!r}: {source!r} is not a local file, and cannot be loaded from the hub ({reason})"[:600]
        ) from error
    splits = {split: loaded} if split else loaded
    rows = [pair for label, several in splits.items() for pair in placed(f"{hub}/{label}", several)]
    commits = {key: commit for several in splits.values() for key, commit in commits_of(hub, several).items()}
    return Source(hub, [(where, dict(row)) for where, row in rows], commits)


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
