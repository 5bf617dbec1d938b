"""A run's directory among several processes: the first one writes, all of them read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from selfcorrect.distributed.world import World
from selfcorrect.errors import CheckpointError, RunDirectoryError
from selfcorrect.storage.files import refusals, write_atomically
from selfcorrect.storage.run_dir import WRITING, RunDirectory, filling, flushed_digest, verify_checkpoint

T = TypeVar("T")


class SharedRunDirectory:
    """The directory of a run. All processes call its methods in the same order; only the first one changes files.

    Every method returns when the change is on disk, so that any process may read it next.
    """

    def __init__(self, path: Path, world: World, directory: RunDirectory | None) -> None:
        self.path, self.world, self._own = path, world, directory

    @classmethod
    def create(cls, path: Path, config_toml: str, world: World) -> SharedRunDirectory:
        """Start a run; see `RunDirectory.create`."""
        return cls._opened(path, world, lambda: RunDirectory.create(path, config_toml))

    @classmethod
    def open(cls, path: Path, world: World) -> SharedRunDirectory:
        """Open a run to continue it; see `RunDirectory.open`."""
        return cls._opened(path, world, lambda: RunDirectory.open(path))

    @classmethod
    def _opened(cls, path: Path, world: World, make: Callable[[], RunDirectory]) -> SharedRunDirectory:
        own: RunDirectory | None = None
        with world.together():
            own = make() if world.first else None
        with world.together():
            if not (path / "config.toml").is_file():
                raise RunDirectoryError(
                    f"{path}, which the first process opened, is not there for process {world.rank}: all processes of a run "
                    "need one shared directory."
                )
        return cls(path, world, own)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    # -- what is read ----------------------------------------------------------------------------------------------

    def checkpoint_path(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def has_checkpoint(self, name: str) -> bool:
        return self._first(lambda own: own.has_checkpoint(name))

    def checkpoints(self) -> list[str]:
        return self._first(lambda own: own.checkpoints())

    def verify_checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint; each process checks its share of the files. See `RunDirectory.verify_checkpoint`."""
        damage: str | None = None
        try:
            verify_checkpoint(self.checkpoint_path(name), share=slice(self.world.rank, None, self.world.size))
        except CheckpointError as error:
            damage = str(error)
        found = [text for text in self.world.gather(damage) if text]
        with self.world.together():
            if found:
                raise CheckpointError(found[0])
        return self.checkpoint_path(name)

    def log_sizes(self) -> dict[str, int]:
        return self._first(lambda own: own.log_sizes())

    def has(self, file: str) -> bool:
        """Return whether the run has a file of this name."""
        return self._first(lambda own: (own.path / file).is_file())

    # -- what is written -------------------------------------------------------------------------------------------

    def append(self, log: str, lines: Iterable[Mapping[str, Any]]) -> None:
        self._first(lambda own: own.append(log, lines))

    def write(self, file: str, text: str) -> None:
        """Write a small file of the run atomically."""
        self._first(lambda own: write_atomically(own.path / file, text))

    def cut_logs(self, sizes: Mapping[str, int]) -> None:
        self._first(lambda own: own.cut_logs(sizes))

    def forget_stage(self, stage: str) -> None:
        self._first(lambda own: own.forget_stage(stage))

    def save_checkpoint(self, name: str, fill: Callable[[Path], None]) -> Path:
        self._first(lambda own: own.save_checkpoint(name, fill))
        return self.checkpoint_path(name)

    def save_together(
        self, name: str, fill: Callable[[Path, World], Sequence[Path]], world: World | None = None
    ) -> Path:
        """Write a checkpoint atomically in all processes: each writes its files, and the first one seals them.

        ``fill`` writes into a new directory and returns the files that this process has to flush and to hash; the first one
        does so for all others. It raises its errors in all processes. ``world`` are the same processes where they exchange
        something apart, in the background.
        """
        world = world or self.world
        writing = self.checkpoint_path(WRITING + name)
        self._first(lambda own: own.begin_checkpoint(name), world)
        with world.together(), filling(self.path):
            own_files = fill(writing, world)
        with world.together(), refusals(self.path):
            digests = {str(file.relative_to(writing)): flushed_digest(file) for file in own_files}
        known = {file: digest for part in world.gather(digests) for file, digest in part.items()}
        self._first(lambda own: own.finish_checkpoint(name, known), world)
        return self.checkpoint_path(name)

    def remove_checkpoint(self, name: str) -> None:
        self._first(lambda own: own.remove_checkpoint(name))

    def _first(self, work: Callable[[RunDirectory], T], world: World | None = None) -> T:
        """Do the work in the first process and return its result in all of them."""

        def done() -> T:
            assert self._own is not None
            return work(self._own)

        return (world or self.world).from_first(done)
