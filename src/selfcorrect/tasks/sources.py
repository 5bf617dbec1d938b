"""Rows from files, from directories of data sets, and from the Hugging Face hub.

JSON Lines, JSON and CSV need no other package; everything else is read by `datasets` and `pyarrow`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.documents import is_there, open_regular
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import require
from selfcorrect.hub import NO_ANSWER, cache_without_network
from selfcorrect.tasks.compressed import COMPRESSED, inner_suffix, read_unpacked
from selfcorrect.tasks.rows import Source

Row = Mapping[str, Any]
Rows = list[tuple[str, Row]]

HUB_ID = re.compile(
    r"(?P<id>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
WHERE = (
    "Give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file (also compressed, as .jsonl.gz or .csv.zst), a directory of "
    "a dataset, or a hub id (OWNER/NAME, OWNER/NAME/CONFIG, OWNER/NAME:SPLIT), each also with @REVISION at its end."
)


@dataclass(frozen=True, slots=True)
class Part:
    """One split of a place's rows. A file is one part, and its ``split`` has no name."""

    split: str
    source: Source


def read_parts(
    place: str | Path, errors: list[str], *, extra: str, label: str | None = None, merge_configs: bool = False
) -> list[Part]:
    """Return the rows of a place, split by split; add lines and records that cannot be read to ``errors``.

    Args:
        place: a file, a directory of a dataset, or a hub id; see `WHERE`.
        errors: gets one line for each malformed row.
        extra: the extra of this package that a message names, where another package is missing.
        label: the file's name in messages; by default without its directory.
        merge_configs: read all configurations of a dataset if ``place`` names none, instead of asking for one.

    Raises:
        ConfigError: the place is none of these, or a package for reading it is missing.
        DataError: the place cannot be read or fetched.
    """
    path = Path(place)
    if is_there(path):
        return [Part("", _file(path, label or path.name, errors, extra))]
    return _dataset(str(place), extra, merge_configs)


# --- files ------------------------------------------------------------------------------------------


def read_lines(path: Path, label: str, errors: list[str], *, extra: str = "data") -> Source:
    """Return the rows of a JSONL file, called ``label``; add each line that is not a JSON object to ``errors``."""
    return Source(label, parsed_lines(_content(path, "JSONL", extra), label, errors))


def parsed_lines(content: bytes, label: str, errors: list[str]) -> Rows:
    """Return the objects of a JSONL file's content, each with its place ``label:number``; see `read_lines`."""
    rows: Rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{label}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            errors.append(f"{where}: not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            errors.append(f"{where}: not JSON: {error.msg} (column {error.colno})")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits; thousands of brackets
            errors.append(f"{where}: not readable as JSON: {error}")
        else:
            if isinstance(row, dict):
                rows.append((where, row))
            else:
                errors.append(f"{where}: a line must be a JSON object, such as {{...}}, not {type(row).__name__}")
    return rows


def _file(path: Path, label: str, errors: list[str], extra: str) -> Source:
    with open_regular(path):  # a pipe or a device is rejected before a library waits for it
        pass
    suffix = inner_suffix(path)
    if suffix not in SUFFIXES:
        raise ConfigError(f"problems in {path}: the suffix is {''.join(path.suffixes[-2:])!r}. {WHERE}")
    if suffix == ".jsonl":
        return read_lines(path, label, errors, extra=extra)
    if suffix == ".json":
        content = _content(path, "JSON", extra)
        listed = content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        return Source(label, (_parsed_list if listed else parsed_lines)(content, label, errors))
    if suffix in (".csv", ".tsv"):
        delimiter = "," if suffix == ".csv" else "\t"
        return Source(label, _parsed_table(_content(path, "CSV", extra), label, delimiter, errors))
    return Source(label, [(f"{label}[{i}]", row) for i, row in enumerate(_columns(path, extra))])


def _content(path: Path, kind: str, extra: str) -> bytes:
    try:
        return read_unpacked(path, extra=extra)
    except (OSError, ValueError) as error:  # a ValueError where no file can have the name
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the problems in {path!s:.200}: {why}. Give the path of a {kind} file.") from error


def _parsed_list(content: bytes, label: str, errors: list[str]) -> Rows:
    """Return the objects of one JSON list, each with its place ``label[index]``."""
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        errors.append(f"{label}: not readable as JSON: {error}")
        return []
    errors += [
        f"{label}[{i}]: an item must be a JSON object, such as {{...}}, not {type(item).__name__}"
        for i, item in enumerate(items)
        if not isinstance(item, dict)
    ]
    return [(f"{label}[{i}]", item) for i, item in enumerate(items) if isinstance(item, dict)]


def _parsed_table(content: bytes, label: str, delimiter: str, errors: list[str]) -> Rows:
    """Return the records of a CSV file by its first line's names, each with the place of its first line."""
    rows: Rows = []
    line = 1
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
        names = next(reader, [])
        if not all(names) or len(set(names)) != len(names):
            errors.append(f"{label}:1: the columns {names!r:.200} must have different names, none of them empty")
            return []
        line = reader.line_num + 1
        for values in reader:
            where, line = f"{label}:{line}", reader.line_num + 1
            if len(values) == len(names):
                rows.append((where, dict(zip(names, values, strict=True))))
            elif values:  # a blank line has none
                errors.append(f"{where}: {len(values)} values for {len(names)} columns; quote values with delimiters")
    except UnicodeDecodeError as error:
        errors.append(f"{label}: not UTF-8 (byte {error.start + 1})")
    except csv.Error as error:
        errors.append(f"{label}:{line}: not readable as CSV: {error}")
    return rows


def _columns(path: Path, extra: str) -> list[dict[str, Any]]:
    """Return the rows of a Parquet or Arrow file."""
    kind = inner_suffix(path).removeprefix(".").title()
    module = require("pyarrow.parquet" if kind == "Parquet" else "pyarrow.ipc", extra=extra, why=f"reading {path.name}")
    read: Callable[[Any], Any] = module.read_table if kind == "Parquet" else _arrow_reader(module)
    content = io.BytesIO(_content(path, kind, extra)) if kind == "Arrow" or path.suffix in COMPRESSED else path
    try:
        rows: list[dict[str, Any]] = read(content).to_pylist()
    except Exception as error:  # the boundary to pyarrow, whose errors have no common root
        raise DataError(f"cannot read the problems in {path} as {kind}: {error}") from error
    return rows


def _arrow_reader(ipc: Any) -> Callable[[io.BytesIO], Any]:
    def read(file: io.BytesIO) -> Any:
        content = file.getvalue()
        # The file format begins with its name; `datasets` writes the stream format, which does not.
        return (ipc.open_file if content.startswith(b"ARROW1") else ipc.open_stream)(content).read_all()

    return read


# --- directories and the hub ------------------------------------------------------------------------


def _dataset(place: str, extra: str, merge_configs: bool) -> list[Part]:
    """Read a dataset of the hub, or a directory of one: one configuration and split, or all of them."""
    folder, _, split = place.partition(":")
    if _is_folder(Path(folder)):
        name, config, revision = folder, None, None
    elif (match := HUB_ID.fullmatch(place)) and inner_suffix(Path(place)) not in SUFFIXES:
        name, config, split, revision = match["id"], match["config"], match["split"] or "", match["revision"]
    else:
        raise ConfigError(f"problems in {place}: there is no such file or directory, and it is not a hub id. {WHERE}")
    datasets = require("datasets", extra=extra, why=f"reading {place}")
    before = "" if merge_configs else f"{name}/"
    title = Path(name).name if _is_folder(Path(name)) else name
    answers = True
    try:
        with nullcontext(True) if _is_folder(Path(name)) else cache_without_network() as answers:
            parts = [
                Part(label, Source(title, placed(f"{before}{config}{label}", rows), commits_of(name, rows)))
                for config, label, rows in _loaded(datasets, name, config, split, revision, merge_configs)
            ]
    except ConfigError:
        raise
    except Exception as error:  # the boundary to the hub: the client raises whatever its HTTP library does
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:300] if answers else NO_ANSWER
        raise DataError(
            f"the problems in {place} cannot be loaded ({reason}). {WHERE} Without a network, download the "
            f"file elsewhere and give its path."
        ) from error
    return parts or [Part("", Source(title, []))]


def placed(place: str, rows: Any) -> Rows:
    """Return rows with the place of each, ``place[index]``."""
    return [(f"{place}[{i}]", row) for i, row in enumerate(rows)]


def commits_of(name: str, rows: Any) -> dict[str, str]:
    """Return the commit of the hub's repository that rows were loaded from, by its name, as `datasets` recorded it.

    The files of a data set have addresses ``hf://datasets/OWNER/NAME@COMMIT/...``; a directory's files have none.
    """
    files = getattr(rows, "download_checksums", None)
    for address in files if isinstance(files, Mapping) else ():
        if found := re.match(rf"hf://datasets/{re.escape(name)}@([0-9a-f]{{40}})(?:/|$)", str(address)):
            return {name: found[1]}
    return {}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no directory can have
        return False


def _loaded(
    datasets: Any, name: str, config: str | None, split: str, revision: str | None, merge_configs: bool
) -> Iterator[tuple[str, str, Any]]:
    """Yield every split's rows, with the beginning of their places and the name of the split."""
    if any((Path(name) / mark).is_file() for mark in ("dataset_dict.json", "state.json")):  # saved by `save_to_disk`
        saved = datasets.load_from_disk(name)
        splits = saved if hasattr(saved, "keys") else {str(saved.split or "train"): saved}
        if split and split not in splits:
            raise ConfigError(f"problems in {name}: there is no split {split!r} among {', '.join(splits)}.")
        for label in [split] if split else splits:
            yield "", label, splits[label]
        return
    configs = [config] if config else datasets.get_dataset_config_names(name, revision=revision)
    if len(configs) > 1 and not merge_configs:
        raise ConfigError(f"problems in {name}: choose a configuration, as {name}/CONFIG: {', '.join(configs)}"[:600])
    for part in configs:
        table = datasets.load_dataset(name, part, split=split or None, revision=revision)
        for label, rows in ({split: table} if split else table).items():
            yield f"{part}/", label, rows
