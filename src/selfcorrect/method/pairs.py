"""The data of the supervised baselines: pairs selected from the model's own attempts (docs/method.md, section 7).

D_STaR   both attempts of one episode, the first incorrect and the second correct
D_SFT    an incorrect first attempt, and a correct response drawn from all attempts at the same problem
D+       either, with pairs whose first attempt is already correct
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from selfcorrect.config.stages import SupervisedStage

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two attempts at a problem and everything between them (``observation_ids``).

    ``problem`` is an index into the training split; ``correct`` holds both verdicts.
    """

    problem: int
    first: Ids
    observation_ids: Ids
    second: Ids
    correct: tuple[bool, bool]


def chosen_pairs(collected: Sequence[Pair], settings: SupervisedStage, rng: np.random.Generator) -> list[Pair]:
    """Return the pairs to train on, selected from a round's episodes by ``method`` and ``correct_pairs``."""
    candidates = list(collected) if settings.method == "star" else with_right_responses(collected, rng)
    candidates = [pair for pair in candidates if pair.correct[1]]
    improved = [pair for pair in candidates if not pair.correct[0]]
    kept = [pair for pair in candidates if pair.correct[0]]
    if settings.correct_pairs == "none":
        return improved
    if settings.correct_pairs == "equal" and len(kept) > len(improved):
        kept = [kept[i] for i in sorted(rng.permutation(len(kept))[: len(improved)])]
    return improved + kept


def with_right_responses(collected: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """Pair every first attempt with a random correct attempt at its problem; drop it if there is none."""
    responses: dict[int, list[Ids]] = {}
    for pair in collected:
        both = ((pair.first, pair.correct[0]), (pair.second, pair.correct[1]))
        responses.setdefault(pair.problem, []).extend(ids for ids, right in both if right)
    found = []
    for pair in collected:
        pool = responses[pair.problem]
        if pool:
            second = pool[int(rng.integers(len(pool)))]
            found.append(Pair(pair.problem, pair.first, pair.observation_ids, second, (pair.correct[0], True)))
    return found


def to_tensors(pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Return pairs as a checkpoint stores them: all ids concatenated, with the length of each part."""
    parts = [part for pair in pairs for part in (pair.first, pair.observation_ids, pair.second)]
    return {
        "problem": torch.tensor([pair.problem for pair in pairs], dtype=torch.int64),
        "right": torch.tensor([pair.correct for pair in pairs], dtype=torch.bool),
        "lengths": torch.tensor([len(part) for part in parts], dtype=torch.int64),
        "ids": torch.tensor([i for part in parts for i in part], dtype=torch.int32),
    }


def from_tensors(stored: Mapping[str, Any]) -> list[Pair]:
    """Restore the pairs that `to_tensors` stored."""
    ids, ends = stored["ids"].tolist(), stored["lengths"].cumsum(0).tolist()
    parts = iter([tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)])
    return [
        Pair(problem, next(parts), next(parts), next(parts), (first, second))
        for problem, (first, second) in zip(stored["problem"].tolist(), stored["right"].tolist(), strict=True)
    ]
