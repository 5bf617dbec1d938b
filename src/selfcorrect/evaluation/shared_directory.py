"""An evaluation's directory among several processes: the first one opens, locks and writes it, the others never touch it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selfcorrect.distributed.world import World
from selfcorrect.storage.evaluation_dir import EvaluationDirectory

T = TypeVar("T")


class SharedEvaluationDirectory:
    """The directory of an evaluation. All processes call its methods in the same order; see `EvaluationDirectory`."""

    def __init__(self, path: Path, world: World, own: EvaluationDirectory | None) -> None:
        self.episodes = path / "episodes"
        self.world, self._own = world, own

    @classmethod
    @contextmanager
    def open(cls, path: Path, world: World) -> Iterator[SharedEvaluationDirectory]:
        """Open a directory that is new, empty or holds an evaluation."""
        with ExitStack() as stack:
            own: EvaluationDirectory | None = None
            with world.together():
                own = stack.enter_context(EvaluationDirectory.open(path)) if world.first else None
            yield cls(path, world, own)

    @property
    def finished(self) -> bool:
        return self._first(lambda own: own.finished)

    def check(self, known: Mapping[str, Any]) -> None:
        self._first(lambda own: own.check(known))

    def claim(self, identity: Mapping[str, Any]) -> None:
        self._first(lambda own: own.claim(identity))

    def finish(self, results: Mapping[str, Any], seconds: float, origin: Mapping[str, Any]) -> None:
        self._first(lambda own: own.finish(results, seconds, origin))

    def _first(self, work: Callable[[EvaluationDirectory], T]) -> T:
        """Do the work in the first process and return its result in all of them."""

        def done() -> T:
            assert self._own is not None
            return work(self._own)

        return self.world.from_first(done)
