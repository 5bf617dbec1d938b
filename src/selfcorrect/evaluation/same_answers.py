"""Attempts that nearly all give one and the same answer, whatever the problem asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from selfcorrect.storage.episode_log import StoredEpisode

NEARLY_ALL = 0.9
"""The fraction of the attempts that give one answer, and of the problems for which it is right, below which that is no policy."""
LEAST = 20
"""Episodes from which a common answer says something."""
LONGEST = 60
"""The longest answer that is kept, in characters."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def same_answers(episodes: Sequence[StoredEpisode]) -> dict[str, dict[str, Any]]:
    """Return for each attempt, ``t1`` and so on, the answer that nearly all episodes give; attempts without one are missing.

    ``count`` of ``n`` episodes give it, and it would be right in ``right`` of them: where the reference is the answer, or one
    for which the answer was judged correct. An answer that is right nearly always is none to report.
    """
    found = {}
    for k, attempts in enumerate(zip(*(episode.attempts for episode in episodes), strict=True), 1):
        given = [None if turn.verdict is None or turn.skipped else turn.verdict.extracted for turn in attempts]
        common = Counter(answer for answer in given if answer is not None).most_common(1)
        if len(given) < LEAST or not common or common[0][1] < NEARLY_ALL * len(given):
            continue
        answer, count = common[0]
        both = zip(episodes, attempts, given, strict=True)
        fitting = {answer} | {
            e.reference for e, turn, said in both if said == answer and turn.verdict and turn.verdict.correct
        }
        right = sum(episode.reference in fitting for episode in episodes)
        if right < NEARLY_ALL * len(given):
            found[f"t{k}"] = {"answer": answer[:LONGEST], "count": count, "n": len(given), "right": right}
    return found


def same_answer_text(attempt: str, found: Mapping[str, Any]) -> str:
    """Return what `same_answers` found of one attempt, in words.

    >>> same_answer_text("t2", {"answer": "A", "count": 40, "n": 40, "right": 13})
    "the second attempts say 'A' in 40 of 40; always answering it would be right in 32.5%"
    """
    number = int(attempt.removeprefix("t"))
    name = ORDINALS[number - 1] if number <= len(ORDINALS) else f"{number}th"
    share = 100 * found["right"] / found["n"]
    return (
        f"the {name} attempts say {found['answer']!r} in {found['count']:,} of {found['n']:,}; always answering it would be "
        f"right in {share:.1f}%"
    )
