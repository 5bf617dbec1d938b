"""The sandbox: one call takes a program, its tests and limits, and returns one of six exit statuses.

There are two workers. The *candidate* worker forks a child that runs the program; the *judge* worker forks one that runs
the tests. A fresh socket joins the two children: calls and arguments go one way, plain data come back. Only the judge's
child, which does not contain the program, holds the pipe that reports success.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.sandbox.types import ExitStatus, Isolation, Limits, Program, Result
from selfcorrect.tasks.sandbox.worker import Worker, WorkerError
from selfcorrect.types import Check

GRACE_S = 0.5
"""The extra seconds that the judge's child gets to report its results."""

_STUCK_S = 10.0
"""The further seconds without an answer after which a worker counts as broken."""

_MEMORY_ERRORS = ("MemoryError",)
_REFUSALS = ("PermissionError", "BlockingIOError")
"""The errors that a program gets when the sandbox forbids something."""


class SandboxWarning(UserWarning):
    """A warning that model-written programs run with less isolation than they should."""


class Sandbox(contextlib.AbstractContextManager["Sandbox"]):
    """A sandbox that runs programs one after the other in two warm workers, started with the first program.

    Results depend only on the program, its tests and the limits: every program gets its own process, a private directory
    and the same random numbers. `close` kills the workers, and a later `run` starts new ones. Use it from one thread at a
    time.

    Args:
        packages: packages that tests and programs may import, in addition to the standard library.
    """

    def __init__(
        self, isolation: str = Isolation.FULL, limits: Limits | None = None, packages: Sequence[str] = ()
    ) -> None:
        self._isolation = parse_isolation(isolation)
        self._limits = limits or Limits()
        self._packages = tuple(packages)
        self._cells: tuple[Worker, Worker] | None = None

    def __exit__(self, *raised: object) -> None:
        self.close()

    def start(self) -> tuple[Worker, Worker]:
        """Start the workers if they are not running.

        Raises:
            WorkerError: a worker does not start.
        """
        if self._cells is None:
            candidate = Worker(self._isolation, self._packages)
            try:
                self._cells = candidate, Worker(self._isolation, self._packages)
            except BaseException:
                candidate.close()
                raise
        return self._cells

    def close(self) -> None:
        """Kill the workers and everything that runs in them."""
        for worker in self._cells or ():
            worker.close()
        self._cells = None

    def run(self, program: Program) -> Result:
        """Run a program against its tests."""
        size = len(program.source.encode("utf-8", "surrogatepass"))
        if size > self._limits.source_bytes:
            return Result(
                ExitStatus.REFUSED, error=f"a program of {size:,} bytes; {self._limits.source_bytes:,} are allowed"
            )
        try:
            return self._judge(program)
        except WorkerError as error:
            self.close()
            return Result(ExitStatus.SANDBOX_FAILED, error=str(error))
        except BaseException:  # an interrupt: nobody would read what the workers still send
            self.close()
            raise

    def _judge(self, program: Program) -> Result:
        candidate, judge = self.start()
        ours, report = os.pipe()
        try:
            self._hand_over(program, candidate, judge, report)
            events = _events(ours, self._limits.wall_seconds + GRACE_S + _STUCK_S)
        finally:
            os.close(ours)
        return _result(events, candidate=_finish(candidate), judge=_finish(judge))

    def _hand_over(self, program: Program, candidate: Worker, judge: Worker, report: int) -> None:
        """Send both jobs, then close ``report`` and the socket in any case: the workers hold copies."""
        theirs, judges = socket.socketpair()
        try:
            with theirs, judges:
                candidate.order("candidate", self._limits_of(0.0), {"source": program.source}, [theirs.fileno()])
                tests = {"tests": program.tests, "names": program.names, "preamble": program.preamble}
                judge.order("judge", self._limits_of(GRACE_S), tests, [judges.fileno(), report])
        finally:
            os.close(report)

    def _limits_of(self, grace_s: float) -> dict[str, float]:
        """Return a child's limits, with ``grace_s`` more seconds."""
        limits = self._limits
        return {
            "seconds": limits.seconds + grace_s,
            "wall_seconds": limits.wall_seconds + grace_s,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "files": limits.files,
            "answer_bytes": limits.answer_bytes,
        }


def _events(fd: int, limit_s: float) -> list[dict[str, Any]]:
    """Return everything that the judge's child reported until its end."""
    deadline = time.monotonic() + limit_s
    received = b""
    while True:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise WorkerError("the judge does not end")
        part = os.read(fd, 1 << 16)
        if not part:
            break
        received += part
    return [json.loads(line) for line in received[: received.rfind(b"\n") + 1].splitlines()]


def _finish(worker: Worker) -> dict[str, Any]:
    worker.send("stop")
    return worker.receive(_STUCK_S)


# --- from events to a result ------------------------------------------------------------------------


def _result(events: Sequence[Mapping[str, Any]], *, candidate: Mapping[str, Any], judge: Mapping[str, Any]) -> Result:
    checks, failures = _checks(events)
    end = events[-1] if events and "end" in events[-1] else {"end": "late" if judge["late"] else "judge gone"}
    ending, error = _ending(end, failures, candidate, judge)
    return Result(ending, checks, error, candidate["memory_bytes"], candidate["cpu_s"])


def _checks(events: Sequence[Mapping[str, Any]]) -> tuple[tuple[Check, ...], Sequence[Mapping[str, Any]]]:
    """Return every check with its outcome, and the failures in order of occurrence."""
    labels: list[str] = next((event["labels"] for event in events if "labels" in event), [])
    checks = [Check(label, "not run") for label in labels]
    failures: list[Mapping[str, Any]] = []
    for event in events:
        if "check" not in event:
            continue
        place = event["check"]
        if "error" in event:
            failures.append({**event, "label": labels[place]})
            checks[place] = Check(labels[place], "failed", _in_words(event))
        elif checks[place].outcome == "not run":
            checks[place] = Check(labels[place], "passed")
    return tuple(checks), failures


def _ending(  # noqa: PLR0911
    end: Mapping[str, Any],
    failures: Sequence[Mapping[str, Any]],
    candidate: Mapping[str, Any],
    judge: Mapping[str, Any],
) -> tuple[ExitStatus, str]:
    if failures:  # the first one decides, as if the tests stopped there
        first = failures[0]
        return _kind(first), f"assert {first['label']}: {_in_words(first)}"
    match end["end"]:
        case "complete":
            return ExitStatus.PASSED, ""
        case "raised":
            return _kind(end), _in_words(end)
        case "unreached":
            return ExitStatus.FAILED, "no assertion of the tests was reached"
        case "tests":
            return ExitStatus.SANDBOX_FAILED, f"the tests cannot be run: {_in_words(end)}"
        case "late":
            return ExitStatus.TIMED_OUT, "the tests did not end in time"
        case "gone" if end["message"]:
            return ExitStatus.REFUSED, end["message"]
        case "gone":
            return _death(candidate)
    return ExitStatus.SANDBOX_FAILED, f"the judge ended with {_status(judge['exit'])}"


def _kind(event: Mapping[str, Any]) -> ExitStatus:
    """Return the exit status for an error; memory errors and refusals count only if the program raised them."""
    if event["program"] and event["error"] in _MEMORY_ERRORS:
        return ExitStatus.OUT_OF_MEMORY
    if event["program"] and event["error"] in _REFUSALS:
        return ExitStatus.REFUSED
    return ExitStatus.FAILED


def _death(candidate: Mapping[str, Any]) -> tuple[ExitStatus, str]:
    """Return the exit status of a program whose process ended before the tests did."""
    code = candidate["exit"]
    if candidate["late"] or code == -signal.SIGXCPU:
        return ExitStatus.TIMED_OUT, "the program did not end in time"
    if code == -signal.SIGSYS:
        return ExitStatus.REFUSED, "the program made a forbidden system call"
    if code == -signal.SIGKILL and not candidate["killed"]:
        return ExitStatus.OUT_OF_MEMORY, "the program was killed by the system"
    return ExitStatus.FAILED, f"the program ended by itself with {_status(code)}, before its tests did"


def _in_words(event: Mapping[str, Any]) -> str:
    return f"{event['error']}: {event['message']}" if event["message"] else str(event["error"])


def _status(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


# --- is the isolation there? ------------------------------------------------------------------------

_PROBE = """
import os, socket

def found():
    holes = []
    for name, attempt in {
        "a connection can be opened": lambda: socket.socket(),
        "a process can be started": os.fork,
        "the root can be written": lambda: open("/probe", "w"),
        "processes can be seen": lambda: os.listdir("/proc"),
        "home directories can be seen": lambda: os.listdir("/home"),
    }.items():
        try:
            attempt()
        except OSError:
            continue
        holes.append(name)
    return holes
"""


def parse_isolation(value: str) -> Isolation:
    """Return the isolation called ``value``.

    Raises:
        ConfigError: there is no such isolation.
    """
    try:
        return Isolation(value)
    except ValueError:
        raise ConfigError(
            f'sandbox = {value!r}: choose "full" (namespaces, system call filter, limits) or "process" (limits only).'
        ) from None


def require_isolation(value: str) -> None:
    """Make sure, before any work, that this isolation works, by running a program; warn about ``process``.

    Raises:
        ConfigError: it does not work; the message says what to install or set.
    """
    isolation = parse_isolation(value)
    if isolation is Isolation.PROCESS:
        _warn_once()
    _probe(isolation)


@lru_cache(maxsize=1)
def _warn_once() -> None:
    warnings.warn(
        'sandbox = "process": model-written programs run with resource limits only. They can read and delete what you '
        "can, and use the network. Use it only where nothing can be harmed, such as in a container; see docs/code.md.",
        SandboxWarning,
        stacklevel=4,
    )


@lru_cache
def _probe(isolation: Isolation) -> None:
    with Sandbox(isolation, Limits(seconds=30.0, wall_seconds=60.0)) as sandbox:
        tests = "assert found() == []" if isolation is Isolation.FULL else "assert callable(found)"
        result = sandbox.run(Program(_PROBE, tests, ("found",)))
    if not result.passed:
        raise ConfigError(
            f"the sandbox does not work here: {result.error}. Full isolation needs bubblewrap, pyseccomp, and Linux with "
            "unprivileged user namespaces (in a container: one that allows them; on Ubuntu from 23.10: sysctl "
            'kernel.apparmor_restrict_unprivileged_userns=0). Or set the task\'s option sandbox = "process", which has '
            "resource limits only."
        )
