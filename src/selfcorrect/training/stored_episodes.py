"""The form of episodes in a checkpoint: plain values and two tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from selfcorrect.storage.episode_log import verdict_of_json, verdict_to_json
from selfcorrect.types import Episode, Judgement, Problem, Role, StopReason, Turn

CHANGED = ("observation_ids", "ids", "logprobs", "stop", "verdict", "role", "said")
"""The fields of a turn that are stored in another form, or apart."""
AS_THEY_ARE = tuple(field.name for field in fields(Turn) if field.name not in CHANGED)


def episodes_to_state(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Return episodes as plain values and two tensors: all token ids, and the log-probabilities of the models' turns."""
    turns = [turn for episode in episodes for turn in episode.turns]
    return {
        "episodes": [_plain(episode) for episode in episodes],
        "ids": torch.tensor([i for turn in turns for i in (*turn.observation_ids, *turn.ids)], dtype=torch.int32),
        "logprobs": torch.tensor([value for turn in turns for value in turn.logprobs], dtype=torch.float64),
    }


def episodes_of_state(state: Mapping[str, Any], problems: Sequence[Problem]) -> list[Episode]:
    """Return what `episodes_to_state` stored; ``problems`` are the run's training problems.

    Raises:
        LookupError: a field or a problem is missing.
        ValueError: a field is malformed.
    """
    by_id = {problem.id: problem for problem in problems}
    ids, logprobs = iter(state["ids"].tolist()), iter(state["logprobs"].tolist())
    episodes = [_episode(stored, by_id, ids, logprobs) for stored in state["episodes"]]
    if next(ids, None) is not None or next(logprobs, None) is not None:
        raise ValueError("the stored episodes have fewer tokens than the checkpoint")
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
        raise ValueError(f"the stored episodes lack {count - len(found)} tokens")
    return found
