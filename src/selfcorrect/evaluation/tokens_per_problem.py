"""How many tokens a model samples for a problem at test, over all turns of a conversation.

Acc@t2 of two models compares at equal cost only if they sample about as much. A second attempt that a verification makes
unnecessary costs nothing; the verification itself does.

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.evaluation.intervals import Interval, mean_interval
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.types import Role

NAME = "tokens_per_problem"
"""The key in the results of a summary; earlier versions, and servers that report no lengths, leave it out."""


@dataclass(frozen=True, slots=True)
class TokensPerProblem:
    """The mean number of tokens that a model samples in a conversation about one problem, with its 95% interval.

    ``mean`` is ``attempts`` + ``other``: the tokens of its attempts, and those of its verifications and feedback.
    """

    mean: float
    ci95: Interval | None
    attempts: float
    other: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the names that they have in the results of a summary."""
        interval = None if self.ci95 is None else list(self.ci95)
        parts = {f"{NAME}_attempts": self.attempts, f"{NAME}_other": self.other}
        return {NAME: self.mean, f"{NAME}_ci95": interval, **parts}


def tokens_per_problem(episodes: Sequence[StoredEpisode]) -> TokensPerProblem | None:
    """Return the tokens of episodes of one script; None if a server did not report some length, or there are no episodes.

    A skipped turn counts 0, and so does a draft that was given, for instance by a shared pool. Conversations in which a server
    did not answer a request are left out.
    """
    attempts, other = 0, 0
    by_problem: dict[str, tuple[int, int]] = {}
    for episode in episodes:
        if episode.failure is not None:
            continue
        counts = [(turn.role, turn.sampled) for turn in episode.turns]
        known = [(role, count) for role, count in counts if count is not None]
        if len(known) < len(counts):
            return None
        own = sum(count for role, count in known if role is Role.ATTEMPT)
        whole = sum(count for _, count in known)
        attempts, other = attempts + own, other + whole - own
        total, number = by_problem.get(episode.problem_id, (0, 0))
        by_problem[episode.problem_id] = (total + whole, number + 1)
    if not by_problem:
        return None
    totals, numbers = zip(*by_problem.values(), strict=True)
    n = sum(numbers)
    return TokensPerProblem((attempts + other) / n, mean_interval(totals, numbers), attempts / n, other / n)


def tokens_text(results: Mapping[str, Any]) -> str:
    """Return the tokens of stored results in words; empty if they have none.

    >>> tokens_text({"tokens_per_problem": 12.04, "tokens_per_problem_ci95": [11.0, 13.1], "tokens_per_problem_other": 2.5})
    '12.0 per problem [11.0, 13.1], of which 2.5 are not in attempts'
    >>> tokens_text({"tokens_per_problem": 8.0, "tokens_per_problem_ci95": None, "tokens_per_problem_other": 0.0})
    '8.0 per problem'
    """
    if results.get(NAME) is None:
        return ""
    interval, other = results.get(f"{NAME}_ci95"), results.get(f"{NAME}_other")
    words = f"{results[NAME]:,.1f} per problem"
    if interval is not None:
        words += f" [{interval[0]:,.1f}, {interval[1]:,.1f}]"
    return f"{words}, of which {other:,.1f} are not in attempts" if other else words
