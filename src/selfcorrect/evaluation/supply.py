"""How many problems a task has for an evaluation, and what gives it more where a higher limit cannot.

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from selfcorrect.tasks.base import Task
from selfcorrect.types import Split

NAME = "supply"
"""The key in the results of a summary; the results of a task that can make more problems do not have it."""
OTHER_TASK = "choose a task that has more"


@dataclass(frozen=True, slots=True)
class Supply:
    """All problems that a task has in a split, and what the reader can do to have ``more``, as an imperative."""

    available: int
    more: str

    @classmethod
    def of(cls, task: Task, split: Split, *, taken: int, limit: int | None) -> Supply | None:
        """Return the supply of a task that gave ``taken`` problems for a ``limit``; None if it can give more, or may.

        A task that knows its splits has ``sizes``; of any other one, fewer problems than the limit are all that there are.
        """
        known: int | None = getattr(task, "sizes", {}).get(split)
        if known is None and limit is not None and taken < limit:
            known = taken
        return None if known is None else cls(known, more_of(task, split))

    @classmethod
    def stored(cls, results: Mapping[str, Any]) -> Supply | None:
        """Return the supply in the results of a summary; None if they have none, as in earlier versions."""
        found = results.get(NAME)
        return None if found is None else cls(found["available"], found["more"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        return asdict(self)

    def short_of(self, wanted: int) -> str:
        """Return in words that a number of problems cannot be had by a limit, and what gives more; empty if it can.

        >>> Supply(4, "add rows of data").short_of(60)
        'the task has only 4: add rows of data'
        >>> Supply(400, "add rows of data").short_of(60)
        ''
        """
        return "" if wanted <= self.available else f"the task has only {self.available:,}: {self.more}"


def more_of(task: Task, split: Split) -> str:
    """Return what gives a task more problems of a split: what its ``more_problems(split)`` says, if it has any."""
    own: Callable[[Split], str] | None = getattr(task, "more_problems", None)
    return OTHER_TASK if own is None else own(split)
