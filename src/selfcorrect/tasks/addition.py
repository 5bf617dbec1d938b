"""The default task: fixed-width addition, with the answer written most significant digit first.

A shallow model cannot look far enough ahead for carries while it writes its first attempt. Once a draft is there, its
low digits reveal every carry, so revising is a genuinely easier problem than answering.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from selfcorrect.errors import ConfigError
from selfcorrect.rng import generator
from selfcorrect.script import DRAFT_REQUEST_BY_DIGIT, Script
from selfcorrect.tasks.splits import take_split
from selfcorrect.types import Outcome, Problem, Split, Verdict

DEFAULT_LIMIT = 5000
REVISE = "Correct any error. {prompt}"


class AdditionTask:
    """``000123+004567`` with operands of random length, padded to ``digits``; the sum has one digit more.

    >>> task = AdditionTask(digits=2)
    >>> problem = task.make(7, 95)
    >>> problem.prompt, problem.reference
    ('07+95', '102')
    >>> task.verify(problem, "102").outcome.value, task.verify(problem, "12").outcome.value
    ('correct', 'incorrect')
    """

    version = "2"
    trusted_verifier = True

    def __init__(self, digits: int = 6) -> None:
        if not 1 <= digits <= 18:
            raise ConfigError(f"task.options.digits = {digits}: addition takes 1 to 18 digits.")
        self.name = "addition"
        self.digits = digits
        self.script = Script(first="{prompt}", revise=REVISE)
        self.verified_script = self.script.with_verification_by_digit()
        self.draft_request = DRAFT_REQUEST_BY_DIGIT

    def make(self, a: int, b: int) -> Problem:
        """Return the problem a + b. Its difficulty is the longest run of carries."""
        prompt = f"{a:0{self.digits}d}+{b:0{self.digits}d}"
        carries = self._longest_carry(a, b)
        return Problem(prompt, prompt, f"{a + b:0{self.digits + 1}d}", f"longest carry {carries}")

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return distinct problems of the split, drawn with ``seed``; ``limit`` defaults to 5,000."""
        limit = DEFAULT_LIMIT if limit is None else limit
        return take_split(
            self._stream(generator("addition", self.digits, split.value, seed)), split, limit, name=self.name
        )

    def _stream(self, rng: np.random.Generator) -> Iterator[Problem]:
        while True:
            for a, b in self.operands(rng, 256):
                yield self.make(a, b)

    def operands(self, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Draw pairs of operands, each with a random length of 1 to ``digits`` digits."""
        lengths = rng.integers(1, self.digits + 1, size=(count, 2))
        return [(int(a), int(b)) for a, b in rng.integers(0, 10**lengths)]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Accept an answer that, without its spaces, equals the sum digit for digit, leading zeros included."""
        answer = "".join(text.split())
        if not any(c.isdigit() for c in answer):
            return Verdict(Outcome.NO_ANSWER, None, "no digit in the answer")
        return Verdict(Outcome.CORRECT if answer == problem.reference else Outcome.INCORRECT, answer)

    def solution(self, problem: Problem) -> str:
        """Return the sum, which is the whole answer."""
        return problem.reference

    def corrupt(self, problem: Problem) -> str:
        """Return the sum with its middle digit one too high."""
        middle = len(problem.reference) // 2
        digit = (int(problem.reference[middle]) + 1) % 10
        return f"{problem.reference[:middle]}{digit}{problem.reference[middle + 1 :]}"

    def _longest_carry(self, a: int, b: int) -> int:
        longest = run = carry = 0
        for _ in range(self.digits):
            carry = (a % 10 + b % 10 + carry) // 10
            run = run + 1 if carry else 0
            longest = max(longest, run)
            a, b = a // 10, b // 10
        return longest
