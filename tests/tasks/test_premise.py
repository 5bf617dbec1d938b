"""Test what `benchmarks.premise` counts, on episodes made by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.premise import copies, correct, distinct_correct, out_of_reach, percent, repaired
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.types import Outcome, StopReason, Verdict

RIGHT = {"1+2=3", "2+1=3"}


def episode(problem: str, sample: int, *texts: str) -> StoredEpisode:
    verdicts = [Verdict(Outcome.CORRECT if text in RIGHT else Outcome.INCORRECT, text) for text in texts]
    turns = [StoredTurn(t, (1,), StopReason.END, v) for t, v in zip(texts, verdicts, strict=True)]
    return StoredEpisode("stage", 0, problem, sample, "1 2", "1+2=3", None, tuple(turns))


EPISODES = [
    episode("a", 0, "1+2=3", "1+2=3"),
    episode("a", 1, "2+1=3", "2+1=4"),
    episode("a", 2, "1+2=3", "1+2=3"),
    episode("b", 0, "1+2=4", "1+2=4"),
    episode("b", 1, "1+2=4", "2+1=3"),
    episode("b", 2, "1+2=5", "2+1=5"),
    episode("c", 0, "1+2=4", "1+2=4"),
    episode("c", 1, "1+2=4", "2+1=4"),
    episode("c", 2, "1+2=4", "1+2=5"),
]


def test_what_is_counted_by_hand() -> None:
    assert correct(EPISODES, 0) == correct(EPISODES, 1) == pytest.approx(3 / 9)
    assert copies(EPISODES) == pytest.approx(4 / 9)
    assert repaired(EPISODES) == pytest.approx((1 / 6, 1 / 4))  # behind six incorrect drafts, four of them changed
    assert out_of_reach(EPISODES) == pytest.approx((2 / 3, 1 / 2))  # b and c; b has a correct second attempt
    assert distinct_correct(EPISODES) == pytest.approx(2 / 3)  # two answers of a, none of b and c


def test_a_fraction_of_nothing_is_a_dash() -> None:
    solved = EPISODES[:1]
    assert out_of_reach(solved)[0] == 0 and math.isnan(out_of_reach(solved)[1])
    assert [percent(value) for value in (*repaired(solved), 0.125)] == ["-", "-", "12.5"]
