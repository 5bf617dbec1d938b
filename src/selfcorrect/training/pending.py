"""Episodes that wait for the step that learns from them, and their form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.training.stored_episodes import episodes_of_state, episodes_to_state
from selfcorrect.types import Episode, Problem


@dataclass(frozen=True, slots=True, eq=False)
class PendingSample:
    """The episodes of a step that has not begun.

    Attributes:
        step: the step that learns from them, counted from 0.
        learnt, first: as in `StepSample`.
        completions, tokens: how many were sampled, those included that no step learns from.
        gap: the engine gap when they were sampled, in nats (`AheadTrainer.engine_gap`).
    """

    step: int
    learnt: Sequence[Episode]
    first: Sequence[Episode]
    completions: int
    tokens: int
    gap: float

    @classmethod
    def of(cls, sample: StepSample, step: int, gap: float) -> PendingSample:
        """Return a step's sample without the episodes that nothing reads later."""
        return cls(step, sample.learnt, sample.first, sample.completions, sample.tokens, gap)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores; an episode that is both learnt and measured is stored once."""
        places: dict[int, int] = {}
        episodes: list[Episode] = []
        for episode in chain(self.first, self.learnt):
            if places.setdefault(id(episode), len(episodes)) == len(episodes):
                episodes.append(episode)
        return {
            **{name: getattr(self, name) for name in ("step", "completions", "tokens", "gap")},
            **{name: [places[id(episode)] for episode in getattr(self, name)] for name in ("learnt", "first")},
            **episodes_to_state(episodes),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], problems: Sequence[Problem]) -> PendingSample:
        """Return what `state_dict` stored; ``problems`` are the run's training problems.

        Raises:
            LookupError: a field, a problem or an episode is missing.
            ValueError: a field is malformed.
        """
        episodes = episodes_of_state(state, problems)
        numbers = [state[name] for name in ("step", "completions", "tokens", "gap")]
        learnt, first = ([episodes[place] for place in state[name]] for name in ("learnt", "first"))
        return cls(numbers[0], learnt, first, *numbers[1:])
