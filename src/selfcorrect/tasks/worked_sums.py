"""Sums worked out step by step: several numbers are added one after the other, in any order.

``7 15 3 12`` may be answered ``7+15=22+3=25+12=37`` or ``12+3=15+7=22+15=37``. Many answers are correct, each has several
steps, and an incorrect step invalidates all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb

import numpy as np

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.rng import generator
from selfcorrect.script import DRAFT_REQUEST_BY_DIGIT, Script
from selfcorrect.tasks.reasoning_gym import last_number
from selfcorrect.tasks.splits import SHARES, take_split
from selfcorrect.types import Outcome, Problem, Split, Verdict

DEFAULT_LIMIT = 1000
REVISE = "Correct any error. {prompt}"
LEAST = 2


class WorkedSumsTask:
    """Add ``numbers`` different numbers from 2 to ``largest``; the last number of the answer counts.

    >>> task = WorkedSumsTask(numbers=3)
    >>> problem = task.make([7, 15, 4])
    >>> problem.prompt, problem.reference, problem.difficulty
    ('7 15 4', '7+15=22+4=26', '1 carry')
    >>> task.verify(problem, "4+7=11+15=26").outcome.value, task.verify(problem, "7+15=12+4=16").outcome.value
    ('correct', 'incorrect')

    Raises:
        ConfigError: there are fewer different numbers than requested.
    """

    version = "2"
    trusted_verifier = True

    def __init__(self, numbers: int = 5, largest: int = 20) -> None:
        if not 2 <= numbers <= largest - LEAST + 1 or largest > 1000:
            raise ConfigError(
                f"worked_sums: numbers = {numbers}, largest = {largest}: give at least 2 numbers, and a largest one of at "
                f"most 1000 that leaves enough different ones from {LEAST} on."
            )
        self.name = "worked_sums"
        self.numbers, self.largest = numbers, largest
        self.script = Script(first="{prompt}", revise=REVISE)
        self.verified_script = self.script.with_verification_by_digit()
        self.draft_request = DRAFT_REQUEST_BY_DIGIT

    def make(self, numbers: Sequence[int]) -> Problem:
        """Return the problem of these numbers in this order. Its difficulty is the number of steps that carry."""
        prompt = " ".join(map(str, numbers))
        count = carries(numbers)
        return Problem(prompt, prompt, working(numbers), f"{count} {'carry' if count == 1 else 'carries'}")

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return distinct problems of the split, drawn with ``seed``; ``limit`` defaults to 1,000.

        The same numbers always come in the same order, so no two splits share them.

        Raises:
            DataError: there are fewer problems than ``limit``.
        """
        limit = DEFAULT_LIMIT if limit is None else limit
        possible = comb(self.largest - LEAST + 1, self.numbers)
        if limit > possible:
            raise DataError(
                f"worked_sums: {limit:,} {split} problems were requested, but {self.numbers} different numbers from "
                f"{LEAST} to {self.largest} make only {possible:,}, and the {split} split has {SHARES[split]}% of them. "
                "Request fewer, or set the task's options numbers and largest higher."
            )
        rng = generator("worked_sums", self.numbers, self.largest, split.value, seed)
        return take_split(self.stream(rng), split, limit, name=self.name)

    def stream(self, rng: np.random.Generator) -> Iterator[Problem]:
        """Yield problems of all splits without end."""
        while True:
            chosen = sorted(int(n) for n in rng.choice(np.arange(LEAST, self.largest + 1), self.numbers, replace=False))
            order = generator("worked_sums order", chosen).permutation(self.numbers)
            yield self.make([chosen[i] for i in order])

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Accept an answer whose last number is the sum."""
        number = last_number(text)
        if number is None:
            return Verdict(Outcome.NO_ANSWER, None, "no number in the answer")
        return Verdict(Outcome.CORRECT if number == last_number(problem.reference) else Outcome.INCORRECT, number)

    def solution(self, problem: Problem) -> str:
        """Return the working that adds the numbers in the order of the prompt."""
        return problem.reference

    def corrupt(self, problem: Problem) -> str:
        """Return the reference with a carry forgotten, or invented, at its end."""
        total = int(last_number(problem.reference) or 0)
        return f"{problem.reference[: -len(str(total))]}{total - 10 if total >= 20 else total + 10}"


def working(numbers: Sequence[int]) -> str:
    """Return the correct working: the numbers added one after the other."""
    text, total = str(numbers[0]), numbers[0]
    for number in numbers[1:]:
        total += number
        text += f"+{number}={total}"
    return text


def carries(numbers: Sequence[int]) -> int:
    """Return the number of steps that carry when the numbers are added in this order."""
    totals = np.cumsum(numbers)
    return sum(int(total) % 10 + number % 10 >= 10 for total, number in zip(totals, numbers[1:], strict=False))
