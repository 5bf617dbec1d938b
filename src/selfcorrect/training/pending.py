"""Episodes that wait for the step that learns from them, and their form in a checkpoint: plain values and two tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch

from selfcorrect.storage.episode_log import verdict_of_json, verdict_to_json
from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.types import Episode, Judgement, Problem, Role, StopReason, Turn

CHANGED = ("observation_ids", "ids", "logprobs", "stop", "verdict", "role", "said")
"""The fields of a turn that are stored in another form, or apart."""
AS_THEY_ARE = tuple(field.name for field in fields(Turn) if field.name not in CHANGED)


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
            **to_state(episodes),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], problems: Sequence[Problem]) -> PendingSample:
        """Return what `state_dict` stored; ``problems`` are the run's training problems.

        Raises:
            LookupError: a field, a problem or an episode is missing.
            ValueError: a field is malformed.
        """
        episodes = from_state(state, problems)
        numbers = [state[name] for name in ("step", "completions", "tokens", "gap")]
        learnt, first = ([episodes[place] for place in state[name]] for name in ("learnt", "first"))
        return cls(numbers[0], learnt, first, *numbers[1:])


def to_state(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return what a checkpoint stores of episodes."""
    turns = [turn for episode in episodes for turn in episode.turns]
    return {
        "episodes": [_plain(episode) for episode in episodes],
        "ids": torch.tensor([i for turn in turns for i in (*turn.observation_ids, *turn.ids)], dtype=torch.int32),
        "logprobs": torch.tensor([value for turn in turns for value in turn.logprobs], dtype=torch.float64),
    }


def from_state(state: Mapping[str, Any], problems: Sequence[Problem]) -> list[Episode]:
    """Return the episodes that `to_state` stored; ``problems`` are the run's training problems.

    Raises:
        LookupError: a field or a problem is missing.
        ValueError: a field is malformed.
    """
    by_id = {problem.id: problem for problem in problems}
    ids, logprobs = iter(state["ids"].tolist()), iter(state["logprobs"].tolist())
    episodes = [_episode(stored, by_id, ids, logprobs) for stored in state["episodes"]]
    if next(ids, None) is not None or next(logprobs, None) is not None:
        raise ValueError("the pending episodes have fewer tokens than the checkpoint")
    return episodes


def _plain(episode: Episode) -> dict[str, Any]:
    return {"problem": episode.problem.id, "sample": episode.sample, "turns": [_plain_turn(t) for t in episode.turns]}


def _plain_turn(turn: Turn) -> dict[str, Any]:
    """Return a turn with the numbers of its tokens in place of its tokens and log-probabilities."""
    return {
        "lengths": [len(turn.observation_ids), len(turn.ids), len(turn.logprobs)],
        "stop": turn.stop.value,
        "verdict": None if turn.verdict is None else verdict_to_json(turn.verdict),
        "role": turn.role.value,
        "said": None if turn.said is None else turn.said.value,
        **{name: getattr(turn, name) for name in AS_THEY_ARE},
    }


def _episode(
    stored: Mapping[str, Any], problems: Mapping[str, Problem], ids: Iterator[int], logprobs: Iterator[float]
) -> Episode:
    turns = tuple(_turn(turn, ids, logprobs) for turn in stored["turns"])
    return Episode(problems[stored["problem"]], stored["sample"], turns)


def _turn(stored: Mapping[str, Any], ids: Iterator[int], logprobs: Iterator[float]) -> Turn:
    before, own, scored = stored["lengths"]
    return Turn(
        observation_ids=_taken(ids, before),
        ids=_taken(ids, own),
        logprobs=_taken(logprobs, scored),
        stop=StopReason(stored["stop"]),
        verdict=None if stored["verdict"] is None else verdict_of_json(stored["verdict"]),
        role=Role(stored["role"]),
        said=None if stored["said"] is None else Judgement(stored["said"]),
        **{name: stored[name] for name in AS_THEY_ARE},
    )


def _taken(values: Iterator[Any], count: int) -> tuple[Any, ...]:
    """Return the next values.

    Raises:
        ValueError: there are fewer.
    """
    found = tuple(value for _, value in zip(range(count), values, strict=False))
    if len(found) < count:
        raise ValueError(f"the pending episodes lack {count - len(found)} tokens")
    return found
