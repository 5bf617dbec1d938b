"""A run's directory among several processes: the first one writes, all of them read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from selfcorrect.distributed.world import World
from selfcorrect.errors import RunDirectoryError
from selfcorrect.storage.files import write_atomically
from selfcorrect.storage.run_dir import RunDirectory

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
        """Return the path of a checkpoint after checking every file; see `RunDirectory.verify_checkpoint`."""
        self._first(lambda own: own.verify_checkpoint(name))
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

    def remove_checkpoint(self, name: str) -> None:
        self._first(lambda own: own.remove_checkpoint(name))

    def _first(self, work: Callable[[RunDirectory], T]) -> T:
        """Do the work in the first process and return its result in all of them."""

        def done() -> T:
            assert self._own is not None
            return work(self._own)

        return self.world.from_first(done)
