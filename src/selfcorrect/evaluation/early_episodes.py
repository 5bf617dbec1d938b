"""Conversations that finished before an earlier one did when an evaluation stopped; a later call takes them over.

Episodes are stored in the order of the problems, so that a file is the same however long each reply took. A slow conversation
holds back those behind it. When the evaluation stops, they go into a file of their own, ``.NAME-PART.early``, until the part
resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.storage.files import json_line, write_atomically

Key = tuple[str, int]
"""A problem's id and the number of its sample."""


def early_file(log: Path) -> Path:
    """Return the file of early episodes next to a part's log.

    >>> early_file(Path("episodes/eval-swap.jsonl")).as_posix()
    'episodes/.eval-swap.early'
    """
    return log.with_name(f".{log.stem}.early")


def read_early(log: Path | None) -> dict[Key, StoredEpisode]:
    """Return the early episodes of a part; none without a file."""
    file = None if log is None else early_file(log)
    if file is None or not file.exists():
        return {}
    return {(episode.problem_id, episode.sample): episode for episode in read_episodes(file)}


def write_early(log: Path, episodes: Iterable[StoredEpisode]) -> None:
    """Keep the early episodes of a part that stops, in place of those kept before."""
    text = "".join(json_line(episode.to_json()) for episode in episodes if episode.failure is None)
    if text:
        write_atomically(early_file(log), text)
    else:
        early_file(log).unlink(missing_ok=True)


def in_order(
    keys: Sequence[Key], early: Mapping[Key, StoredEpisode], played: Iterable[Sequence[StoredEpisode]]
) -> Iterator[list[StoredEpisode]]:
    """Yield all episodes in the order of the keys, a few at a time: early ones, and between them those played now."""
    left = iter(keys)
    for episodes in played:
        found: list[StoredEpisode] = []
        for episode in episodes:
            for key in left:
                found.append(early.get(key, episode))
                if key not in early:
                    break
        yield found
    rest = [early[key] for key in left]
    if rest:
        yield rest
