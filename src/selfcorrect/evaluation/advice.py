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
from selfcorrect.evaluation.supply import Supply

USEFUL = 0.1
"""A fraction of answers that can be measured with a reasonable number of problems; fewer truncated answers are no cause."""
MOST = 0.5
"""The fraction of truncated first attempts from which the others' wide intervals are the token limit's fault."""
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
IN_RUN = ControlsWarning(OF_RUN, "The run continues; to change a setting, stop it (Ctrl-C) and start another")


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


def more_problems(least: int, about: str, names: Names, supply: Supply | None) -> tuple[str, str]:
    """Return what to take, and why a limit does not give it, which is empty where it does.

    >>> more_problems(60, "at least", OF_EVAL, None)
    ('take more problems, at least 60 (--limit)', '')
    >>> more_problems(60, "at least", OF_EVAL, Supply(4, "add rows of data"))
    ('take more problems, at least 60', 'the task has only 4: add rows of data')
    """
    short = supply.short_of(least) if supply is not None else ""
    return f"take more problems, {about} {least:,}" + ("" if short else f" ({names.problems})"), short


def advice(
    rate: float,
    problems: int,
    truncated: Sequence[Truncation],
    *,
    others: str,
    names: Names = OF_EITHER,
    supply: Supply | None = None,
) -> str:
    """Return what to change where a fraction ``rate`` of the answers to some problems is too small to tell anything.

    ``truncated`` are the attempts whose truncated answers may be the cause; ``others`` are the problems with more such answers.
    ``supply`` has all problems of a task that cannot make more: no limit gives more than these.

    >>> advice(0.02, 50, [Truncation(1, 0.38, 24)], others="easier", names=OF_EVAL)
    'raise the token limit (--max-tokens): 38.0% of the first answers are truncated at 24 tokens'
    >>> advice(0.25, 8, [Truncation(1, 0.0, 24)], others="easier", names=OF_EVAL)
    'take more problems, at least 60 (--limit): 8 are too few to tell'
    >>> advice(0.25, 4, [], others="easier", supply=Supply(4, "add rows of data"))
    'take more problems, at least 60: 4 are too few to tell, and the task has only 4: add rows of data'
    >>> advice(1 / 60, 60, [], others="easier")
    'take easier problems'
    """
    worst = max(truncated, key=lambda each: each.share, default=None)
    if worst is not None and worst.share >= USEFUL:
        return f"raise the token limit ({names.max_tokens}): {worst.text()}"
    if too_few(rate, problems) and wilson_interval(round(rate * problems), problems)[1] >= USEFUL:
        least = max(ENOUGH, math.ceil(FEWEST_ANSWERS / rate - 1e-6) if rate else 0)
        take, short = more_problems(least, "at least", names, supply)
        return f"{take}: {problems:,} are too few to tell{f', and {short}' if short else ''}"
    return f"take {others} problems"


def narrower(
    times: float, problems: int, truncated: Sequence[Truncation], *, supply: Supply | None = None, seeds: int = 1
) -> str:
    """Return what to change where intervals are too wide, and ``times`` as many problems make them narrow enough.

    The width falls with the square root of the number. ``problems`` are those with a complete first attempt: where ``truncated``
    says that most first attempts are not, the token limit comes first. Intervals over several ``seeds`` need more of these.

    >>> narrower(4.7, 36, [Truncation(1, 0.1, 24)])
    'the intervals are wide: take more problems, roughly 190 (--limit, in a run eval.problems)'
    >>> narrower(4.7, 36, [Truncation(1, 0.1, 24)], supply=Supply(40, "add rows of data"))
    'the intervals are wide: take more problems, roughly 190; the task has only 40: add rows of data'
    >>> narrower(4.7, 36, [], seeds=3)
    'the intervals over 3 seeds are wide: run more seeds, roughly 15'
    """
    if seeds > 1:
        return f"the intervals over {seeds} seeds are wide: run more seeds, roughly {_rounded(times * seeds):,}"
    share = max((each.share for each in truncated), default=0.0)
    if share >= MOST:
        return f"the intervals are wide: raise the token limit ({OF_EITHER.max_tokens}): {truncated[0].text()}"
    take, short = more_problems(_rounded(times * problems / (1 - share)), "roughly", OF_EITHER, supply)
    return f"the intervals are wide: {take}{f'; {short}' if short else ''}"


def _rounded(number: float) -> int:
    """Return a number rounded up to two digits."""
    unit: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit - 1e-6) * unit
