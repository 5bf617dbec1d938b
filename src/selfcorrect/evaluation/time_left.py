"""The time that an evaluation still takes, from the replies of the model so far."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from selfcorrect.evaluation.planned_parts import PlannedPart
from selfcorrect.script import Script


class TimeLeft:
    """Estimates the seconds left of all parts, from the pace of this process alone: what was stored before took no time.

    Args:
        replies: the model's turns of one conversation, and the number of conversations, of each part in order.
        at_once: the conversations that a server holds at a time. When the first ones end, the others are half done on average.
    """

    def __init__(self, replies: Sequence[tuple[int, int]], at_once: int = 0) -> None:
        self._replies, self._at_once = replies, at_once
        self._part = self._stored = self._ended = self._begun = 0
        self._since = monotonic()

    def begin(self, part: int, stored: int) -> None:
        """Begin a part, of which ``stored`` conversations are there already."""
        self._part, self._stored, self._begun = part, stored, 0

    def sampled(self, replies: int) -> None:
        """Take note of replies in conversations that have not ended."""
        self._begun += replies

    def stored(self, conversations: int) -> None:
        """Take note of how many conversations of the part are stored now; none of the others has a whole reply."""
        self._ended += (conversations - self._stored) * self._replies[self._part][0]
        self._stored, self._begun = conversations, 0

    @property
    def seconds(self) -> float | None:
        """Return the estimate; None before the first reply."""
        each, conversations = self._replies[self._part]
        left = max(0, conversations - self._stored) * each
        half_done = min(self._at_once * each, left) / 2
        left += sum(count * turns for turns, count in self._replies[self._part + 1 :])
        done = self._ended + max(self._begun, half_done if self._ended else 0)
        if not done:
            return None
        elapsed = monotonic() - self._since
        return elapsed / done * max(0.0, left - max(self._begun, half_done))


def replies_of(parts: Sequence[PlannedPart], script: Script, problems: int) -> list[tuple[int, int]]:
    """Return for each part the model's turns of one conversation, feedback and verifications included, and the conversations."""
    turns = [len(script.with_turns(part.turns).user_turns()) - part.given for part in parts]
    return [(max(1, count), part.samples * problems) for count, part in zip(turns, parts, strict=True)]
