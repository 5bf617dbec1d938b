"""The inputs and outputs of a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selfcorrect.errors import ConfigError
from selfcorrect.types import Check


class Isolation(StrEnum):
    """The level of isolation: ``FULL`` is namespaces, a system call filter and limits, ``PROCESS`` limits only."""

    FULL = "full"
    PROCESS = "process"


class ExitStatus(StrEnum):
    """How a program ended. Only ``PASSED`` is success; ``SANDBOX_FAILED`` says nothing about the program.

    A ``REFUSED`` program tried something forbidden, broke the protocol, or is too long to be run.
    """

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    REFUSED = "refused"
    SANDBOX_FAILED = "the sandbox failed"


@dataclass(frozen=True, slots=True)
class Limits:
    """The resource limits of one program.

    ``seconds`` is CPU time, so that a busy machine changes no result. ``wall_seconds`` is wall-clock time from the first
    line to the last answer, for programs that wait. ``memory_bytes`` is address space, including the interpreter's 30 MB.
    ``file_bytes`` and ``files`` limit the private directory, ``source_bytes`` the length of a program, and
    ``answer_bytes`` the length of one returned value on the wire.
    """

    seconds: float = 3.0
    wall_seconds: float = 4.0
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 16 * 2**20
    files: int = 256
    source_bytes: int = 2**18
    answer_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= self.wall_seconds <= 600:
            raise ConfigError(
                f"the limits of a program are {self.seconds} s of CPU time and {self.wall_seconds} s of wall-clock time: "
                "set the first above 0, the second at least as high, and both to 600 at most."
            )
        if not 64 * 2**20 <= self.memory_bytes <= 2**40:
            raise ConfigError(
                f"the memory limit of a program is {self.memory_bytes} bytes, but Python needs 64 MiB to run one, and no "
                "program needs more than 1 TiB: set memory_mb in between."
            )


@dataclass(frozen=True, slots=True)
class Program:
    """An untrusted program and the trusted tests that judge it.

    ``tests`` is Python; every ``assert`` in it is one check. The program must define the names in ``names`` and every name
    that neither the tests nor ``preamble`` define. ``preamble`` is trusted code that the tests may call.
    """

    source: str
    tests: str
    names: tuple[str, ...] = ()
    preamble: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The exit status of a program, every check of its tests, and the first error as text."""

    ending: ExitStatus
    checks: tuple[Check, ...] = ()
    error: str = ""
    memory_bytes: int = 0
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.ending is ExitStatus.PASSED
