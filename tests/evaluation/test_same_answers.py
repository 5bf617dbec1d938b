"""Attempts that nearly all give one answer: what is counted, what is left alone, and where it is printed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from selfcorrect.evaluation.evaluation import evaluation_of
from selfcorrect.evaluation.same_answers import same_answers
from selfcorrect.report.terminal import all_tables
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.storage.shapes import RESULTS_SHAPE, check_shape
from selfcorrect.types import Outcome, Part, StopReason, Verdict

KEYS = "A" * 13 + "B" * 9 + "C" * 10 + "D" * 8
"""The keys of 40 problems: 13 of them, 32.5%, are A."""


def episodes(keys: Sequence[str], *answers: Sequence[str | None]) -> list[StoredEpisode]:
    """Return an episode per key, with the attempts' answers; an answer equal to its key but for a dot is correct."""

    def turn(key: str, answer: str | None) -> StoredTurn:
        right = answer is not None and answer.strip(".") == key
        outcome = Outcome.CORRECT if right else Outcome.NO_ANSWER if answer is None else Outcome.INCORRECT
        return StoredTurn(answer or "", (1,), StopReason.END, Verdict(outcome, answer))

    return [
        StoredEpisode("eval", 0, str(i), 0, str(i), key, None, tuple(turn(key, each[i]) for each in answers))
        for i, key in enumerate(keys)
    ]


def test_an_answer_to_everything_is_found_and_printed() -> None:
    played = episodes(KEYS, KEYS, "A" * 40)
    assert same_answers(played) == {"t2": {"answer": "A", "count": 40, "n": 40, "right": 13}}
    results = evaluation_of({Part.ATTEMPTS: played}, seed=0).to_json()
    check_shape(results, RESULTS_SHAPE)
    said = "  base: the second attempts say 'A' in 40 of 40; always answering it would be right in 32.5%"
    assert said in all_tables({"base": results}).splitlines()


def test_an_answer_is_right_where_its_verdict_says_so_of_the_same_reference() -> None:
    assert same_answers(episodes(KEYS, ["A."] * 37 + ["D"] * 3))["t1"] == {
        "answer": "A.",
        "count": 37,
        "n": 40,
        "right": 13,
    }


@pytest.mark.parametrize(
    ("keys", "answers"),
    [
        (KEYS, "A" * 35 + "D" * 5),
        ("A" * 37 + "B" * 3, "A" * 40),
        (KEYS[:19], "A" * 19),
        (KEYS, [None] * 40),
    ],
    ids=["fewer than 90%", "the keys are nearly all A", "few problems", "no answers"],
)
def test_other_answers_are_left_alone(keys: str, answers: Sequence[str | None]) -> None:
    assert same_answers(episodes(keys, answers)) == {}
