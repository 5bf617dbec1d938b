"""The content of data files, which may be compressed: .gz, .bz2, .xz and .zst."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

from selfcorrect.documents import open_regular
from selfcorrect.errors import DataError
from selfcorrect.extras import require

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAX_UNPACKED = 8 * 2**30
"""Maximum bytes that a compressed file is unpacked to: a small file can hold endless zeros."""
CHUNK = 2**20


def inner_suffix(path: Path) -> str:
    """Return the suffix that says what a file holds.

    >>> [inner_suffix(Path(name)) for name in ("a.csv", "a.jsonl.gz", "a.gz", "a")]
    ['.csv', '.jsonl', '', '']
    """
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def read_unpacked(path: Path, *, extra: str = "data") -> bytes:
    """Return the content of a regular file, unpacked if its suffix says that it is compressed.

    Args:
        extra: the extra of this package that a message names, where the package for .zst is missing.

    Raises:
        ConfigError: the package for .zst is missing.
        DataError: it is no regular file, is damaged, or unpacks to more than `MAX_UNPACKED`.
        OSError: it is missing, or may not be read.
    """
    with open_regular(path) as file:
        if path.suffix not in COMPRESSED:
            return file.read()
        unpacked = _opened(file, path, extra)
        parts: list[bytes] = []
        left = MAX_UNPACKED
        try:
            while part := unpacked.read(CHUNK):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    break
        except _damage(path, extra) as error:
            raise DataError(
                f"{path!s:.200} cannot be unpacked ({error}): it is damaged, or not {path.suffix}."
            ) from error
    if left < 0:
        raise DataError(
            f"{path!s:.200} unpacks to more than {MAX_UNPACKED:,} bytes: unpack it yourself, if it is meant."
        )
    return b"".join(parts)


def _opened(file: IO[bytes], path: Path, extra: str) -> Any:
    """Return the unpacked content of an open file, to read from."""
    match path.suffix:
        case ".gz":
            return gzip.open(file)
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case _:
            return _zstandard(path, extra).ZstdDecompressor().stream_reader(file, read_across_frames=True)


def _damage(path: Path, extra: str) -> tuple[type[Exception], ...]:
    """Return what the reader of a damaged file raises."""
    usual = (OSError, EOFError, zlib.error, lzma.LZMAError)
    return (*usual, _zstandard(path, extra).ZstdError) if path.suffix == ".zst" else usual


def _zstandard(path: Path, extra: str) -> Any:
    return require("zstandard", extra=extra, why=f"reading {path.name}", instead="or unpack the file")
