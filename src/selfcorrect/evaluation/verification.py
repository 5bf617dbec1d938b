"""How well a model judges its own attempts, where the script has it say so (`Role.VERIFICATION`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.intervals import Interval
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.types import Attempt, Judgement, Outcome, Role

VERDICTS: Mapping[str, str] = {
    "accuracy": "says what is so",
    "wrong_if_incorrect": "says wrong, of incorrect",
    "wrong_if_correct": "says wrong, of correct",
    "says_nothing": "says nothing",
}
"""The rates of a verification, by their names in a summary, with their heads in tables."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A fraction of ``n`` verifications with its 95% interval; None where ``n`` is 0."""

    value: float | None
    ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Verification:
    """One verification turn over the ``taken`` episodes that have it; ``skipped`` others do not.

    ``rates`` has those of `VERDICTS`: how often it says what the verifier says of the attempt before it, says wrong of incorrect
    and of correct ones, and says neither. ``tokens`` is the mean length; None if a server did not report some length.
    """

    taken: int
    skipped: int
    rates: Mapping[str, Rate]
    tokens: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        found: dict[str, Any] = {"taken": self.taken, "skipped": self.skipped}
        for name, rate in self.rates.items():
            found |= {name: rate.value, f"{name}_ci95": None if rate.ci95 is None else list(rate.ci95)}
        return {**found, "tokens": self.tokens}


def verifications(episodes: Sequence[StoredEpisode], *, seed: int) -> list[Verification]:
    """Return what the verifications of episodes of one script amount to, in their order; empty without any."""
    by_number: dict[int, list[tuple[str, StoredTurn, bool]]] = {}
    for episode in episodes:
        for number, (turn, correct) in enumerate(_judged(episode)):
            by_number.setdefault(number, []).append((episode.problem_id, turn, correct))
    return [_verification(found, seed) for found in by_number.values()]


def _judged(episode: StoredEpisode) -> Iterator[tuple[StoredTurn, bool]]:
    """Yield every verification with whether the attempt before it is correct."""
    correct = False
    for turn in episode.turns:
        if turn.role is Role.VERIFICATION:
            yield turn, correct
        elif turn.verdict is not None:
            correct = turn.verdict.correct


def _verification(found: Sequence[tuple[str, StoredTurn, bool]], seed: int) -> Verification:
    taken = [(problem, turn, correct) for problem, turn, correct in found if not turn.skipped]
    wrong = {
        correct: [(p, turn.said is Judgement.WRONG) for p, turn, right in taken if right is correct]
        for correct in (False, True)
    }
    right = [(p, turn.said is (Judgement.CORRECT if correct else Judgement.WRONG)) for p, turn, correct in taken]
    rates = {
        "accuracy": _rate(right, seed),
        "wrong_if_incorrect": _rate(wrong[False], seed),
        "wrong_if_correct": _rate(wrong[True], seed),
        "says_nothing": _rate([(p, turn.said is None) for p, turn, _ in taken], seed),
    }
    lengths = [turn.length for _, turn, _ in taken]
    known = [length for length in lengths if length is not None]
    tokens = sum(known) / len(known) if known and len(known) == len(lengths) else None
    return Verification(len(taken), len(found) - len(taken), rates, tokens)


def _rate(hits: Sequence[tuple[str, bool]], seed: int) -> Rate:
    """Return the fraction of hits; problems with several samples are resampled whole, as for accuracies."""
    if not hits:
        return Rate(None, None)
    outcomes = [Outcome.CORRECT if hit else Outcome.INCORRECT for _, hit in hits]
    counted = summarize([p for p, _ in hits], [[Attempt(outcome, "", None, False)] for outcome in outcomes], seed=seed)
    return Rate(counted.acc_t1, counted.acc_t1_ci95)
