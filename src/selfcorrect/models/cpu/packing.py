"""Rows packed into one line without padding, with each distinct prompt once; attention restores the rows it needs.

Rows ``p p a``, ``q c c`` and ``p p b`` with the prompts ``p p`` and ``q`` become the line ``q p p c c a b``: first the
prompts, then the rests in the same order. Everything but attention works on the line, so only attention ever pads.
Attention splits the line into two blocks of rows, and buckets map the prompts to their rests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from selfcorrect.models.cpu.prefix_attention import causal_attention
from selfcorrect.models.selection import rows_at


@dataclass(frozen=True, eq=False)
class Bucket:
    """Prompts of the same length with the same number of rows, and these rows: slices of the two blocks.

    Such prompts form a rectangle [P, rows per prompt], so one attention call handles them all.
    """

    prompts: slice
    rows: slice
    length: int


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the line with M tokens in N rows of at most R tokens; converts between line and rows.

    Attributes:
        tokens: the slice of the line.
        count: N.
        longest: R.
        place_M: each token's index among the N x R slots; None if all rows have the same length, so none is padded.
    """

    tokens: slice
    count: int
    longest: int
    place_M: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int) -> Block:
        """Return the block of rows with these lengths, the first of which starts at ``begin`` on the line."""
        longest, total = max(lengths), sum(lengths)
        place_M = None
        if total != longest * len(lengths):
            place_M = torch.tensor([n * longest + r for n, length in enumerate(lengths) for r in range(length)])
        return cls(slice(begin, begin + total), len(lengths), longest, place_M)

    def rows(self, line: Tensor) -> Tensor:
        """Return this part of the line [T, ...] as padded rows [N, R, ...]."""
        own: Tensor = line[self.tokens]  # [M, ...]
        if self.place_M is not None:
            own = own.new_zeros(self.count * self.longest, *own.shape[1:]).index_copy(0, self.place_M, own)
        return own.view(self.count, self.longest, *own.shape[1:])

    def flat(self, rows: Tensor) -> Tensor:
        """Return rows [N, R, ...] as a part of the line [M, ...], without the padding."""
        found = rows.flatten(0, 1)
        return found if self.place_M is None else rows_at(found, self.place_M)


@dataclass(frozen=True, eq=False)
class PackedSequences:
    """One line of T tokens: the distinct prompts, then the rest of each row.

    Attributes:
        ids_T: the tokens.
        position_T: the tokens' positions in their rows.
        prompts: the prompts' block; None if nothing is shared, so the rests are whole rows.
        rests: the block of the tokens after the prompts, in the prompts' order.
        buckets: maps prompts to their rests.
        start_B: the index at which each row's rest starts, in the rows' original order.
        prompt_end_B: the index after the last token of each row's prompt.
        prompt_B: the length of each row's prompt.
    """

    ids_T: Tensor
    position_T: Tensor
    prompts: Block | None
    rests: Block
    buckets: Sequence[Bucket]
    start_B: Tensor
    prompt_end_B: Tensor
    prompt_B: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int] | None = None) -> PackedSequences:
        """Pack rows of ids, storing each distinct prompt once; without ``prompt_lengths`` nothing is shared.

        Every row must have more tokens than its prompt.
        """
        lengths = [0] * len(rows) if prompt_lengths is None else list(prompt_lengths)
        members: dict[tuple[int, ...], list[int]] = {}
        for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            members.setdefault(tuple(row[:length]), []).append(b)
        # Sorting puts prompts of the same length and number of rows next to each other, so a bucket is a slice, not a copy.
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
        """Return the indices [S] of the tokens that predict these positions: each row's token one position earlier.

        The prompt's last token predicts the first one after it, but lies elsewhere on the line.
        """
        place_S = position_S - 1 - self.prompt_B[row_S]
        return torch.where(place_S < 0, self.prompt_end_B[row_S] + place_S, self.start_B[row_S] + place_S)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Let every token attend to its row up to itself: queries [T, H, d], keys and values [T, J, d] -> [T, H, d].

        Prompts attend to themselves once. Then each bucket's rests attend to themselves and to their prompts.
        """
        q, k, v = (self.rests.rows(tensor) for tensor in (queries, keys, values))  # [N, R, H, d] and twice [N, R, J, d]
        if self.prompts is None:
            return self.rests.flat(causal_attention(q, k, v, scale=scale))
        of_prompts = [self.prompts.rows(tensor) for tensor in (queries, keys, values)]  # [P, L, ...]
        first = self.prompts.flat(causal_attention(*of_prompts, scale=scale))
        found = []
        for bucket in self.buckets:
            # Truncate to the bucket's length [P, length, J, d], so no row sees a shorter prompt's padding.
            prefix = of_prompts[1][bucket.prompts, : bucket.length], of_prompts[2][bucket.prompts, : bucket.length]
            own = [tensor[bucket.rows] for tensor in (q, k, v)]
            found.append(causal_attention(*own, scale=scale, prefix=prefix if bucket.length else None))
        return torch.cat([first, self.rests.flat(torch.cat(found) if len(found) > 1 else found[0])])


class _Line:
    """A growing line of tokens with their positions."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []

    def add(self, ids: Sequence[int], first: int) -> int:
        """Append tokens, the first at position ``first`` of its row; return the index after the last."""
        self.ids += ids
        self.positions += range(first, first + len(ids))
        return len(self.ids)


def _buckets(kinds: Sequence[tuple[int, int]]) -> list[Bucket]:
    """Return one bucket per run of prompts with the same (length, number of rows)."""
    found, prompt, row = [], 0, 0
    for (length, rows), same in groupby(kinds):
        count = len(list(same))
        found.append(Bucket(slice(prompt, prompt + count), slice(row, row + count * rows), length))
        prompt, row = prompt + count, row + count * rows
    return found
