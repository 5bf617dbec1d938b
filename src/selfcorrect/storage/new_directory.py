"""A directory that appears whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selfcorrect.errors import RunDirectoryError
from selfcorrect.storage.files import refusals


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a directory to fill, which becomes ``out`` at the end of the block; if the block fails, nothing is left.

    Raises:
        RunDirectoryError: ``out`` exists and is not an empty directory, or cannot be written.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise RunDirectoryError(f"{out} exists and is not an empty directory: choose another name.")
    writing = out.with_name(f".{out.name[:200]}.{secrets.token_hex(8)}.new")
    with refusals(out):
        writing.mkdir(parents=True)
    try:
        yield writing
        with refusals(out):
            writing.rename(out)  # an empty directory is replaced
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
