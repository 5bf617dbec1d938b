"""What stored episodes say of an attempt as arrays [N]; attempts are counted from 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfcorrect.evaluation.decomposition import Flags
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.types import StopReason


def correct_at(episodes: Sequence[StoredEpisode], attempt: int) -> Flags:
    """Return whether each episode's attempt is correct."""
    return np.array([episode.attempts[attempt].judged.correct for episode in episodes], dtype=bool)


def truncated_at(episodes: Sequence[StoredEpisode], attempt: int) -> Flags:
    """Return whether the token limit stopped each episode's attempt."""
    return np.array([episode.attempts[attempt].stop is StopReason.LENGTH for episode in episodes], dtype=bool)
