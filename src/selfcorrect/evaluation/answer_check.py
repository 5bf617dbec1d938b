"""Try one answer on a task's verifier: what is extracted from it, and the verdict with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.task_check import correct_answer, quoted, wrapped
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Outcome, Problem, Split, Verdict

REASONS = {
    Outcome.CORRECT: "",
    Outcome.INCORRECT: "the extracted answer does not equal the reference",
    Outcome.NO_ANSWER: "the verifier finds no answer in the text",
    Outcome.OUT_OF_MEMORY: "the program exceeded its memory limit",
    Outcome.REFUSED: "the program asked for something that the sandbox forbids",
    Outcome.TIMED_OUT: "the verifier, or the program that it ran, exceeded the time limit",
    Outcome.VERIFIER_FAILED: "the verifier failed, which says nothing about the answer",
}
"""What an outcome means where the verdict gives no reason of its own."""


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """An answer to a problem of a split with its verdict, and an answer that the task itself calls correct."""

    task: str
    split: Split
    problem: Problem
    answer: str
    verdict: Verdict
    accepted: str

    @property
    def reason(self) -> str:
        """Return why the answer was not accepted; nothing if it was."""
        return self.verdict.detail or REASONS[self.verdict.outcome]


def check_answer(
    task: Task,
    answer: str,
    *,
    problem: str | None = None,
    counts: Mapping[Split, int] | None = None,
    seed: int = 0,
    time_limit_s: float = 5.0,
) -> AnswerCheck:
    """Verify an answer to the problem with the id ``problem``, by default the first one that `check_task` shows.

    ``counts`` says how many problems of a split a run takes, where that may be more than the task gives unasked.

    Raises:
        ConfigError: the task has no such problem, or none at all.
    """
    split, found = _found(task, problem, seed, counts or {})
    with Verifier(task, time_limit_s=time_limit_s, failure_limit=1.0) as verifier:
        [verdict] = verifier.verify([(found, answer)])
    return AnswerCheck(task.name, split, found, answer, verdict, correct_answer(task, found))


def _found(task: Task, wanted: str | None, seed: int, counts: Mapping[Split, int]) -> tuple[Split, Problem]:
    """Return the first problem, or the one with the wanted id; the test split comes first, as in `check_task`."""
    limits = {split: (1,) if wanted is None else (None, *[counts[split]] * (split in counts)) for split in Split}
    for split, problem in _problems(task, seed, limits):
        if wanted in (None, problem.id):
            return split, problem
    if wanted is None:
        raise ConfigError(f"task {task.name!r} has no problem: see `selfcorrect tasks check`, without --answer.")
    raise ConfigError(
        f"task {task.name!r} has no problem with the id {wanted!r}: `selfcorrect tasks check` prints ids, as in "
        "`1. test ID`, and so does `selfcorrect show`."
    )


def _problems(task: Task, seed: int, limits: Mapping[Split, Sequence[int | None]]) -> Iterator[tuple[Split, Problem]]:
    for split in reversed(Split):
        for limit in limits[split]:
            try:
                for problem in task.problems(split, seed=seed, limit=limit):
                    yield split, problem
            except DataError:  # a split that the task does not have, or that holds fewer
                continue


def answer_json(found: AnswerCheck) -> dict[str, Any]:
    """Return what was found as plain values."""
    problem = {"id": found.problem.id, "split": found.split, "prompt": found.problem.prompt}
    return {
        "task": found.task,
        "problem": problem,
        "reference": found.problem.reference,
        "answer": found.answer,
        "verdict": asdict(found.verdict),
        "reason": found.reason,
        "accepted": found.accepted,
    }


def answer_text(found: AnswerCheck) -> str:
    """Return what was found as text: the problem, the answer, what was extracted, and the verdict with its reason."""
    verdict, reference = found.verdict, found.problem.reference
    extracted = "nothing" if verdict.extracted is None else verdict.extracted
    lines = [
        f"{found.split} {found.problem.id}",
        *quoted(found.problem.prompt),
        "answer",
        *quoted(found.answer),
        "extracted",
        *quoted(extracted),
        "reference",
        *quoted(reference),
        *wrapped(f"{verdict.outcome}{': ' if found.reason else ''}{found.reason}", ""),
        *(f"  {rule}: {outcome}" for rule, outcome in verdict.by_rule.items()),
        *(f"  {check.outcome}: {check.label}{check.detail and f' ({check.detail})'}" for check in verdict.checks),
    ]
    if not verdict.correct:
        lines += ["an answer that is accepted", *quoted(found.accepted)]
    return "\n".join(lines)
