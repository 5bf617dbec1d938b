"""The run directory: the only module that knows the layout of a run on disk and keeps saved data safe.

    config.toml            resolved settings                  metrics.jsonl    a line per step
    timings.jsonl          seconds by phase                   episodes/        episodes of training and evaluation
    checkpoints/NAME/      plain Hugging Face directories     tensorboard/     rebuilt from the metrics on resume
    summary.json           results of the finished run        tracking.json    where trackers outside know the run by

A checkpoint is written next to its final path, flushed to disk file by file, sealed by a manifest with the SHA-256 of
every file, and then renamed. Whenever a crash happens, a checkpoint is whole or absent. It records the length of every
log, and resuming truncates the logs to that length.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import IO, Any

from safetensors import SafetensorError

from selfcorrect.documents import is_unicode, read_json
from selfcorrect.errors import CheckpointError, DataError, RunDirectoryError
from selfcorrect.storage.files import (
    append_lines,
    claim,
    file_digest,
    fsync,
    is_own_trace,
    json_lines,
    locked,
    opened_log,
    refusals,
    remove_tree,
    truncate,
    write_atomically,
    write_durably,
)
from selfcorrect.storage.shapes import metrics
from selfcorrect.types import Part

MANIFEST = "manifest.json"
WRITING = ".writing-"
FOLDERS = ("checkpoints", "episodes")
EXACT_LOGS = ("metrics.jsonl", "timings.jsonl")


def _check_name(path: Path) -> None:
    """Reject a place to which no weights can be written: safetensors takes names in UTF-8 only.

    Raises:
        RunDirectoryError: the name of the directory, or of one above it, is something else.
    """
    if not is_unicode(str(path.resolve())):
        raise RunDirectoryError(
            f"{path} is, or lies in, a directory whose name is not UTF-8, and weights cannot be written there: rename it, or "
            "choose another directory."
        )


class RunDirectory:
    """One run on disk. Use `create` or `open`; while it is open, no other process can open it."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, config_toml: str) -> RunDirectory:
        """Start a run in a new or empty directory.

        Raises:
            RunDirectoryError: the directory is not empty, or is not writable.
        """
        _check_name(path)
        check_free(path)
        with refusals(path):
            run = cls(path, locked(path))
            # Comes first: from here on the directory is a run, which can be resumed after a crash at any later moment.
            write_atomically(path / "config.toml", config_toml)
            for folder in FOLDERS:
                (path / folder).mkdir()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open a run to continue it.

        Raises:
            RunDirectoryError: the directory holds no run, is not writable, is in use by another process, or holds links
                (see `files.claim`).
        """
        if not (path / "config.toml").is_file():
            raise RunDirectoryError(
                f"{path} is not a run, because it has no config.toml. Start one with `selfcorrect train CONFIG --out {path}`."
            )
        _check_name(path)
        with refusals(path):
            run = cls(path, locked(path))
            try:
                claim(path)
            except BaseException:
                run.close()
                raise
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            for torn in (path / "checkpoints").glob(f"{WRITING}*"):
                remove_tree(torn)
        return run

    def close(self) -> None:
        self._lock.close()

    # -- logs ------------------------------------------------------------------------------------------------------

    def append(self, log: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines to a log (``metrics.jsonl``, ``episodes/NAME.jsonl``)."""
        with refusals(self.path):
            append_lines(self.path / log, lines)

    def log_sizes(self) -> dict[str, int]:
        """Flush every log to disk and return its size in bytes, for a checkpoint to record."""
        sizes = {}
        for log in (*EXACT_LOGS, *(f"episodes/{p.name}" for p in (self.path / "episodes").glob("train-*.jsonl"))):
            path = self.path / log
            if path.exists():
                fsync(path)
                sizes[log] = path.stat().st_size
        return sizes

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        """Truncate every log to its given size; remove logs without one, which did not exist yet.

        Raises:
            CheckpointError: a log is shorter than its size at the checkpoint, so the run directory was changed.
        """
        now = self.log_sizes()
        for log in {**now, **sizes}:
            path = self.path / log
            if log not in sizes:
                path.unlink()
                continue
            if now.get(log, 0) < sizes[log]:
                raise CheckpointError(
                    f"{path} has {now.get(log, 0)} bytes, but had {sizes[log]} at the checkpoint: it is damaged. "
                    "Restore it, or start again in another directory."
                )
            if log in now:
                truncate(path, sizes[log])

    def forget_stage(self, stage: str) -> None:
        """Remove the final evaluation and the saved model of a stage before it is trained longer."""
        if self.has_checkpoint(stage):
            self.remove_checkpoint(stage)
        # Each part by its name: `eval-{stage}-*` would match the stage `{stage}-b` too.
        for file in ["summary.json", *(f"episodes/eval-{stage}-{part}.jsonl" for part in Part)]:
            (self.path / file).unlink(missing_ok=True)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint_path(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def has_checkpoint(self, name: str) -> bool:
        return (self.checkpoint_path(name) / MANIFEST).is_file()

    def save_checkpoint(self, name: str, fill: Callable[[Path], None]) -> Path:
        """Write a checkpoint atomically: ``fill`` writes its files into a temporary directory, which is then renamed.

        Raises:
            RunDirectoryError: the disk is full or read-only; existing checkpoints are untouched.
        """
        writing = self.begin_checkpoint(name)
        with filling(self.path):
            fill(writing)
        return self.finish_checkpoint(name, {})

    def begin_checkpoint(self, name: str) -> Path:
        """Return a new directory for the files of a checkpoint, which does not exist before `finish_checkpoint`."""
        writing = self.checkpoint_path(WRITING + name)
        with refusals(self.path):
            remove_tree(writing)
            writing.mkdir()
        return writing

    def finish_checkpoint(self, name: str, digests: Mapping[str, str]) -> Path:
        """Seal the new files and give them their name; ``digests`` are those of files that are on disk already."""
        place, writing = self.checkpoint_path(name), self.checkpoint_path(WRITING + name)
        with refusals(self.path):
            write_manifest(writing, digests)
            before = place.with_name(f"{WRITING}before-{name}")  # never half-removed under its final name
            remove_tree(before)
            if place.exists():
                place.rename(before)
            writing.rename(place)
            fsync(place.parent)
            remove_tree(before)
        return place

    def verify_checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint after checking every file.

        Raises:
            CheckpointError: the checkpoint is missing, or a file differs from its digest.
        """
        return verify_checkpoint(self.checkpoint_path(name))

    def checkpoints(self) -> list[str]:
        """Return the names of all sealed checkpoints."""
        return sorted(
            path.parent.name for path in (self.path / "checkpoints").glob(f"*/{MANIFEST}") if path.parent.name[0] != "."
        )

    def remove_checkpoint(self, name: str) -> None:
        # Renamed first: a half-removed directory must not pass for a checkpoint.
        doomed = self.checkpoint_path(WRITING + name)
        remove_tree(doomed)
        self.checkpoint_path(name).rename(doomed)
        shutil.rmtree(doomed)


def is_log(name: object) -> bool:
    """Return whether a checkpoint may record the size of a log with this name, so that resuming truncates it."""
    return name in EXACT_LOGS or (isinstance(name, str) and bool(re.fullmatch(r"episodes/train-[\w-]+\.jsonl", name)))


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``, compressed or not; none where it is missing.

    Raises:
        DataError: a line is damaged; the message names it.
    """
    steps: list[dict[str, Any]] = []
    with opened_log(file) as opened:
        for number, line in enumerate(json_lines(opened, file) if opened is not None else (), 1):
            try:
                metrics(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}, is damaged: {error}. Restore the file.") from None
            steps.append(line)
    return steps


def spent_in(steps: Iterable[Mapping[str, Any]], what: str) -> int | None:
    """Return the sum of a count over the lines of ``metrics.jsonl``; None if one lacks it, as lines of earlier versions may.

    >>> spent_in([{"sampled_tokens": 40}, {"sampled_tokens": 2}], "sampled_tokens")
    42
    >>> spent_in([{"completions": 8}, {"completions": 8, "sampled_tokens": 40}], "sampled_tokens")
    """
    found = [line.get(what) for line in steps]
    return None if None in found else sum(int(count) for count in found if count is not None)


def check_free(path: Path) -> None:
    """Make sure that ``path`` is a new or empty directory, and writable.

    Raises:
        RunDirectoryError: the directory is not empty, or is not writable.
    """
    with refusals(path):
        path.mkdir(parents=True, exist_ok=True)
        present = sorted(item.name for item in path.iterdir() if not is_own_trace(item.name))
        if present:
            what, instead = f"other files ({', '.join(present[:3])})", ""
            if "config.toml" in present:
                what, instead = "another run", f", or resume it: selfcorrect train --resume {quote(str(path))}"
            raise RunDirectoryError(f"{path} holds {what}: choose another directory{instead}.")
        locked(path).close()


@contextlib.contextmanager
def filling(path: Path) -> Iterator[None]:
    """Turn the errors of writing a checkpoint's files into one clear message.

    Raises:
        RunDirectoryError: the disk is full or read-only.
    """
    with refusals(path):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these when a write fails
            raise OSError(f"{error}") from error


def write_manifest(path: Path, known: Mapping[str, str] | None = None) -> None:
    """Flush every file below a directory to disk, and seal them by a manifest with their digests.

    Those with ``known`` digests were flushed by the processes that wrote them.
    """
    digests = dict(known or {})
    for item in sorted(path.rglob("*")):
        name = str(item.relative_to(path))
        if item.is_dir():
            fsync(item)
        elif name not in digests:
            digests[name] = flushed_digest(item)
    write_durably(path / MANIFEST, json.dumps(dict(sorted(digests.items())), indent=1) + "\n")
    fsync(path)


def flushed_digest(file: Path) -> str:
    """Flush a file to disk, and return its digest."""
    fsync(file)
    return file_digest(file)


def verify_checkpoint(path: Path, *, share: slice = slice(None)) -> Path:
    """Check the files of a checkpoint against its manifest, or a ``share`` of them; see `RunDirectory.verify_checkpoint`."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}.")
    for file, digest in list(_manifest(path / MANIFEST).items())[share]:
        if not (path / file).is_file() or file_digest(path / file) != digest:
            raise CheckpointError(
                f"{path / file} is missing or differs from its recorded digest: the checkpoint is damaged. {WAY_OUT}"
            )
    return path


WAY_OUT = "Restore it from a copy. Without one, remove the checkpoint's directory, or start again in another directory."


def _manifest(file: Path) -> dict[str, str]:
    """Return the digests in a manifest.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        digests = read_json(file)
    except (DataError, OSError) as error:
        raise CheckpointError(f"{error} {WAY_OUT}") from None
    named = isinstance(digests, dict) and digests and all(isinstance(digest, str) for digest in digests.values())
    if not named or any(Path(name).is_absolute() or ".." in Path(name).parts for name in digests):
        raise CheckpointError(f"{file} is damaged: it must hold the digests of the files next to it. {WAY_OUT}")
    return dict(digests)
