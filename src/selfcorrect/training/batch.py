"""Episodes as rows of tokens: packing, micro-batches, sums per turn.

A row is one episode: prompt, attempt, observation_ids, attempt, ... ``turn_BT`` says of every position which attempt
sampled it, or -1 for what nobody trains (prompt, observation_ids, padding, attempts of another model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.types import Episode

CPU_BUDGET, GPU_BUDGET = 4_096, 16_384
"""Tokens of a micro-batch. More on a CPU, and what a layer leaves for the backward pass no longer fits its caches."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A micro-batch, padded on the right. S counts the scored positions, row by row.

    ``logprobs_S`` are the engine's log-probabilities of the scored tokens; ``episode_B`` is each row's
    place among the episodes of the step. ``prompt_B`` are the lengths of the prompts, where each distinct prompt is to
    be read once for all of its rows.
    """

    tokens_BT: Tensor
    mask_BT: Tensor
    turn_BT: Tensor
    episode_B: Tensor
    logprobs_S: Tensor
    prompt_B: Tensor | None = None

    @property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Row and position of every scored token."""
        row_S, position_S = (self.turn_BT >= 0).nonzero(as_tuple=True)
        return row_S, position_S

    @property
    def turn_S(self) -> Tensor:
        return self.turn_BT[self.turn_BT >= 0].long()

    @property
    def episode_S(self) -> Tensor:
        return self.episode_B[self.scored[0]]

    @cached_property
    def layout(self) -> PackedSequences:
        """The rows without padding, for our own forward pass; the policy's and the references' are the same one."""
        ids = [tokens[mask].tolist() for tokens, mask in zip(self.tokens_BT.numpy(), self.mask_BT.numpy(), strict=True)]
        return PackedSequences.of(ids, None if self.prompt_B is None else self.prompt_B.tolist())

    def to(self, device: torch.device) -> Rows:
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Rows(**{name: tensor.to(device) for name, tensor in given.items() if tensor is not None})


def pack(
    episodes: Sequence[Episode],
    places: Sequence[int],
    *,
    pad_id: int,
    turns: Sequence[int] | None = None,
    share_prompts: bool = False,
) -> Rows:
    """Rows for the episodes at ``places``. ``turns`` limits which attempts are scored (default: all online ones)."""
    chosen = [episodes[i] for i in places]
    lengths = [len(episode.ids) for episode in chosen]
    shape = (len(chosen), max(lengths))
    tokens = np.full(shape, pad_id, dtype=np.int64)
    turn_of = np.full(shape, -1, dtype=np.int64)
    logprobs: list[float] = []
    for b, episode in enumerate(chosen):
        tokens[b, : lengths[b]] = episode.ids
        position = 0
        for k, (before, turn) in enumerate(zip(episode.observations, episode.attempts, strict=True)):
            start = position + len(before)
            position = start + len(turn.ids)
            if turn.online and (turns is None or k in turns):
                turn_of[b, start:position] = k
                logprobs.extend(turn.logprobs)
    mask = np.arange(shape[1])[None] < np.array(lengths)[:, None]
    return Rows(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(turn_of),
        torch.tensor(list(places)),
        torch.tensor(logprobs, dtype=torch.float64),
        torch.tensor([len(episode.turns[0].observation_ids) for episode in chosen]) if share_prompts else None,
    )


def token_budget(wanted: int | None, device: torch.device) -> int:
    """The tokens of a micro-batch: as wanted, or what suits the device (`optimizer.token_budget`)."""
    return wanted or (CPU_BUDGET if device.type == "cpu" else GPU_BUDGET)


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split rows into batches of at most ``token_budget`` padded tokens (always at least one row each).

    Rows of like length go together, so little is padded. The split changes memory and speed, not the
    gradient: sums are divided by the number of episodes of the whole step, never by a micro-batch's own.

    >>> micro_batches([3, 9, 3, 8], token_budget=18)
    [[0, 2], [3, 1]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def turn_sums(values_S: Tensor, rows: Rows, episodes: int, turns: int) -> Tensor:
    """Sum a per-token value over each turn of each episode: [S] -> [N, K], zero for episodes not in ``rows``."""
    sums = values_S.new_zeros(episodes * turns)
    return sums.index_add(0, rows.episode_S * turns + rows.turn_S, values_S).view(episodes, turns)
