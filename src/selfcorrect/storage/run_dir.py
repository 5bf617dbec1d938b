"""The run directory: the only module that knows the layout of a run on disk and keeps saved data safe.

    config.toml            resolved settings                  metrics.jsonl    a line per step
    timings.jsonl          seconds by phase                   episodes/        episodes of training and evaluation
    checkpoints/NAME/      plain Hugging Face directories     tensorboard/     rebuilt from the metrics on resume
    summary.json           results of the finished run

A checkpoint is written next to its final path, flushed to disk file by file, sealed by a manifest with the SHA-256 of
every file, and then renamed. Whenever a crash happens, a checkpoint is whole or absent. It records the length of every
log, and resuming truncates the logs to that length.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from selfcorrect.errors import CheckpointError, RunDirectoryError
from selfcorrect.storage.files import (
    OWN_TRACES,
    file_digest,
    fsync,
    json_line,
    locked,
    refusals,
    write_atomically,
    write_durably,
)

MANIFEST = "manifest.json"
WRITING = ".writing-"
FOLDERS = ("checkpoints", "episodes")
EXACT_LOGS = ("metrics.jsonl", "timings.jsonl")


class RunDirectory:
    """One run on disk. Use `create` or `open`; while it is open, no other process can open it."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, config_toml: str) -> RunDirectory:
        """Start a run in a new or empty directory.

        Raises:
            RunDirectoryError: the directory is not empty, or is not writable.
        """
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
            RunDirectoryError: the directory holds no run, is not writable, or is in use by another process.
        """
        if not (path / "config.toml").is_file():
            raise RunDirectoryError(
                f"{path} is not a run, because it has no config.toml. Start one with `selfcorrect train CONFIG --out {path}`."
            )
        with refusals(path):
            run = cls(path, locked(path))
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            for torn in (path / "checkpoints").glob(f"{WRITING}*"):
                shutil.rmtree(torn)
        return run

    def close(self) -> None:
        self._lock.close()

    # -- logs ------------------------------------------------------------------------------------------------------

    def append(self, log: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines to a log (``metrics.jsonl``, ``episodes/NAME.jsonl``)."""
        with refusals(self.path), (self.path / log).open("a", encoding="utf-8") as file:
            file.writelines(json_line(line) for line in lines)

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
                    f"{path} has {now.get(log, 0)} bytes, but had {sizes[log]} at the checkpoint: it was changed by hand. "
                    "Restore it, or start again in another directory."
                )
            if log in now:
                os.truncate(path, sizes[log])

    def forget_stage(self, stage: str) -> None:
        """Remove the final evaluation and the saved model of a stage before it is trained longer."""
        if self.has_checkpoint(stage):
            self.remove_checkpoint(stage)
        for file in [self.path / "summary.json", *(self.path / "episodes").glob(f"eval-{stage}-*.jsonl")]:
            file.unlink(missing_ok=True)

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
        place = self.checkpoint_path(name)
        writing = place.with_name(WRITING + name)
        with refusals(self.path):
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()
            try:
                fill(writing)
            except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these when a write fails
                raise OSError(f"{error}") from error
            digests = {}
            for file in sorted(p for p in writing.rglob("*") if p.is_file()):
                fsync(file)
                digests[str(file.relative_to(writing))] = file_digest(file)
            write_durably(writing / MANIFEST, json.dumps(digests, indent=1) + "\n")
            fsync(writing)
            before = place.with_name(f"{WRITING}before-{name}")  # never half-removed under its final name
            shutil.rmtree(before, ignore_errors=True)
            if place.exists():
                place.rename(before)
            writing.rename(place)
            fsync(place.parent)
            shutil.rmtree(before, ignore_errors=True)
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
        shutil.rmtree(doomed, ignore_errors=True)
        self.checkpoint_path(name).rename(doomed)
        shutil.rmtree(doomed)


def check_free(path: Path) -> None:
    """Make sure that ``path`` is a new or empty directory, and writable.

    Raises:
        RunDirectoryError: the directory is not empty, or is not writable.
    """
    with refusals(path):
        path.mkdir(parents=True, exist_ok=True)
        present = sorted(item.name for item in path.iterdir() if item.name not in OWN_TRACES)
        if present:
            what = "another run" if "config.toml" in present else f"other files ({', '.join(present[:3])})"
            raise RunDirectoryError(
                f"{path} holds {what}: choose another directory, or continue a run with `selfcorrect train --resume {path}`."
            )
        probe = path / ".lock"
        probe.touch()


def verify_checkpoint(path: Path) -> Path:
    """Check every file of a checkpoint against its manifest; see `RunDirectory.verify_checkpoint`."""
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}.")
    for file, digest in json.loads((path / MANIFEST).read_text()).items():
        if not (path / file).is_file() or file_digest(path / file) != digest:
            raise CheckpointError(
                f"{path / file} is missing or differs from its recorded digest: the checkpoint is damaged."
            )
    return path
