"""What to change where the answers of an evaluation tell nothing: the token limit, the number of problems, or the problems.

Truncated answers come first: how many of them would have been correct cannot be seen. Next, a rate that a few problems leave
open calls for more problems. Only a rate that is known to be small calls for other problems.

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.decomposition import FEWEST_ANSWERS, too_few
from selfcorrect.evaluation.intervals import wilson_interval

USEFUL = 0.1
"""A fraction of answers that can be measured with a reasonable number of problems; fewer truncated answers are no cause."""
ENOUGH = math.ceil(FEWEST_ANSWERS / USEFUL)
"""The problems among which a fraction of `USEFUL` is `FEWEST_ANSWERS` answers."""

REHEARSAL = 2 * FEWEST_ANSWERS
"""Fewer problems cannot have enough correct and enough incorrect answers: a run that takes them is being tried out."""


@dataclass(frozen=True, slots=True)
class Names:
    """How the reader of an advice sets the token limit and the number of problems."""

    max_tokens: str
    problems: str


OF_EVAL = Names("--max-tokens", "--limit")
OF_RUN = Names("rollout.max_tokens", "eval.problems")
OF_EITHER = Names("--max-tokens, in a run rollout.max_tokens", "--limit, in a run eval.problems")


@dataclass(frozen=True, slots=True)
class ControlsWarning:
    """How to warn that the controls will hardly tell anything: by which names, and what happens ``meanwhile``."""

    names: Names
    meanwhile: str


IN_EVAL = ControlsWarning(OF_EVAL, "The controls run now all the same; Ctrl-C ends the evaluation here")
IN_EVAL_KEPT = ControlsWarning(OF_EVAL, f"{IN_EVAL.meanwhile} and keeps the attempts")
IN_RUN = ControlsWarning(OF_RUN, "The run goes on; to change a setting, stop it (Ctrl-C) and begin another")


@dataclass(frozen=True, slots=True)
class Truncation:
    """The fraction of an attempt's answers that are truncated, and their length in tokens; None where it is unknown."""

    attempt: int
    share: float
    limit: int | None = None

    def text(self) -> str:
        """Return the numbers in words.

        >>> Truncation(1, 0.38, 24).text()
        '38.0% of the first answers are truncated at 24 tokens'
        """
        which = {1: "first", 2: "second"}.get(self.attempt, "later")
        at = "" if self.limit is None else f" at {self.limit:,} tokens"
        return f"{100 * self.share:.1f}% of the {which} answers are truncated{at}"


def truncations_of(results: Mapping[str, Any]) -> tuple[Truncation, ...]:
    """Return the truncation of both attempts in the results of a summary: the longest of truncated answers has the limit."""
    lengths = results.get("lengths", [])
    return tuple(
        Truncation(k, turn.get("truncated", 0.0), lengths[k - 1]["max"] if k <= len(lengths) else None)
        for k, turn in enumerate(results.get("turns", [])[:2], 1)
    )


def advice(
    rate: float, problems: int, truncated: Sequence[Truncation], *, others: str, names: Names = OF_EITHER
) -> str:
    """Return what to change where a fraction ``rate`` of the answers to some problems is too small to tell anything.

    ``truncated`` are the attempts whose truncated answers may be the cause; ``others`` are the problems with more such answers.

    >>> advice(0.02, 50, [Truncation(1, 0.38, 24)], others="easier", names=OF_EVAL)
    'raise the token limit (--max-tokens): 38.0% of the first answers are truncated at 24 tokens'
    >>> advice(0.25, 8, [Truncation(1, 0.0, 24)], others="easier", names=OF_EVAL)
    'take more problems, at least 60 (--limit): 8 are too few to tell'
    >>> advice(1 / 60, 60, [], others="easier")
    'take easier problems'
    """
    worst = max(truncated, key=lambda each: each.share, default=None)
    if worst is not None and worst.share >= USEFUL:
        return f"raise the token limit ({names.max_tokens}): {worst.text()}"
    if too_few(rate, problems) and wilson_interval(round(rate * problems), problems)[1] >= USEFUL:
        least = max(ENOUGH, math.ceil(FEWEST_ANSWERS / rate - 1e-6) if rate else 0)
        return f"take more problems, at least {least:,} ({names.problems}): {problems:,} are too few to tell"
    return f"take {others} problems"
