"""The data of the supervised baselines: pairs of attempts, chosen among the model's own (docs/method.md, section 7).

D_STaR   both attempts of one episode, wrong first and right second
D_SFT    a wrong first attempt, and any right response to the same problem out of all attempts at it
D+       the same with pairs whose first attempt is right already
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from selfcorrect.config.schema import SupervisedStage

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two attempts at a problem (its place in the training split); ``observation_ids`` is all that stands between them.

    ``correct`` holds the verdicts of both.
    """

    problem: int
    first: Ids
    observation_ids: Ids
    second: Ids
    correct: tuple[bool, bool]


def chosen_pairs(collected: Sequence[Pair], settings: SupervisedStage, rng: np.random.Generator) -> list[Pair]:
    """What is trained on, out of the episodes of a round."""
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
    """Every first attempt with a random right response to its problem, out of all attempts; without one, left out."""
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
    """Pairs as a checkpoint holds them: all ids in a row, and how many belong to each part."""
    parts = [part for pair in pairs for part in (pair.first, pair.observation_ids, pair.second)]
    return {
        "problem": torch.tensor([pair.problem for pair in pairs], dtype=torch.int64),
        "right": torch.tensor([pair.correct for pair in pairs], dtype=torch.bool),
        "lengths": torch.tensor([len(part) for part in parts], dtype=torch.int64),
        "ids": torch.tensor([i for part in parts for i in part], dtype=torch.int32),
    }


def from_tensors(stored: Mapping[str, Any]) -> list[Pair]:
    """Take back what `to_tensors` gave."""
    ids, ends = stored["ids"].tolist(), stored["lengths"].cumsum(0).tolist()
    parts = iter([tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)])
    return [
        Pair(problem, next(parts), next(parts), next(parts), (first, second))
        for problem, (first, second) in zip(stored["problem"].tolist(), stored["right"].tolist(), strict=True)
    ]
