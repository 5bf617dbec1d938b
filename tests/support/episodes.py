"""Write problems, turns and episodes by hand."""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.rng import SampleKey
from selfcorrect.script import Script
from selfcorrect.types import Episode, Outcome, Problem, StopReason, Turn, Verdict

SCRIPT = Script(revise="Please correct the error.")


def problem(name: str = "p", prompt: str = "1+2=", reference: str = "3") -> Problem:
    return Problem(name, prompt, reference)


def verdict(right: float) -> Verdict:
    return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT)


def turn(
    observation_ids: Sequence[int],
    ids: Sequence[int],
    right: float = 0,
    *,
    logprobs: Sequence[float] | None = None,
    stop: StopReason = StopReason.END,
    online: bool = True,
) -> Turn:
    given = tuple(logprobs) if logprobs is not None else (-0.5,) * len(ids)
    return Turn(tuple(observation_ids), tuple(ids), given, " ".join(map(str, ids)), stop, verdict(right), online)


def episode(*turns: Turn, name: str = "p", sample: int = 0) -> Episode:
    return Episode(problem(name), sample, tuple(turns))


def sample_key(name: str = "p", sample: int = 0, turn: int = 0, *, seed: int = 0, step: int = 0) -> SampleKey:
    return SampleKey(seed, "test", step, name, sample, turn)
