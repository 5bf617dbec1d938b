"""Files: atomic writes, digests, locks, JSON Lines, and clear errors for what the operating system rejects.

Everything that the package writes into a run, an evaluation or a comparison goes through this module. Such a directory may
come from someone else, so a write never follows a symbolic link and never changes a file that another name shares: see
`claim`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from selfcorrect.documents import MAX_DOCUMENT, kind_of, open_regular, parsed_json
from selfcorrect.errors import DataError, RunDirectoryError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

LOCK = ".lock"
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.new")
"""The name of a file that is being written: that of its target, and one that nobody can guess."""
TRACKING = "tracking.json"
"""The name by which trackers outside a run's directory find the run again."""
FIRST_FILES = ("config.toml", "eval.json")
WRITTEN = (
    *(*FIRST_FILES, "summary.json", "metrics.jsonl", "timings.jsonl"),
    *("episodes", "checkpoints", "tensorboard", TRACKING, LOCK),
)
"""What the package writes into a run or an evaluation; `report.html` is replaced as a whole, wherever it is."""


def is_own_trace(name: str) -> bool:
    """Return whether a run or an evaluation leaves such a file behind if it is killed before it begins."""
    temporary = TEMPORARY.fullmatch(name)
    return name == LOCK or (temporary is not None and temporary["name"] in FIRST_FILES)


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
            if all(map(is_own_trace, made)):
                with locked(path) if made else contextlib.nullcontext():
                    for name in made:
                        (path / name).unlink()
                for folder in missing:
                    if folder.exists():
                        folder.rmdir()
        raise


def _names(path: Path) -> set[str]:
    return {item.name for item in path.iterdir()} if path.is_dir() else set()


# -- reading -----------------------------------------------------------------------------------------------------------


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


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


def json_lines(file: IO[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of an open JSON Lines file, without a last line that is still being written.

    Raises:
        DataError: a line is not a JSON object, or the file is damaged; the message names the line of ``path``.
    """
    number = 0
    try:
        while line := file.readline(MAX_DOCUMENT + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > MAX_DOCUMENT:
                    raise ValueError(f"it has more than {MAX_DOCUMENT:,} bytes")
                return
            value = parsed_json(line)
            if not isinstance(value, dict):
                raise ValueError(f"it holds a {type(value).__name__}, not a JSON object")
            yield value
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, line {max(number, 1)}, is damaged: {error}. Restore the file.") from None


@contextlib.contextmanager
def opened_log(path: Path) -> Iterator[IO[bytes] | None]:
    """Open a log for reading, or its compressed form (``.gz``); yield None where neither file is there."""
    packed = path.with_name(path.name + ".gz")
    with contextlib.ExitStack() as stack:
        if path.exists():
            yield stack.enter_context(open_regular(path))
        elif packed.exists():
            file = stack.enter_context(open_regular(packed))
            yield stack.enter_context(gzip.GzipFile(fileobj=file))  # type: ignore[misc]
        else:
            yield None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a JSON Lines file.

    Raises:
        DataError: a line is not a JSON object; the message names the line.
    """
    with open_regular(path) as file:
        return list(json_lines(file, path))


# -- writing -----------------------------------------------------------------------------------------------------------


def claim(path: Path, *, frozen: str = "checkpoints") -> None:
    """Make sure that whatever is written below ``path`` stays below it; call it while the directory is locked.

    There must be no links, see `refuse_links`. A file with several names (hard links) gets a copy of its own, so that
    appending to it or truncating it changes no other directory; below ``frozen`` nothing is ever changed, only replaced.
    Files that a killed process was writing are removed.

    Raises:
        RunDirectoryError: there is a link, a pipe, a device or a socket; the message names it.
    """
    refuse_links(path)
    for item in _below(path):
        status = item.lstat()
        if not stat.S_ISREG(status.st_mode):
            continue
        if TEMPORARY.fullmatch(item.name):
            item.unlink()
        elif status.st_nlink > 1 and item.relative_to(path).parts[0] != frozen:
            write_atomically(item, item.read_bytes())


def refuse_links(path: Path) -> None:
    """Reject whatever could lead a write below ``path`` out of it.

    ``path`` may itself be a link, because the user named it. Below it, a symbolic link could lead anywhere, and a pipe or a
    device does not hold what is written.

    Raises:
        RunDirectoryError: there is a link, a pipe, a device or a socket; the message names it.
    """
    for item in _below(path):
        status = item.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise RunDirectoryError(
                f"{item} is {kind_of(status.st_mode)}, and nothing is written through one, because it may lead out of {path}. "
                "Replace it by what it stands for, or copy the directory with `cp -rL` and use the copy."
            )


def _below(path: Path) -> Iterator[Path]:
    """Yield what is below a directory, in a run or an evaluation only what the package writes there."""
    for folder, folders, files in os.walk(path):  # it lists links to folders, and does not enter them
        if any(name in files for name in FIRST_FILES):
            folders[:] = [name for name in folders if name in WRITTEN]
            files[:] = [name for name in files if name in WRITTEN or TEMPORARY.fullmatch(name)]
        yield from (Path(folder) / name for name in sorted([*folders, *files]))


def check_replaceable(path: Path) -> None:
    """Make sure that ``path`` can be replaced by a file: it does not exist, or is a regular file.

    Raises:
        RunDirectoryError: it is a directory, or a device, pipe or socket, which renaming would destroy.
    """
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "a device, a pipe or a socket, not a regular file"
        raise RunDirectoryError(f"{path} is {what}: name a new file, or one to replace.")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that the disk holds the old content or the new at any moment; see also `check_replaceable`.

    A link is replaced, not followed. Each call writes a file of its own, so two processes can write the same file: the
    last one wins.
    """
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.new")
    try:
        write_durably(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a new file and flush it to disk."""
    with os.fdopen(os.open(path, _NEW, 0o666), "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON lines to a log, which is made where it is missing."""
    text = "".join(map(json_line, lines))
    with os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "wb") as file:
        file.write(text.encode("utf-8"))


def truncate(path: Path, size: int) -> None:
    """Truncate a log to ``size`` bytes."""
    handle = _opened(path, os.O_WRONLY)
    try:
        os.truncate(handle, size)
    finally:
        os.close(handle)


def copy_file(source: Path, target: Path) -> Path:
    """Copy a regular file over ``target``, which is replaced as a whole; return ``target``."""
    with open_regular(source) as file:
        write_atomically(target, file.read())
    return target


def remove_tree(path: Path) -> None:
    """Remove a directory where there is one; a link in its place is removed itself."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def plain_folder(path: Path) -> Path:
    """Make a directory where it is missing, below one that the user named.

    Raises:
        RunDirectoryError: something else has its name, perhaps a link that leads elsewhere.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise RunDirectoryError(
            f"{path} is {kind_of(path.lstat().st_mode)}, but must be a directory: replace it by one, or choose another place."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def _opened(path: Path, flags: int) -> int:
    """Open a regular file for writing without following a link.

    Raises:
        RunDirectoryError: it is a link, a pipe or a device.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise RunDirectoryError(
                f"{path} is {kind_of(path.lstat().st_mode)}, not a regular file: remove it."
            ) from None
        raise
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise RunDirectoryError(f"{path} is {kind_of(mode)}, not a regular file: remove it.")
    return handle


def fsync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def locked(path: Path) -> IO[bytes]:
    """Lock a directory for this process until the returned file is closed.

    Raises:
        RunDirectoryError: another process holds the lock.
    """
    lock = os.fdopen(_opened(path / LOCK, os.O_WRONLY | os.O_CREAT), "wb")
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
