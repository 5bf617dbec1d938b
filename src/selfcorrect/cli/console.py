"""The command line's manners: exit statuses, messages instead of tracebacks, signals, closed pipes, the environment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from selfcorrect.errors import SelfCorrectError

BAD_INPUT, FAILURE = 2, 1
_USER_OS_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


COMMON = "Every command takes -q (no progress), -v (more of it), --json (the result as JSON) and --debug (tracebacks)."


@dataclass
class Flags:
    """What every command takes, anywhere on the line."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    debug: bool = False

    @classmethod
    def taken_from(cls, arguments: list[str]) -> tuple[Flags, list[str]]:
        """The flags among the arguments, and the other arguments."""
        names = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
        names |= {"--json": "json", "--debug": "debug"}
        end = arguments.index("--") if "--" in arguments else len(arguments)
        flags, rest = cls(), []
        for argument in arguments[:end]:
            if argument in names:
                setattr(flags, names[argument], True)
            else:
                rest.append(argument)
        return flags, rest + arguments[end:]


class Stopped(BaseException):
    """A signal that came while there was nothing to save. Not an `Exception`, so that no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """The first SIGINT or SIGTERM asks the work to stop, a second one quits at once.

    Work that has begun asks `should_stop` now and then; until it has asked once there is nothing to finish or to
    save, and the first signal ends it right away.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def should_stop(self) -> int | None:
        self._asked = True
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if not self._asked:
            raise Stopped(number)
        os.write(2, b"selfcorrect: stopping after this step; a second signal quits at once\n")


def guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Do the work of a command; whatever goes wrong becomes one message on stderr and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a model may write what the terminal's encoding lacks
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads on (`| head`). Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        say("stopped before the work began; nothing is lost, start it again.")
        return 128 + stop.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explained(error, debug=debug)
    return status


def say(message: str) -> None:
    """A line on stderr; a stderr that nobody reads any more is no reason to stop the work."""
    with contextlib.suppress(OSError):
        print(f"selfcorrect: {message}", file=sys.stderr, flush=True)


def _explained(error: Exception, *, debug: bool) -> int:
    if isinstance(error, SelfCorrectError):
        # 130 and 143 are no errors: somebody asked for the stop.
        say(str(error) if error.exit_status > 128 else f"error: {error}")
        return error.exit_status
    if isinstance(error, OSError) and error.filename is not None:
        say(f"error: {error.strerror or type(error).__name__}: {error.filename}")
        return BAD_INPUT if isinstance(error, _USER_OS_ERRORS) else FAILURE
    if _out_of_memory(error):
        say(
            "error: out of memory. Lower rollout.max_num_seqs and optimizer.micro_batch_tokens (train) or --max-num-seqs (eval): "
            f"they change memory and speed only. ({_first_line(error)})"
        )
        return FAILURE
    again = "" if debug else " This is a bug: run it again with --debug and report what it prints."
    say(f"error: unexpected {type(error).__name__}: {_first_line(error)}.{again}")
    return FAILURE


def _out_of_memory(error: Exception) -> bool:
    # By name, as torch may not be imported. Its allocator for the CPU raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
