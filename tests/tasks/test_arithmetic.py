"""Test the task `arithmetic`: problems, splits, verdicts, errors."""

from __future__ import annotations

from typing import Any

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.tasks import get_task
from selfcorrect.tasks.arithmetic import ArithmeticTask
from selfcorrect.types import Outcome, Problem, Split


def test_every_problem_of_the_ranges_is_in_one_split() -> None:
    task = ArithmeticTask(ranges={"-": [[20, 29], [1, 9]], "*": [[2, 3], [5, 6]]})
    found = [problem for split in Split for problem in task.problems(split, seed=0)]
    expected = {f"{a} - {b} = ?": str(a - b) for a in range(20, 30) for b in range(1, 10)}
    expected |= {"2 * 5 = ?": "10", "2 * 6 = ?": "12", "3 * 5 = ?": "15", "3 * 6 = ?": "18"}
    assert {problem.prompt: problem.reference for problem in found} == expected
    assert len(found) == 94


def test_the_seed_sets_the_order_alone() -> None:
    task = get_task("arithmetic")
    first, second = (task.problems(Split.TRAIN, seed=seed) for seed in (0, 1))
    assert [p.id for p in first] != [p.id for p in second]
    assert {p.id for p in first} == {p.id for p in second}
    assert task.problems(Split.TRAIN, seed=0, limit=5) == first[:5]


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        ("27", Outcome.CORRECT, "27"),
        ("19 + 8 = 27.", Outcome.CORRECT, "27"),
        ("It is 27.0!", Outcome.CORRECT, "27.0"),
        ("27, no, 28", Outcome.INCORRECT, "28"),
        ("-27", Outcome.INCORRECT, "-27"),
        ("27.5", Outcome.INCORRECT, "27.5"),
        ("twenty-seven", Outcome.NO_ANSWER, None),
        ("", Outcome.NO_ANSWER, None),
    ],
)
def test_the_last_number_counts(text: str, outcome: Outcome, extracted: str | None) -> None:
    verdict = ArithmeticTask().verify(Problem("19 + 8 = ?", "19 + 8 = ?", "27"), text)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


def test_own_references_pass_and_corrupted_ones_fail() -> None:
    task = ArithmeticTask(ranges={"+": [[0, 20], [0, 20]], "-": [[0, 20], [0, 20]], "*": [[0, 20], [0, 20]]})
    for problem in task.problems(Split.TEST, seed=0):
        assert task.verify(problem, problem.reference).correct, problem
        assert not task.verify(problem, task.corrupt(problem)).correct, problem


REFUSALS: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "no operation"),
    "another operation": ({"/": [[1, 2], [1, 2]]}, "'/' is not an operation: choose among +, -, *"),
    "no table": (5, "no operation"),
    "a number": ({"+": 5}, "not a pair of ranges"),
    "one range": ({"+": [[1, 2]]}, "not a pair of ranges"),
    "a range of one number": ({"+": [[1], [1, 2]]}, "not a pair of ranges"),
    "upside down": ({"+": [[2, 1], [1, 2]]}, "not a pair of ranges"),
    "negative": ({"+": [[-1, 1], [1, 2]]}, "not a pair of ranges"),
    "no numbers": ({"+": [["a", "b"], [1, 2]]}, "not a pair of ranges"),
    "too many": ({"+": [[1, 2000], [1, 2000]]}, "4,000,000 problems"),
}


@pytest.mark.parametrize(("ranges", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(ranges: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("+", r"\+").replace("*", r"\*")):
        ArithmeticTask(ranges=ranges)
