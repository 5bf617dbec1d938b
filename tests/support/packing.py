"""Pack episodes into rows as the trainer does."""

from __future__ import annotations

from collections.abc import Sequence

from selfcorrect.training.batch import MicroBatch, pack
from selfcorrect.training.sample import TrainingSample
from selfcorrect.types import Episode


def pack_episodes(
    episodes: Sequence[Episode],
    places: Sequence[int],
    *,
    pad_id: int,
    turns: Sequence[int] | None = None,
    share_prompts: bool = False,
) -> MicroBatch:
    samples = [TrainingSample.of_episode(episode, turns=turns) for episode in episodes]
    return pack(samples, places, pad_id=pad_id, share_prompts=share_prompts)
