"""How every command behaves: exit statuses, messages instead of tracebacks, signals, closed pipes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

from selfcorrect.distributed.launcher import speaks
from selfcorrect.errors import SelfCorrectError, first_line
from selfcorrect.printable import printable, printable_json

BAD_INPUT, FAILURE = 2, 1
_USER_OS_ERRORS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


COMMON = "Every command takes -q (no progress), -v (more progress), --json (result as JSON) and --debug (tracebacks)."


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, which takes an s unless the number is 1."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


@dataclass
class Flags:
    """The flags that every command takes, anywhere on the line."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    debug: bool = False

    @classmethod
    def taken_from(cls, arguments: list[str]) -> tuple[Flags, list[str]]:
        """Split the arguments into the flags and the rest."""
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
    """A signal that arrived while there was nothing to save. Not an `Exception`, so that no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """A handler of SIGINT and SIGTERM: the first signal asks the work to stop, the second quits at once.

    Running work polls `should_stop`. Before the first poll there is nothing to save, so the first signal quits at once.
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
        if speaks():
            os.write(2, b"selfcorrect: stopping after this step or batch; a second signal quits immediately\n")


def guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Run a command; turn every error into one message on stderr and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a model may write what the terminal's encoding lacks
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        say("stopped before the work began. Nothing is lost; start it again.")
        return 128 + stop.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        return explained(error, debug=debug)
    return status


def say(message: str) -> None:
    """Print a line on stderr, see `echo`; a closed stderr does not stop the work."""
    with contextlib.suppress(OSError):
        print(f"selfcorrect: {printable(message)}", file=sys.stderr, flush=True)


def echo(text: str) -> None:
    """Print to stdout. Every command prints by this, `echo_json` or `options.print_text`: stored text, a server's answer or a
    file's name may hold escape sequences, which must not reach the terminal."""
    print(printable(text), flush=True)


def echo_json(value: Any, **how: Any) -> None:
    """Print a value as JSON."""
    print(printable_json(json.dumps(value, ensure_ascii=False, **how)), flush=True)


def explained(error: Exception, *, debug: bool, quietly: bool = False) -> int:
    """Return the exit status of an error after telling the user about it, ``quietly`` only by a traceback with ``debug``."""
    if debug:
        traceback.print_exception(error)
    message, status = _explanation(error, debug=debug)
    if not quietly:
        say(message)
    return status


def _explanation(error: Exception, *, debug: bool) -> tuple[str, int]:
    if isinstance(error, SelfCorrectError):
        # 130 and 143 are not errors: the user asked for the stop.
        return str(error) if error.exit_status > 128 else f"error: {error}", error.exit_status
    if isinstance(error, OSError) and error.filename is not None:
        status = BAD_INPUT if isinstance(error, _USER_OS_ERRORS) else FAILURE
        return f"error: {error.strerror or type(error).__name__}: {error.filename}", status
    reason = first_line(error).rstrip(".")
    if _out_of_memory(error):
        return (
            "error: out of memory. Lower rollout.max_num_seqs and optimizer.micro_batch_tokens (train) or --max-num-seqs (eval): "
            f"they affect memory and speed only. ({reason})"
        ), FAILURE
    again = "" if debug else " This is a bug: run the command again with --debug and report what it prints."
    return f"error: unexpected {type(error).__name__}: {reason}.{again}", FAILURE


def _out_of_memory(error: Exception) -> bool:
    # By name, because torch may not be imported. Its CPU allocator raises a plain RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
