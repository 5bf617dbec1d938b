"""The learner's input: rows of tokens, each marked as trained or not, made from episodes, pairs and written texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from selfcorrect.types import TRAINED_ROLES, Episode

CONTEXT = -1
"""The turn of an untrained token: prompts, observations, feedback, attempts of another model."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One model turn of a conversation, with the observation before it.

    ``turn`` is the index under which ``ids`` are trained, or `CONTEXT`. ``logprobs`` are the engine's, one per id, in nats;
    None if no engine sampled the turn.
    """

    observation_ids: Sequence[int]
    ids: Sequence[int]
    turn: int = CONTEXT
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TrainingSample:
    """One row of training data.

    Attributes:
        ids: [T] token ids.
        turn: [T] the trained turn of every token, or `CONTEXT`.
        logprobs: [S] the engine's log-probability of every trained token, in order, in nats; 0 where no engine sampled it.
        prompt_length: the number of tokens in the first prompt; those that the forward pass may read for several rows at once.
    """

    ids: NDArray[np.int64]
    turn: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def context_length(self) -> int:
        """The number of tokens before the first trained one."""
        return len(self) if (self.turn == CONTEXT).all() else int((self.turn != CONTEXT).argmax())

    @classmethod
    def of_segments(cls, segments: Sequence[Segment]) -> TrainingSample:
        """Join the segments of a conversation.

        >>> sample = TrainingSample.of_segments([Segment([5, 6], [7]), Segment([8], [9, 1], turn=1)])
        >>> sample.ids.tolist(), sample.turn.tolist(), sample.prompt_length
        ([5, 6, 7, 8, 9, 1], [-1, -1, -1, -1, 1, 1], 2)
        """
        ids = list(chain.from_iterable((*part.observation_ids, *part.ids) for part in segments))
        turn = [k for part in segments for k in (*[CONTEXT] * len(part.observation_ids), *[part.turn] * len(part.ids))]
        logprobs = [
            value
            for part in segments
            if part.turn != CONTEXT
            for value in (part.logprobs if part.logprobs is not None else [0.0] * len(part.ids))
        ]
        return cls(
            np.array(ids, dtype=np.int64),
            np.array(turn, dtype=np.int64),
            np.array(logprobs, dtype=np.float64),
            len(segments[0].observation_ids),
        )

    @classmethod
    def of_episode(cls, episode: Episode, *, turns: Sequence[int] | None = None) -> TrainingSample:
        """Make the row of an episode. Only attempts and verifications can be trained; everything else is context.

        ``turns`` limits the trained turns, counted among `Episode.trained`; unset = all that the policy sampled.
        """
        segments: list[Segment] = []
        column = 0
        for turn in episode.turns:
            trained = turn.role in TRAINED_ROLES and turn.online and (turns is None or column in turns)
            segments.append(Segment(turn.observation_ids, turn.ids, column if trained else CONTEXT, turn.logprobs))
            column += turn.role in TRAINED_ROLES
        return cls.of_segments(segments)
