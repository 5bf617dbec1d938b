"""Stored first attempts, from which replayed groups take theirs (docs/method.md, section 14)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from selfcorrect.training.stored_episodes import episodes_of_state, episodes_to_state
from selfcorrect.types import Episode, Problem


class ReplayPool:
    """A pool of first attempts with their verdicts: the newest ``size`` incorrect and as many correct ones.

    Each is an episode that ends after its first turn. What is drawn depends only on what was added, in which order, and on the
    random numbers of the step.
    """

    def __init__(self, size: int) -> None:
        self._kinds: dict[bool, deque[Episode]] = {correct: deque(maxlen=size) for correct in (False, True)}

    def add(self, episodes: Iterable[Episode]) -> None:
        """Store the first attempts of the episodes that the model sampled; a copied one is stored once."""
        for episode in episodes:
            first, correct = episode.turns[0], episode.verdicts[0].correct
            if first.online:
                self._kinds[correct].append(replace(episode, turns=(first,)))

    def draw(self, numbers: range, rng: np.random.Generator) -> list[Episode]:
        """Return a first attempt for each of the ``numbers``: an incorrect one for an even number, a correct one for an odd one.

        Within a call, none is drawn again before all of its kind have been. A kind of which there is none is left out.
        """
        orders = {correct: rng.permutation(len(stored)) for correct, stored in self._kinds.items()}
        drawn: Counter[bool] = Counter()
        found = []
        for correct in (number % 2 == 1 for number in numbers):
            stored, order = self._kinds[correct], orders[correct]
            if stored:
                found.append(stored[order[drawn[correct] % len(stored)]])
                drawn[correct] += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores, as plain values and tensors."""
        return episodes_to_state([episode for stored in self._kinds.values() for episode in stored])

    def load_state_dict(self, state: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        """Restore what `state_dict` returned; ``problems`` are the run's training problems.

        Raises:
            LookupError, ValueError: it is malformed, or is about another problem.
        """
        for stored in self._kinds.values():
            stored.clear()
        self.add(episodes_of_state(state, problems))
