"""Files: atomic writes, digests, locks, JSON Lines, and clear errors for what the operating system rejects."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from selfcorrect.errors import DataError, RunDirectoryError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

OWN_TRACES = (".lock", ".config.toml.new", ".eval.json.new")
"""Files that a run or an evaluation leaves behind if it is killed before it begins."""


@contextlib.contextmanager
def nothing_left(path: Path) -> Iterator[None]:
    """Remove what the block itself made in ``path`` if it fails before it has saved anything of value.

    Only its lock, the directory and new parent directories are removed; earlier content stays. Nothing is removed while
    another process holds the lock.
    """
    with refusals(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]  # innermost first
        before = _names(path)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, RunDirectoryError):
            made = _names(path) - before
            if made <= set(OWN_TRACES):
                with locked(path) if made else contextlib.nullcontext():
                    for name in made:
                        (path / name).unlink()
                for folder in missing:
                    if folder.exists():
                        folder.rmdir()
        raise


def _names(path: Path) -> set[str]:
    return {item.name for item in path.iterdir()} if path.is_dir() else set()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_line(value: Mapping[str, Any]) -> str:
    """Return a JSON line, with floats in full precision; reject non-finite numbers."""
    return _storable(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))) + "\n"


def json_page(value: Mapping[str, Any]) -> str:
    """Return JSON for people to read, one value per line; otherwise like `json_line`."""
    return _storable(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1)) + "\n"


def _storable(written: str) -> str:
    """Return JSON with lone surrogates, which UTF-8 cannot hold, as the visible text ``\\udXXX``.

    A model or a program can say them. JSON could escape them, but then most readers would refuse the file.
    """
    return _LONE_SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):x}", written)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a JSON Lines file.

    Raises:
        DataError: a line is not JSON; the message names the line.
    """
    lines = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg}).") from None
    return lines


def check_replaceable(path: Path) -> None:
    """Make sure that ``path`` can be replaced by a file: it does not exist, or is a regular file.

    Raises:
        RunDirectoryError: it is a directory, or a device, pipe or socket, which renaming would destroy.
    """
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a device, a pipe or a socket, not a regular file"
        raise RunDirectoryError(f"{path} is {what}: name a new file, or one to replace.")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that the disk holds the old text or the new at any moment; see also `check_replaceable`."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write_durably(temporary, text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_durably(path: Path, text: str) -> None:
    """Write a file and flush it to disk."""
    path.write_text(text, encoding="utf-8")
    fsync(path)


def fsync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked(path: Path) -> IO[str]:
    """Lock a directory for this process until the returned file is closed.

    Raises:
        RunDirectoryError: another process holds the lock.
    """
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunDirectoryError(
            f"{path} is in use by another process: wait for it, or choose another directory."
        ) from None
    return lock


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn an operating system error into one clear message."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to {path}: {error.strerror or error}. Everything saved before is intact."
        ) from error
