"""Episodes as rows of tokens: packing, micro-batches, sums per turn.

A row is one episode: prompt, attempt, observation, attempt, ... ``turn_BT`` holds the attempt that each position belongs
to, or -1 where nothing is trained (prompt, observations, padding, attempts of another model).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.forward import DistinctPrompts
from selfcorrect.training.sample import CONTEXT, TrainingSample

CPU_BUDGET, GPU_BUDGET = 4_096, 16_384
"""Tokens per micro-batch. With more on a CPU, what a layer saves for the backward pass no longer fits its caches."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A micro-batch of B rows of T tokens, padded on the right. S counts the scored positions, row by row.

    Per-token values are kept as [S] and not as [B, T], so padding and context cost nothing after the forward pass.

    Attributes:
        tokens_BT: token ids.
        mask_BT: False on padding.
        turn_BT: the trained turn of each token, or `CONTEXT`.
        episode_B: each row's index among the episodes of the step.
        logprobs_S: the engine's log-probabilities of the scored tokens, in nats.
        prompt_B: how many tokens each row begins with that are read once for all rows with the same, else None: its prompt,
            or more (`with_shared_contexts`).
        pad_id: the id on padding.
    """

    tokens_BT: Tensor
    mask_BT: Tensor
    turn_BT: Tensor
    episode_B: Tensor
    logprobs_S: Tensor
    prompt_B: Tensor | None = None
    pad_id: int = 0

    @cached_property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Return the row [S] and the position [S] of every scored token."""
        row_S, position_S = (self.turn_BT >= 0).nonzero(as_tuple=True)
        return row_S, position_S

    @cached_property
    def turn_S(self) -> Tensor:
        return self.turn_BT[self.scored].long()

    @cached_property
    def episode_S(self) -> Tensor:
        return self.episode_B[self.scored[0]]

    @cached_property
    def packed(self) -> PackedSequences:
        """Return the rows without padding, for the fast forward pass. The policy and the references share the result."""
        return PackedSequences.of(self._rows(), None if self.prompt_B is None else self.prompt_B.tolist())

    @cached_property
    def prompts(self) -> DistinctPrompts:
        """Return the distinct prompts, for the general forward pass. The policy and the references share the result."""
        assert self.prompt_B is not None
        return DistinctPrompts.of(self._rows(), self.prompt_B.tolist(), self.pad_id)

    def _rows(self) -> list[list[int]]:
        return [
            tokens[mask].tolist() for tokens, mask in zip(self.tokens_BT.numpy(), self.mask_BT.numpy(), strict=True)
        ]

    def to(self, device: torch.device) -> MicroBatch:
        """Return the batch on a device, with what only the host can find out without waiting for it."""
        if device.type == "cpu":
            return self
        moved = MicroBatch(
            self.tokens_BT.to(device),
            self.mask_BT.to(device),
            self.turn_BT.to(device),
            self.episode_B.to(device),
            self.logprobs_S.to(device),
            None if self.prompt_B is None else self.prompt_B.to(device),
            self.pad_id,
        )
        there: dict[str, Any] = {"scored": tuple(index.to(device) for index in self.scored)}
        if self.prompt_B is not None:
            there["prompts"] = self.prompts.to(device)
        moved.__dict__.update(there)  # the cached properties
        return moved


def pack(
    samples: Sequence[TrainingSample],
    places: Sequence[int],
    *,
    pad_id: int,
    share_prompts: bool = False,
    episodes: Sequence[int] | None = None,
) -> MicroBatch:
    """Pack the samples at the indices ``places`` into rows [B, T], padded on the right.

    ``episodes`` has the index of every sample's episode among those of the step; unset = the sample's own index.
    With ``share_prompts`` the forward pass reads each distinct prompt once for all rows that begin with it; the samples say
    what counts as their prompt (`TrainingSample.prompt_length`).
    """
    chosen = [samples[i] for i in places]
    shape = (len(chosen), max(map(len, chosen)))
    tokens_BT = np.full(shape, pad_id, dtype=np.int64)
    turn_BT = np.full(shape, CONTEXT, dtype=np.int64)
    for b, sample in enumerate(chosen):
        tokens_BT[b, : len(sample)], turn_BT[b, : len(sample)] = sample.ids, sample.turn
    mask_BT = np.arange(shape[1])[None] < np.array([len(sample) for sample in chosen])[:, None]
    return MicroBatch(
        torch.from_numpy(tokens_BT),
        torch.from_numpy(mask_BT),
        torch.from_numpy(turn_BT),
        torch.tensor([i if episodes is None else episodes[i] for i in places]),
        torch.from_numpy(np.concatenate([sample.logprobs for sample in chosen])),
        torch.tensor([sample.prompt_length for sample in chosen]) if share_prompts else None,
        pad_id,
    )


def with_shared_contexts(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    """Return the samples with a longer prompt where several have the same tokens before their first trained one.

    Such are the revisions of one first attempt, which all but the first have as context: it is then read once for them.

    >>> from selfcorrect.training.sample import Segment
    >>> rows = [TrainingSample.of_segments([Segment([5, 6], [7]), Segment([8], [9, k], turn=1)]) for k in (1, 2)]
    >>> [row.prompt_length for row in with_shared_contexts(rows)]
    [4, 4]
    """
    contexts = [tuple(sample.ids[: sample.context_length].tolist()) for sample in samples]
    rows = Counter(contexts)
    return [
        replace(sample, prompt_length=len(context))
        if sample.prompt_length < len(context) < len(sample) and rows[context] > 1
        else sample
        for sample, context in zip(samples, contexts, strict=True)
    ]


def filler(*, pad_id: int, share_prompts: bool = False) -> MicroBatch:
    """Return a micro-batch with nothing to learn, which takes the same forward passes as the others do."""
    tokens_BT = torch.full((1, 2), pad_id)
    return MicroBatch(
        tokens_BT,
        torch.ones_like(tokens_BT, dtype=torch.bool),
        torch.full_like(tokens_BT, CONTEXT),
        torch.zeros(1, dtype=torch.long),
        torch.zeros(0, dtype=torch.float64),
        torch.ones(1, dtype=torch.long) if share_prompts else None,
        pad_id,
    )


def micro_batch_tokens(wanted: int | None, device: torch.device) -> int:
    """Return the tokens per micro-batch: ``wanted`` (`optimizer.micro_batch_tokens`), or what suits the device."""
    return wanted or (CPU_BUDGET if device.type == "cpu" else GPU_BUDGET)


def micro_batches(lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Split rows into batches of at most ``micro_batch_tokens`` padded tokens, but at least one row; return their indices.

    Rows of similar length go together, to limit padding. The split changes memory and speed but not the gradient, because
    sums are divided by the number of episodes in the whole step, never in a micro-batch.

    >>> micro_batches([3, 9, 3, 8], micro_batch_tokens=18)
    [[0, 2], [3, 1]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= micro_batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def turn_sums(values_S: Tensor, rows: MicroBatch, episodes: int, turns: int) -> Tensor:
    """Sum a per-token value over each turn of each episode: [S] -> [N, K], zero for episodes not in ``rows``."""
    sums = values_S.new_zeros(episodes * turns)
    return sums.index_add(0, rows.episode_S * turns + rows.turn_S, values_S).view(episodes, turns)
