"""How a command behaves in several processes: who speaks, and which commands refuse to start more than once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from selfcorrect.cli.console import Flags, explained, say
from selfcorrect.distributed.launcher import launched
from selfcorrect.errors import ConfigError, ProcessError

if TYPE_CHECKING:
    from selfcorrect.distributed.world import World

SHARING = ("train", "eval")
"""The commands that share their work between the processes of a launcher."""


class Said(BaseException):
    """The end of a process whose message is said. Not an `Exception`, so that nothing explains it again."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@contextlib.contextmanager
def processes(flags: Flags, *, timeout_s: int | None = None) -> Iterator[World]:
    """Join the processes that a launcher started; the first one explains an error that all of them have.

    They end after it has spoken, because a launcher kills all of them as soon as one has ended.
    """
    from selfcorrect.distributed.world import TIMEOUT_S, agreed, joined

    with joined(timeout_s=timeout_s or TIMEOUT_S) as world:
        try:
            yield world
        except Exception as error:
            if world.size == 1 or not agreed(error):
                raise
            status = explained(error, debug=flags.debug, quietly=not world.first)
            with contextlib.suppress(ProcessError):
                world.gather(None)
            raise Said(status) from None


def refuse_several_processes(command: str) -> None:
    """Refuse a command that every process would repeat from its beginning."""
    count = launched()
    if count and command not in SHARING:
        message = (
            f"`{command}` runs in one process, but a launcher started {count}: start it without torchrun. "
            f"Only {' and '.join(f'`{name}`' for name in SHARING)} share their work between several processes."
        )
        say_once(f"error: {message}")
        raise Said(ConfigError.exit_status)


def say_once(message: str) -> None:
    """Say what all processes have to say, before any of them ends."""
    if not launched():
        say(message)
        return
    from selfcorrect.distributed.world import joined

    with joined() as world:
        if world.first:
            say(message)
