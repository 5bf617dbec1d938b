"""What the verifiers of data sets have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from selfcorrect.script import GENERAL_INSTRUCTION
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.math import task as maths
from selfcorrect.types import Outcome, Problem, Verdict

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerVerifier:
    """The base: a reference is its own correct answer."""

    name: ClassVar[str]
    revision: ClassVar[int] = 1
    """Rises when verdicts change."""
    trusted: ClassVar[bool] = False
    checks_references: ClassVar[bool] = True
    """Whether every reference is judged when the task is made, which must be quick."""
    bounded: ClassVar[str | None] = None
    """The option, if there is one, because of which references are judged in another process (`patterns.Bounded`)."""
    digested_module: ClassVar[str] = "selfcorrect.tasks.dataset.verifiers"
    """The module in the digest of a task's version: that where all verifiers once were, so that a version outlives moves."""
    first: ClassVar[str] = "{prompt}"
    revise: ClassVar[str] = GENERAL_INSTRUCTION

    @property
    def version(self) -> str:
        """Return a text that changes with the verdicts; `maths.VERDICTS` covers how answers are found in texts."""
        return f"{self.name}-{self.revision}-{maths.VERDICTS}-{blake2b(repr(self).encode(), digest_size=4).hexdigest()}"

    def shown(self, row: Row) -> Mapping[str, str]:
        """Return what a template may show besides the row's columns."""
        return {}

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        """Return the reference in one form, and what the verdict needs besides.

        Raises:
            ValueError: no answer can equal the reference, or the row lacks something.
        """
        return reference, {}

    def bind(self, problems: Sequence[Problem]) -> None:
        """Get to know all problems, once, before the first verdict."""

    def remarks(self, problems: Sequence[Problem]) -> list[str]:
        """Return what is odd about the problems, though each is valid."""
        return []

    def __call__(self, text: str, reference: str, row: Row) -> bool | Verdict:
        raise NotImplementedError

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return the verdict of an answer to a problem."""
        found = self(text, problem.reference, problem.data)
        return found if isinstance(found, Verdict) else Verdict(Outcome.CORRECT if found else Outcome.INCORRECT, text)

    def written(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it."""
        return problem.reference

    def corrupted(self, problem: Problem) -> str:
        """Return an incorrect answer in the same form."""
        return corrupt_text(problem.reference)


def judged(answer: str | None, correct: bool, missing: str) -> Verdict:
    """Return the verdict of an answer that was found, or NO_ANSWER with what is ``missing``."""
    if answer is None:
        return Verdict(Outcome.NO_ANSWER, detail=missing)
    return Verdict(Outcome.CORRECT if correct else Outcome.INCORRECT, answer)
