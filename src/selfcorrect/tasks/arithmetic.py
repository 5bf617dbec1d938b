"""Sums, differences and products of two small numbers, asked as ``23 + 45 = ?``, for very small pretrained models."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

from selfcorrect.errors import ConfigError
from selfcorrect.rng import generator
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.reasoning_gym import last_number
from selfcorrect.tasks.splits import split_of, take_split
from selfcorrect.types import Outcome, Problem, Split, Verdict

Ranges = Sequence[Sequence[int]]

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
RANGES: Mapping[str, Ranges] = {"+": ((1, 45), (1, 45)), "*": ((2, 12), (2, 20))}
REVISE = "Check it. {prompt}"
SYSTEM = "You are a calculator. You answer like this: 12 + 7 = 19."
MOST = 1_000_000


class ArithmeticTask:
    """Sums, differences and products of two small numbers; the last number of the answer counts.

    >>> task = ArithmeticTask(ranges={"-": [[20, 29], [1, 9]]})
    >>> problem = task.problems(Split.TRAIN, seed=0, limit=1)[0]
    >>> problem.prompt[0], problem.prompt[2:5], task.verify(problem, f"That makes {problem.reference}.").correct
    ('2', ' - ', True)

    Args:
        ranges: for each operation (``+``, ``-``, ``*``), the smallest and largest first and second number; the default is
            ``{"+": [[1, 45], [1, 45]], "*": [[2, 12], [2, 20]]}``.
        first, revise, system, turns: the script; see `Script`.

    Raises:
        ConfigError: a range is malformed, or the ranges hold more than a million problems.
    """

    version = "2"
    trusted_verifier = True

    def __init__(
        self,
        ranges: Mapping[str, Ranges] = RANGES,
        *,
        first: str = "{prompt}",
        revise: Instructions = REVISE,
        system: str | None = SYSTEM,
        turns: int = 2,
    ) -> None:
        _check(ranges)
        self.name = "arithmetic"
        self.ranges = {sign: tuple((low, high) for low, high in ranges[sign]) for sign in sorted(ranges)}
        self.script = Script(first=first, revise=revise, system=system, turns=turns)

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return distinct problems of the split, in an order that depends on ``seed``; all of them without ``limit``."""
        everything = [problem for problem in self._all() if split_of(problem.prompt) is split]
        order = generator("arithmetic", split.value, seed).permutation(len(everything))
        shuffled = (everything[i] for i in order)
        return take_split(shuffled, split, len(everything) if limit is None else limit, name=self.name)

    def _all(self) -> Iterator[Problem]:
        for sign, ranges in self.ranges.items():
            for a, b in product(*(range(low, high + 1) for low, high in ranges)):
                prompt = f"{a} {sign} {b} = ?"
                yield Problem(prompt, prompt, str(OPERATIONS[sign](a, b)), f"{len(str(a))} {sign} {len(str(b))} digits")

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Accept a text whose last number is the result."""
        number = last_number(text)
        if number is None:
            return Verdict(Outcome.NO_ANSWER, None, "no number in the answer")
        return Verdict(Outcome.CORRECT if float(number) == int(problem.reference) else Outcome.INCORRECT, number)

    def solution(self, problem: Problem) -> str:
        """Return the equation, in the form of the system message's example."""
        return f"{problem.prompt.removesuffix('?')}{problem.reference}."

    def corrupt(self, problem: Problem) -> str:
        return corrupt_text(problem.reference)


def _check(ranges: Mapping[str, Ranges]) -> None:
    rule = 'write task.options.ranges as in { "+" = [[1, 45], [1, 45]] }, each pair the smallest and the largest number'
    if not isinstance(ranges, Mapping) or not ranges:
        raise ConfigError(f"ranges = {ranges!r} has no operation: {rule}.")
    for sign, pair in ranges.items():
        if sign not in OPERATIONS:
            raise ConfigError(f"ranges: {sign!r} is not an operation: choose among {', '.join(OPERATIONS)}.")
        if not (_is_pair(pair) and all(map(_is_range, pair))):
            raise ConfigError(f"ranges: {sign!r} = {pair!r} is not a pair of ranges of numbers from 0 up: {rule}.")
    count = sum((a[1] - a[0] + 1) * (b[1] - b[0] + 1) for a, b in ranges.values())
    if count > MOST:
        raise ConfigError(f"ranges hold {count:,} problems, more than {MOST:,}: make them smaller.")


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _is_range(value: Sequence[int]) -> bool:
    return _is_pair(value) and all(type(end) is int for end in value) and 0 <= value[0] <= value[1]
