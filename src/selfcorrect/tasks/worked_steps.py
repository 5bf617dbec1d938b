"""Small problems of many families, each with a solution of several written steps, for small pretrained models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from selfcorrect.errors import ConfigError
from selfcorrect.rng import generator
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.splits import take_split
from selfcorrect.tasks.worked_families import FAMILIES, LEVELS, equations_hold
from selfcorrect.types import Outcome, Problem, Split, Verdict

DEFAULT_LIMIT = 1000
SYSTEM = "You solve problems step by step."
REVISE = "Check each step and correct any error. Write the whole solution again."


class WorkedStepsTask:
    """Problems with several written steps: sums, products, equations, lists, times, words; the answer at the end counts.

    >>> task = WorkedStepsTask("product")
    >>> problem = task.problems(Split.TRAIN, seed=0, limit=1)[0]
    >>> problem.prompt.split()[0], len(problem.reference.splitlines()), task.verify(problem, problem.reference).correct
    ('Multiply', 3, True)

    Args:
        family: one of ``FAMILIES`` (`selfcorrect.tasks.worked_families`).
        level: 1 (easy) to 3.
        check_steps: an answer is correct only if, in addition, every equation that is written before it holds.
        first, revise, system, turns: the script; see `Script`.

    Raises:
        ConfigError: there is no such family or level.
    """

    version = "1"
    trusted_verifier = True

    def __init__(
        self,
        family: str = "product",
        level: int = 1,
        *,
        check_steps: bool = False,
        first: str = "{prompt}",
        revise: Instructions = REVISE,
        system: str | None = SYSTEM,
        turns: int = 2,
    ) -> None:
        if family not in FAMILIES:
            raise ConfigError(f"worked_steps: family = {family!r} is not known: choose among {', '.join(FAMILIES)}.")
        if level not in LEVELS:
            raise ConfigError(f"worked_steps: level = {level}: choose a level from {LEVELS[0]} to {LEVELS[-1]}.")
        self.name = "worked_steps"
        self.family, self.level, self.check_steps = family, level, check_steps
        self.script = Script(first=first, revise=revise, system=system, turns=turns)

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return distinct problems of the split, drawn with ``seed``; ``limit`` defaults to 1,000.

        Raises:
            DataError: the family has fewer problems of this level than ``limit``.
        """
        rng = generator("worked_steps", self.family, self.level, split.value, seed)
        return take_split(self._stream(rng), split, DEFAULT_LIMIT if limit is None else limit, name=self.name)

    def _stream(self, rng: np.random.Generator) -> Iterator[Problem]:
        """Yield problems of all splits without end."""
        while True:
            made = FAMILIES[self.family].draw(rng, self.level)
            steps = f"{len(made.lines)} steps"
            yield Problem(made.prompt, made.prompt, "\n".join(made.lines), steps, {"answer": made.answer})

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Accept a text whose last answer is the problem's, and with ``check_steps`` one without false equations."""
        found = FAMILIES[self.family].read(text)
        if found is None:
            return Verdict(Outcome.NO_ANSWER, None, "no answer at the end")
        if found != problem.data["answer"]:
            return Verdict(Outcome.INCORRECT, found)
        if self.check_steps and not equations_hold(text):
            return Verdict(Outcome.INCORRECT, found, "a step does not hold")
        return Verdict(Outcome.CORRECT, found)

    def solution(self, problem: Problem) -> str:
        """Return the solution, one step a line."""
        return problem.reference

    def corrupt(self, problem: Problem) -> str:
        """Return the solution with another answer in its last line."""
        *before, last = problem.reference.split("\n")
        head, _, answer = last.rpartition("= ")
        return "\n".join([*before, f"{head}= {corrupt_text(answer)}" if head else corrupt_text(last)])
