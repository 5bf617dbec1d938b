"""Programs that try to break out, to break the run, or to fake success: each is contained, and none passes.

A program of ``tests/hostile`` names in its first line the endings that it may have. Where an attack works, it calls
``escaped()``, which is undefined everywhere: the name in the error gives it away.
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


def play(sandbox: Sandbox, source: str) -> Result:
    return sandbox.run(Program(source, TESTS, ("f",)))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    os.environ["CANARY"] = "a secret of the user's"
    with Sandbox(limits=LIMITS) as sandbox:
        yield sandbox
    del os.environ["CANARY"]


def test_the_corpus_is_large_and_an_honest_program_passes_it(sandbox: Sandbox) -> None:
    assert len(CORPUS) >= 60
    result = play(sandbox, HONEST)
    assert result.ending is ExitStatus.PASSED and len(result.checks) == 4


@pytest.mark.pitfall(13)
@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_hostile_program_is_contained(path: Path, sandbox: Sandbox) -> None:
    first, _, source = path.read_text().partition("\n")
    allowed = {ExitStatus(word.strip()) for word in first.removeprefix("# ending:").split(",")}
    assert not allowed & {ExitStatus.PASSED, ExitStatus.SANDBOX_FAILED}
    cells = [cell.pid for cell in sandbox.start()]
    result = play(sandbox, source)
    assert result.ending in allowed, result
    assert "escaped" not in result.error
    assert result.memory_bytes <= LIMITS.memory_bytes
    assert play(sandbox, HONEST).passed, "the next program suffers"
    assert [cell.pid for cell in sandbox.start()] == cells, "the warm parents had to be started again"
