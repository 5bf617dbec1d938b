"""Programs that try to break out, to break the run, or to fake success: each is contained, and none passes.

A program of ``tests/hostile`` names in its first line the endings that it may have, and whether it is slow. Where an attack
works, it calls ``escaped()``, which is undefined everywhere: the name in the error gives it away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfcorrect.tasks.sandbox import ExitStatus, Limits, Program, Result, Sandbox

pytestmark = pytest.mark.sandbox
CORPUS = sorted((Path(__file__).parents[1] / "hostile").glob("*.py"))
LIMITS = Limits(seconds=0.5, wall_seconds=4.0, memory_bytes=256 * 2**20)
TESTS = """
expected = {3: 7, 10: 21, -4: -7}
assert f(3) == expected[3]
for value in map(f, expected):
    assert value in (7, 21, -7)
assert [f(x) for x in expected] == list(expected.values())
assert not f(5) != 11
"""
HONEST = "def f(x):\n    return 2 * x + 1\n"


def slow(path: Path) -> bool:
    """Whether a program waits until the wall-clock time is over."""
    return path.read_text().partition("\n")[0].endswith("; slow")


def play(sandbox: Sandbox, source: str) -> Result:
    return sandbox.run(Program(source, TESTS, ("f",)))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    os.environ["CANARY"] = "a secret of the user's"
    with Sandbox(limits=LIMITS) as sandbox:
        yield sandbox
    del os.environ["CANARY"]


def test_the_corpus_is_large_and_an_honest_program_passes_it(sandbox: Sandbox) -> None:
    assert len(CORPUS) >= 140
    result = play(sandbox, HONEST)
    assert result.ending is ExitStatus.PASSED and len(result.checks) == 4


@pytest.mark.pitfall(13)
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow) if slow(path) else path for path in CORPUS],
    ids=lambda p: p.stem,
)
def test_a_hostile_program_is_contained(path: Path, sandbox: Sandbox) -> None:
    first, _, source = path.read_text().partition("\n")
    allowed = {ExitStatus(word.strip()) for word in first.removeprefix("# ending:").removesuffix("; slow").split(",")}
    assert not allowed & {ExitStatus.PASSED, ExitStatus.SANDBOX_FAILED}
    cells = [cell.pid for cell in sandbox.start()]
    result = play(sandbox, source)
    assert result.ending in allowed, result
    assert "escaped" not in result.error
    assert result.memory_bytes <= LIMITS.memory_bytes
    assert len(repr(result)) < 10_000
    repr(result).encode()
    assert play(sandbox, HONEST).passed, "the next program suffers"
    assert [cell.pid for cell in sandbox.start()] == cells, "the warm parents had to be started again"


# --- thieves: programs that look for an earlier correct one in the memory that they inherit ---------------

THIEVES = [path for path in CORPUS if path.stem.startswith("thief_")]
PATIENT = Limits(seconds=10.0, wall_seconds=60.0)


def correct(number: int) -> str:
    """A correct program of ordinary length for a problem of its own: ``a * x + b``."""
    special = "".join(f"    if x == {1000 + i}:\n        total += {i} - {i}\n" for i in range(number % 5 * 3))
    return (
        f"def f(x):\n    total = 0\n    for _ in range({number + 3}):\n        total += x\n"
        f"    total += {7 * number + 1}\n{special}    return total\n"
    )


def stolen(thief: Path, isolation: str, problems: int) -> list[int]:
    """The problems that a thief solves, each just after a correct program by the same workers."""
    found = []
    with Sandbox(isolation, PATIENT) as sandbox:
        for number in range(problems):
            a, b = number + 3, 7 * number + 1
            tests = f"assert f(3) == {3 * a + b}\nassert f(10) == {10 * a + b}"
            assert sandbox.run(Program(correct(number), tests, ("f",))).passed
            result = sandbox.run(Program(thief.read_text(), tests, ("f",)))
            assert result.ending in (ExitStatus.FAILED, ExitStatus.PASSED), result
            found += [number] if result.passed else []
    return found


@pytest.mark.pitfall(13)
@pytest.mark.parametrize("isolation", ["full", "process"])
@pytest.mark.parametrize("thief", THIEVES, ids=lambda path: path.stem)
def test_a_program_cannot_steal_an_earlier_one(thief: Path, isolation: str) -> None:
    assert len(THIEVES) >= 2
    assert stolen(thief, isolation, 6) == []


@pytest.mark.nightly
@pytest.mark.parametrize("thief", THIEVES, ids=lambda path: path.stem)
def test_nothing_is_stolen_in_200_problems(thief: Path) -> None:
    assert stolen(thief, "full", 200) == []
