"""Tokens of rows side by side without padding, each distinct prompt once; attention puts them back into rows for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from selfcorrect.models.cpu.prefix_attention import causal_attention


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows whose prompts are equally long, as many rows for each prompt: places among the prompts and among the rows."""

    prompts: slice
    rows: slice
    length: int


@dataclass(frozen=True, eq=False)
class Block:
    """Rows side by side: where their tokens lie in the flat order, and where in [N, R]."""

    tokens: slice
    count: int
    longest: int
    places: Tensor | None
    """Of every flat token its place among the N x R; None if the rows are all equally long."""

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int) -> Block:
        longest, total = max(lengths), sum(lengths)
        places = None
        if total != longest * len(lengths):
            places = torch.tensor([n * longest + r for n, length in enumerate(lengths) for r in range(length)])
        return cls(slice(begin, begin + total), len(lengths), longest, places)

    def rows(self, flat: Tensor) -> Tensor:
        """[N, R, ...] of [T, ...]."""
        own: Tensor = flat[self.tokens]
        if self.places is not None:
            own = own.new_zeros(self.count * self.longest, *own.shape[1:]).index_copy(0, self.places, own)
        return own.view(self.count, self.longest, *own.shape[1:])

    def flat(self, rows: Tensor) -> Tensor:
        """Back."""
        found = rows.flatten(0, 1)
        return found if self.places is None else found[self.places]


@dataclass(frozen=True, eq=False)
class PackedSequences:
    """Distinct prompts, then what follows them row by row, as one line of T tokens."""

    ids_T: Tensor
    position_T: Tensor
    prompts: Block | None
    rests: Block
    buckets: Sequence[Bucket]
    start_B: Tensor
    """Of every row, in the order given, where what follows its prompt begins."""
    prompt_end_B: Tensor
    """Of every row the place after its prompt's last token."""
    prompt_B: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int] | None = None) -> PackedSequences:
        """Of rows of ids that begin with prompts of these lengths, which are read once; None: nothing is shared.

        Every row has more tokens than its prompt.
        """
        lengths = [0] * len(rows) if prompt_lengths is None else list(prompt_lengths)
        members: dict[tuple[int, ...], list[int]] = {}
        for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            members.setdefault(tuple(row[:length]), []).append(b)
        # Like prompts side by side, so that a bucket is a slice of them.
        prompts = sorted(members, key=lambda prompt: (len(prompt), len(members[prompt])))
        line = _Line()
        ends = {prompt: line.add(prompt, 0) for prompt in prompts}
        block = Block.of([len(prompt) for prompt in prompts], 0) if line.ids else None
        begin, starts, rests = len(line.ids), [0] * len(rows), []
        for prompt in prompts:
            for b in members[prompt]:
                starts[b] = len(line.ids)
                rests.append(rows[b][len(prompt) :])
                line.add(rests[-1], len(prompt))
        return cls(
            torch.tensor(line.ids),
            torch.tensor(line.positions),
            block,
            Block.of([len(rest) for rest in rests], begin),
            _buckets([(len(prompt), len(members[prompt])) for prompt in prompts]),
            torch.tensor(starts),
            torch.tensor([ends[tuple(row[:length])] for row, length in zip(rows, lengths, strict=True)]),
            torch.tensor(lengths),
        )

    def before(self, row_S: Tensor, position_S: Tensor) -> Tensor:
        """The places of the tokens before these positions of these rows: those that predict them."""
        place_S = position_S - 1 - self.prompt_B[row_S]
        return torch.where(place_S < 0, self.prompt_end_B[row_S] + place_S, self.start_B[row_S] + place_S)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention of every token to its row's earlier ones: [T, H, d]."""
        q, k, v = (self.rests.rows(tensor) for tensor in (queries, keys, values))
        if self.prompts is None:
            return self.rests.flat(causal_attention(q, k, v, scale=scale))
        of_prompts = [self.prompts.rows(tensor) for tensor in (queries, keys, values)]
        first = self.prompts.flat(causal_attention(*of_prompts, scale=scale))
        found = []
        for bucket in self.buckets:
            prefix = of_prompts[1][bucket.prompts, : bucket.length], of_prompts[2][bucket.prompts, : bucket.length]
            own = [tensor[bucket.rows] for tensor in (q, k, v)]
            found.append(causal_attention(*own, scale=scale, prefix=prefix if bucket.length else None))
        return torch.cat([first, self.rests.flat(torch.cat(found) if len(found) > 1 else found[0])])


class _Line:
    """Tokens in a line, with their positions."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []

    def add(self, ids: Sequence[int], first: int) -> int:
        """Put some at the end, the first at this position; where they end."""
        self.ids += ids
        self.positions += range(first, first + len(ids))
        return len(self.ids)


def _buckets(kinds: Sequence[tuple[int, int]]) -> list[Bucket]:
    """Of each prompt's length and number of rows: prompts of the same kind stand side by side and make a bucket."""
    found, prompt, row = [], 0, 0
    for (length, rows), same in groupby(kinds):
        count = len(list(same))
        found.append(Bucket(slice(prompt, prompt + count), slice(row, row + count * rows), length))
        prompt, row = prompt + count, row + count * rows
    return found
