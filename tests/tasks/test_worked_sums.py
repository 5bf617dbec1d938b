"""Test sums worked out step by step: the task, and the synthetic authors that its base learns from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from support.families import is_fast

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks import get_task
from selfcorrect.tasks.worked_sums import REVISE, WorkedSumsTask, carries, working
from selfcorrect.types import Outcome, Split
from selfcorrect.zoo.worked_sums import Adders, WorkedSumsBase, make_tokenizer, make_worked_sums_base

RECIPE = WorkedSumsBase(problems=40, steps=3, cooldown=2, batch_size=8, width=16, inner=16, heads=2, head_dim=8)
TASK = WorkedSumsTask()


def steps_of(text: str) -> list[tuple[int, int, int]]:
    """Return the total, number and result of every step."""
    first, *rest = text.split("+")
    found, total = [], int(first)
    for step in rest:
        number, result = map(int, step.split("="))
        found.append((total, number, result))
        total = result
    return found


def numbers_of(text: str) -> list[int]:
    return [int(text.split("+", maxsplit=1)[0]), *(number for _, number, _ in steps_of(text))]


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(make_tokenizer(RECIPE), Script(revise=REVISE))


def test_problems_are_different_numbers_and_no_two_splits_have_the_same_ones() -> None:
    found = {split: TASK.problems(split, seed=3, limit=300) for split in Split}
    sets = {split: {frozenset(p.prompt.split()) for p in problems} for split, problems in found.items()}
    for problems, several in zip(found.values(), sets.values(), strict=True):
        assert len(problems) == len(several) == 300
        assert all(len(numbers) == 5 and {int(n) for n in numbers} <= set(range(2, 21)) for numbers in several)
    assert not sets[Split.TRAIN] & sets[Split.TEST] and not sets[Split.DEV] & sets[Split.TEST]
    assert TASK.problems(Split.TEST, seed=3, limit=10) == found[Split.TEST][:10]
    assert TASK.problems(Split.TEST, seed=4, limit=10) != found[Split.TEST][:10]


def test_more_problems_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"20,000 train problems .* only 11,628, and the train split has 80%"):
        TASK.problems(Split.TRAIN, seed=0, limit=20_000)  # 19 over 5 = 11,628


def test_carries_and_workings_by_hand() -> None:
    assert working([7, 15, 4]) == "7+15=22+4=26"
    assert carries([7, 15, 4]) == 1  # 7 + 5 = 12; 2 + 4 = 6
    assert carries([8, 9, 7, 6]) == 3  # 8 + 9, 7 + 7, 4 + 6
    assert TASK.make([8, 9, 7, 6]).difficulty == "3 carries"


@pytest.mark.parametrize(
    ("text", "outcome", "extracted"),
    [
        ("7+15=22+4=26", Outcome.CORRECT, "26"),
        ("4+7=11+15=26", Outcome.CORRECT, "26"),
        ("26", Outcome.CORRECT, "26"),
        ("4+7=1+15=16", Outcome.INCORRECT, "16"),
        ("7+15=22+4=", Outcome.INCORRECT, "4"),
        ("26.0", Outcome.INCORRECT, "26.0"),
        ("=+", Outcome.NO_ANSWER, None),
    ],
)
def test_the_last_number_counts(text: str, outcome: Outcome, extracted: str | None) -> None:
    verdict = TASK.verify(TASK.make([7, 15, 4]), text)
    assert (verdict.outcome, verdict.extracted) == (outcome, extracted)


def test_own_references_pass_and_corrupted_ones_fail() -> None:
    for problem in TASK.problems(Split.DEV, seed=0, limit=50):
        assert TASK.verify(problem, problem.reference).correct
        assert not TASK.verify(problem, TASK.corrupt(problem)).correct


@pytest.mark.parametrize(("numbers", "largest"), [(1, 20), (20, 20), (3, 1001)])
def test_impossible_options_are_refused(numbers: int, largest: int) -> None:
    with pytest.raises(ConfigError, match=f"numbers = {numbers}, largest = {largest}"):
        get_task("worked_sums", {"numbers": numbers, "largest": largest})


def test_a_first_attempt_adds_all_numbers_in_some_order_by_firm_habits() -> None:
    people = Adders(replace(RECIPE, misconceived=0.4, firmness=0.9), 1)
    assert len(people.misconceived) == round(0.4 * 45)
    rng, kept, orders = generator("first attempts"), Counter[bool](), set()
    for problem in TASK.problems(Split.TRAIN, seed=0, limit=200):
        text = people.first_attempt(problem, rng)
        assert sorted(numbers_of(text)) == sorted(map(int, problem.prompt.split()))
        orders.add(tuple(problem.prompt.split().index(str(n)) for n in numbers_of(text)))
        for total, number, result in steps_of(text):
            if total % 10 + number % 10 < 10:
                assert result == total + number
                continue
            assert result in (total + number, total + number - 10)
            kept[(result == total + number) == ((total % 10, number % 10) not in people.misconceived)] += 1
    assert len(orders) > 80  # of 120
    assert kept[True] / kept.total() == pytest.approx(0.9, abs=0.04)


def test_a_second_look_copies_or_goes_on_from_some_step() -> None:
    people = Adders(replace(RECIPE, copied=0.5, reconsidered=1.0), 1)
    rng, copies, fresh = generator("second looks"), 0, 0
    problems = TASK.problems(Split.TRAIN, seed=0, limit=300)
    for problem in problems:
        first, second = people.second_look(problem, rng)
        assert sorted(numbers_of(second)) == sorted(map(int, problem.prompt.split()))
        copies += first == second
        fresh += first.split("+")[0] != second.split("+")[0]
        new = [step for step in steps_of(second) if step not in steps_of(first)]
        assert all(result == total + number for total, number, result in new)  # reconsidered = 1
    assert copies / len(problems) == pytest.approx(0.5, abs=0.1)
    assert 0.1 < fresh / len(problems) < 0.4  # half of the others start from scratch


def test_the_same_seed_makes_the_same_model() -> None:
    one, two = make_worked_sums_base(1, RECIPE), make_worked_sums_base(1, RECIPE)
    assert one.digest() == two.digest() != make_worked_sums_base(2, RECIPE).digest()
    assert is_fast(one)


def test_every_number_that_can_come_up_is_one_token(chat: ChatFormat) -> None:
    assert len(chat.ids("18+19=37+20=57+17=74+16=90")) == 17
    assert chat.text(chat.ids("18+19=37+20=57")) == "18+19=37+20=57"
    assert chat.tokenizer.unk_token_id not in chat.ids("18+19=37+20=57+17=74+16=90")
