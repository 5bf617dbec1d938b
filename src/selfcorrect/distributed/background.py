"""Work of all processes at once beside their main work, such as writing files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from selfcorrect.distributed.world import World


class Background:
    """A thread for one piece of work at a time, and a group of the processes for what the work exchanges.

    All processes call its methods together. The work raises an error of any process in all of them (`World.together`), so it
    ends everywhere in the same way.
    """

    def __init__(self, world: World, *, timeout_s: float) -> None:
        self.world = world
        self.apart = world.apart(timeout_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="selfcorrect-background")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[World], None]) -> None:
        """Begin a piece of work, which gets the processes with a group of its own; the one before must have been waited for."""
        assert self._work is None, "the work before has not been waited for"
        self._work = self._thread.submit(work, self.apart)

    def ended(self) -> bool:
        """Return whether the work has ended in some process, so that it ends in all of them now."""
        return self._work is not None and bool(self.world.any(self._work.done()))

    def wait(self) -> None:
        """Wait for the work and raise its error."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """Wait for the work, whatever becomes of it."""
        self._thread.shutdown(wait=True)
