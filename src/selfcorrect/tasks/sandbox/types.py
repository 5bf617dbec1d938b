"""What goes into a sandbox and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selfcorrect.errors import ConfigError
from selfcorrect.types import Check


class Isolation(StrEnum):
    """``FULL``: namespaces, a system call filter and limits. ``PROCESS``: resource limits only."""

    FULL = "full"
    PROCESS = "process"


class ExitStatus(StrEnum):
    """What became of a program. Only ``PASSED`` is success; ``SANDBOX_FAILED`` says nothing about the program.

    ``REFUSED``: it asked for something that is not allowed, or broke the protocol, or is too long to be run.
    """

    PASSED = "passed"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    OUT_OF_MEMORY = "out of memory"
    REFUSED = "refused"
    SANDBOX_FAILED = "the sandbox failed"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    ``seconds`` is processor time, so that a busy machine changes no result; ``wall_seconds``, for programs that wait,
    is by the clock, from the first line to the last answer. ``memory_bytes`` is address space, the interpreter's 30 MB
    included; ``file_bytes`` and ``files`` are its private directory's; ``source_bytes`` is the
    length of a program, ``answer_bytes`` of one returned value on the wire.
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
                f"a program may take {self.seconds} s of processor time and {self.wall_seconds} s by the clock: set the "
                "first above 0, the second at least as high, and both up to 600."
            )
        if self.memory_bytes < 64 * 2**20:
            raise ConfigError(
                f"the memory limit of a program is {self.memory_bytes} bytes: Python itself needs 64 MiB to run one."
            )


@dataclass(frozen=True, slots=True)
class Program:
    """A program nobody trusts, and tests that are trusted to judge it.

    ``tests`` is Python; every ``assert`` in it is one check. The names in ``names``, and names that neither the tests
    nor ``preamble`` define, are the program's. ``preamble`` is trusted code that the tests may call.
    """

    source: str
    tests: str
    names: tuple[str, ...] = ()
    preamble: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended, every check of its tests, and the first error in words."""

    ending: ExitStatus
    checks: tuple[Check, ...] = ()
    error: str = ""
    memory_bytes: int = 0
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        return self.ending is ExitStatus.PASSED
