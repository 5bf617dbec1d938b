"""Test the families of worked problems: solutions whose every step holds, exact verdicts, disjoint splits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from selfcorrect.errors import ConfigError
from selfcorrect.tasks import get_task
from selfcorrect.tasks.splits import normalise
from selfcorrect.tasks.worked_families import DAYS, FAMILIES, LEVELS, equations_hold
from selfcorrect.tasks.worked_steps import WorkedStepsTask
from selfcorrect.types import Outcome, Problem, Split

EACH = [(family, level) for family in FAMILIES for level in LEVELS]
COMPUTED = re.compile(r"[\d+*/ -]+")
ORDERED = "7 + 5 * 4 + 3 -> 1"


def drawn(family: str, level: int, count: int = 60, split: Split = Split.TRAIN) -> list[Problem]:
    return list(WorkedStepsTask(family, level).problems(split, seed=0, limit=count))


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


# -- the answers, computed again from the question alone ---------------------------------------------------------------


def weekday(prompt: str) -> str:
    day = next(i for i, name in enumerate(DAYS) if f"after {name}?" in prompt)
    return DAYS[(day + numbers(prompt)[0]) % 7].lower()


def clock(prompt: str) -> str:
    hour, minute, after = numbers(prompt)
    total = 60 * hour + minute + after
    return f"{total // 60}:{total % 60:02d}"


def equation(prompt: str) -> str:
    """Find the only x up to 1,000 that makes both sides equal."""
    sides = prompt.removeprefix("Solve ").rstrip(".").replace(" x", " * x").split("=")
    found = [x for x in range(1000) if eval(sides[0], {"x": x}) == eval(sides[1], {"x": x})]
    assert len(found) == 1
    return str(found[0])


def chain(prompt: str) -> str:
    value, *rest = [sentence.split() for sentence in prompt.rstrip(".").split(". ")]
    result = int(value[-1])
    for words in rest:
        n = int(words[-1])
        result = {"Add": result + n, "Subtract": result - n, "Multiply": result * n}[words[0]]
    return str(result)


def units(prompt: str) -> str:
    seconds = {"weeks": 604_800, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
    words = prompt.rstrip(".").split()
    total = sum(int(n) * seconds[unit] for n, unit in zip(words[1:-2:2], words[2:-2:2], strict=True))
    return str(total // seconds[words[-1]])


Operation = tuple[str, int]


def operations(prompt: str) -> list[Operation]:
    words = re.findall(r"([Aa]dd|[Mm]ultiply by) (\d)", prompt)
    return [("+" if word.lower() == "add" else "*", int(n)) for word, n in words]


def worked_out(prompt: str) -> dict[int, tuple[str, str]]:
    """Return the lines of both orders of the two operations that are left open, by the digit in which they end."""
    found = {}
    given = operations(prompt)
    place = 0 if "either order" in prompt else len(given) - 2
    for order in (given, [*given[:place], given[place + 1], given[place], *given[place + 2 :]]):
        value, lines = numbers(prompt)[0], []
        for sign, n in order:
            after = value + n if sign == "+" else value * n
            lines.append(f"{value} {sign} {n} = {after}")
            value = after % 10
        taken = " ".join(f"{sign} {n}" for sign, n in order)
        found[value] = (f"{numbers(prompt)[0]} {taken} -> {value}", "\n".join(lines))
    return found


ANSWERS: dict[str, Callable[[str], str]] = {
    "sum": lambda prompt: str(sum(numbers(prompt))),
    "product": lambda prompt: str(numbers(prompt)[0] * numbers(prompt)[1]),
    "chain": chain,
    "order": lambda prompt: worked_out(prompt)[numbers(prompt)[-1]][0],
    "order_first": lambda prompt: worked_out(prompt)[numbers(prompt)[-1]][0],
    "equation": equation,
    "remainder": lambda prompt: str(numbers(prompt)[0] % numbers(prompt)[1]),
    "units": units,
    "clock": clock,
    "weekday": weekday,
    "sort": lambda prompt: " ".join(map(str, sorted(numbers(prompt)))),
    "filter": lambda prompt: " ".join(str(n) for n in numbers(prompt)[1:] if n % numbers(prompt)[0] == 0),
    "count": lambda prompt: str(prompt.split()[-1].count(prompt.split()[2])),
    "reverse": lambda prompt: prompt.rstrip(".").split()[-1][::-1],
}


@pytest.mark.parametrize(("family", "level"), EACH)
def test_the_answer_of_every_problem_is_the_one_computed_from_its_question(family: str, level: int) -> None:
    for problem in drawn(family, level):
        assert problem.data["answer"] == ANSWERS[family](problem.prompt), problem.prompt


@pytest.mark.parametrize(("family", "level"), EACH)
def test_every_equation_of_a_solution_holds(family: str, level: int) -> None:
    found = 0
    for problem in drawn(family, level):
        for line in problem.reference.split("\n"):
            sides = line.rpartition("x = ")[2].split(" = ")
            if len(sides) > 1 and all(COMPUTED.fullmatch(side) for side in sides):
                assert len({eval(side) for side in sides}) == 1, line
                found += 1
    assert found >= 60 or family in ("sort", "filter", "count", "reverse")


@pytest.mark.parametrize(("family", "level"), EACH)
def test_solutions_pass_corrupted_ones_fail_and_splits_are_disjoint(family: str, level: int) -> None:
    task, seen = WorkedStepsTask(family, level), dict[str, Split]()
    for split, count in ((Split.TRAIN, 800), (Split.DEV, 100), (Split.TEST, 100)):
        for problem in drawn(family, level, count, split):
            assert task.verify(problem, task.solution(problem)).correct
            assert task.verify(problem, task.corrupt(problem)).outcome is Outcome.INCORRECT
            assert seen.setdefault(normalise(problem.prompt), split) is split
            assert len(task.solution(problem).split("\n")) >= 2
    assert len(seen) == 1000


@pytest.mark.parametrize("family", ["order", "order_first"])
@pytest.mark.parametrize("level", LEVELS)
def test_one_order_of_two_operations_is_right_and_nothing_but_its_end_tells_which(family: str, level: int) -> None:
    task, sums_first, as_named = WorkedStepsTask(family, level), 0, 0
    for problem in drawn(family, level, 400):
        asked, both = numbers(problem.prompt)[-1], worked_out(problem.prompt)
        assert len(both) == 2 and len(operations(problem.prompt)) == level + 2
        assert {end: task.verify(problem, lines).correct for end, (_, lines) in both.items()} == {
            end: end == asked for end in both
        }
        sums_first += " + " in problem.reference.split("\n")[level if family == "order" else 0]
        as_named += both[asked] == next(iter(both.values()))
    assert 160 <= sums_first <= 240 and 160 <= as_named <= 240


def test_a_problem_is_a_function_of_family_level_split_and_seed() -> None:
    task = WorkedStepsTask("chain", 2)
    assert task.problems(Split.TEST, seed=3, limit=9) == task.problems(Split.TEST, seed=3, limit=20)[:9]
    assert task.problems(Split.TEST, seed=3, limit=9) != task.problems(Split.TEST, seed=4, limit=9)


@pytest.mark.parametrize("family", ["sum", "sort", "filter"])
def test_no_two_problems_differ_in_the_order_of_their_numbers_alone(family: str) -> None:
    problems = drawn(family, 1, 600)
    first = 1 if family == "filter" else 0
    kinds = {(*numbers(p.prompt)[:first], *sorted(numbers(p.prompt)[first:])) for p in problems}
    assert len(kinds) == 600


@pytest.mark.parametrize(
    ("family", "answer", "text", "outcome", "extracted"),
    [
        ("product", "578", "34 * 10 = 340\n34 * 7 = 238\n340 + 238 = 578", Outcome.CORRECT, "578"),
        ("product", "578", "That makes 578.", Outcome.CORRECT, "578"),
        ("product", "578", "578\nno, 579", Outcome.INCORRECT, "579"),
        ("product", "578", "none", Outcome.NO_ANSWER, None),
        ("sort", "5 8 17", "5, then 17 8\n8, then 17\n5 8 17", Outcome.CORRECT, "5 8 17"),
        ("sort", "5 8 17", "Sorted: 5, 8, 17.\n", Outcome.CORRECT, "5 8 17"),
        ("sort", "5 8 17", "5 8 17\n5 17 8", Outcome.INCORRECT, "5 17 8"),
        ("sort", "5 8 17", "5 8 17\nDone.", Outcome.NO_ANSWER, None),
        ("order", ORDERED, "7 + 5 = 12\n2 * 4 = 8\n8 + 3 = 11", Outcome.CORRECT, ORDERED),
        ("order", ORDERED, "First:\n7+5=12\n2*4=8\n8+3=11.\n", Outcome.CORRECT, ORDERED),
        ("order", ORDERED, "7 + 5 = 12\n2 + 3 = 5\n5 * 4 = 20", Outcome.INCORRECT, "7 + 5 + 3 * 4 -> 0"),
        ("order", ORDERED, "7 + 5 = 12\n2 + 3 = 5\n5 * 4 = 21", Outcome.INCORRECT, "7 + 5 = 12; 2 + 3 = 5; 5 * 4 = 21"),
        (
            "order",
            ORDERED,
            "7 + 5 = 12\n12 * 4 = 48\n8 + 3 = 11",
            Outcome.INCORRECT,
            "7 + 5 = 12; 12 * 4 = 48; 8 + 3 = 11",
        ),
        ("order", ORDERED, "2 * 4 = 8\n8 + 3 = 11", Outcome.INCORRECT, "2 * 4 + 3 -> 1"),
        ("order", ORDERED, "7 + 5 = 12\n2 * 4 = 8\n8 + 3 = 11\n1 + 0 = 1", Outcome.INCORRECT, "7 + 5 * 4 + 3 + 0 -> 1"),
        ("order", ORDERED, "1", Outcome.NO_ANSWER, None),
        ("clock", "9:05", "8 + 1 = 9\n9:05", Outcome.CORRECT, "9:05"),
        ("clock", "9:05", "It is 09:05", Outcome.CORRECT, "9:05"),
        ("clock", "9:05", "9:5", Outcome.NO_ANSWER, None),
        ("clock", "9:05", "19:05", Outcome.INCORRECT, "19:05"),
        ("weekday", "friday", "Thursday Friday\nFriday.", Outcome.CORRECT, "friday"),
        ("weekday", "friday", "Friday, I think", Outcome.INCORRECT, "think"),
        ("reverse", "upol", "u p o l\nUpol", Outcome.CORRECT, "upol"),
        ("reverse", "upol", "u p o l", Outcome.NO_ANSWER, None),
    ],
)
def test_verdicts_by_hand(family: str, answer: str, text: str, outcome: Outcome, extracted: str | None) -> None:
    verdict = WorkedStepsTask(family).verify(Problem("p", "p", answer, data={"answer": answer}), text)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


def test_solutions_by_hand() -> None:
    one = {p.prompt: p.reference for family, level in EACH for p in drawn(family, level, 800)[:800]}
    product = next(p for p in one if p.startswith("Multiply 34 by 1"))
    b = numbers(product)[1]
    assert one[product] == f"34 * 10 = 340\n34 * {b - 10} = {34 * (b - 10)}\n340 + {34 * (b - 10)} = {34 * b}"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("34 * 10 = 340\n34 * 7 = 238\n340 + 238 = 578", True),
        ("34 * 10 = 340\n34 * 7 = 247\n340 + 238 = 578", False),
        ("6 x = 41 - 5 = 36\nx = 36 / 6 = 6", True),
        ("6 x = 41 - 5 = 34\nx = 34 / 6 = 6", False),
        ("53 = 7 * 7 + 4\nFriday", True),
        ("2 + 3 * 4 - 10 / 5 = 12.", True),
        ("2 + 3 * 4 = 20", False),
        ("7 / 2 = 3", False),
        ("1 / 0 = 1 / 0", False),
        ("9 ** 9 ** 9 = 1", True),
        ("no equation", True),
    ],
)
def test_every_written_equation_must_hold(text: str, holds: bool) -> None:
    assert equations_hold(text) is holds


def test_checked_steps_reject_a_right_answer_behind_a_false_equation() -> None:
    problem = Problem("p", "Solve 6 x + 5 = 41.", "", data={"answer": "6"})
    text = "6 x = 41 - 5 = 34\nx = 34 / 6 = 6"
    assert WorkedStepsTask("equation").verify(problem, text).correct
    checked = WorkedStepsTask("equation", check_steps=True).verify(problem, text)
    assert (checked.outcome, checked.extracted, checked.detail) == (Outcome.INCORRECT, "6", "a step does not hold")


@pytest.mark.parametrize(("family", "level"), EACH)
def test_solutions_pass_with_checked_steps(family: str, level: int) -> None:
    task = WorkedStepsTask(family, level, check_steps=True)
    for problem in drawn(family, level, 40):
        assert task.verify(problem, task.solution(problem)).correct
        assert not task.verify(problem, task.corrupt(problem)).correct


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "poems"}, "family = 'poems' is not known: choose among sum, product"),
        ({"level": 4}, "level = 4: choose a level from 1 to 3"),
        ({"level": 0}, "level = 0"),
        ({"size": 3}, "has no option 'size'"),
    ],
)
def test_unknown_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_task("worked_steps", options)
