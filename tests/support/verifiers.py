"""Provide verdicts that the test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.types import Outcome, Problem, Verdict
from support.episodes import verdict


@dataclass
class FunctionVerifier:
    """A verifier that accepts what ``right(problem, text)`` accepts."""

    right: Callable[[Problem, str], bool] = lambda problem, text: text == problem.reference
    seen: list[tuple[Problem, str]] = field(default_factory=list)

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        self.seen.extend(items)
        return [verdict(self.right(problem, text)) for problem, text in items]


@contextmanager
def lenient_additions() -> Iterator[None]:
    """Accept additions that begin with an even digit, so that a random model has something to learn from."""

    def verify(self: AdditionTask, problem: Problem, text: str) -> Verdict:
        return Verdict(Outcome.CORRECT if text.strip()[:1] in set("02468") else Outcome.INCORRECT, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdditionTask, "verify", verify)
        yield
