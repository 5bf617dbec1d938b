"""The data of the supervised baselines: pairs selected from the model's own attempts (docs/method.md, section 7).

D_STaR   both attempts of one episode, the first incorrect and the second correct
D_SFT    an incorrect first attempt, and a correct response drawn from all attempts at the same problem
D+       either, with pairs whose first attempt is already correct
D_IFT    as D_STaR, with a true verification between the attempts; a correct first attempt is the last one (section 10)
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

    ``problem`` is an index into the training split; ``correct`` holds both verdicts. Where a verification is trained, too,
    it stands apart: the conversation is first, observation, verification, ``asked_again``, second. Without a second attempt,
    the last two are empty, and the first one's verdict stands for it.
    """

    problem: int
    first: Ids
    observation_ids: Ids
    second: Ids
    correct: tuple[bool, bool]
    verification: Ids = ()
    asked_again: Ids = ()

    @property
    def parts(self) -> tuple[Ids, ...]:
        """Return the ids of the conversation in order, without the prompt."""
        return self.first, self.observation_ids, self.verification, self.asked_again, self.second


def chosen_pairs(collected: Sequence[Pair], settings: SupervisedStage, rng: np.random.Generator) -> list[Pair]:
    """Return the pairs to train on, selected from a round's episodes by ``method`` and ``correct_pairs``."""
    candidates = with_right_responses(collected, rng) if settings.method == "pair_sft" else list(collected)
    candidates = [pair for pair in candidates if pair.correct[1]]
    improved = [pair for pair in candidates if not pair.correct[0]]
    kept = [pair for pair in candidates if pair.correct[0]]
    if settings.correct_pairs == "none":
        return improved
    if settings.correct_pairs == "equal":
        kept = _at_most(len(improved), kept, rng)
        improved = _at_most(len(kept), improved, rng) if settings.told else improved
    return improved + kept


def _at_most(count: int, pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """Return ``count`` random pairs in their order, or all if there are no more."""
    return list(pairs) if len(pairs) <= count else [pairs[i] for i in sorted(rng.permutation(len(pairs))[:count])]


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
    parts = [part for pair in pairs for part in pair.parts]
    return {
        "problem": torch.tensor([pair.problem for pair in pairs], dtype=torch.int64),
        "right": torch.tensor([pair.correct for pair in pairs], dtype=torch.bool),
        "lengths": torch.tensor([len(part) for part in parts], dtype=torch.int64),
        "ids": torch.tensor([i for part in parts for i in part], dtype=torch.int32),
    }


def from_tensors(stored: Mapping[str, Any]) -> list[Pair]:
    """Restore the pairs that `to_tensors` stored, or a version that stored three parts of each: without verifications."""
    ids, ends = stored["ids"].tolist(), stored["lengths"].cumsum(0).tolist()
    parts = [tuple(ids[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    problems, verdicts = stored["problem"].tolist(), stored["right"].tolist()
    count = len(parts) // max(1, len(problems))
    found = []
    for i, (problem, (one, two)) in enumerate(zip(problems, verdicts, strict=True)):
        first, observation_ids, *between, second = parts[i * count : (i + 1) * count]
        found.append(Pair(problem, first, observation_ids, second, (one, two), *between))
    return found
