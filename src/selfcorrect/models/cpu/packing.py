"""Tokens of rows in one line without padding, each distinct prompt once; attention puts them back into rows for itself.

Rows ``p p a``, ``q c c`` and ``p p b``, whose prompts are ``p p`` and ``q``, become the line ``q p p c c a b``: first the
prompts, then the rests in the same order. Everything but attention works on the line. Attention takes it apart into two blocks of
rows, and buckets say which prompts and which rests belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from selfcorrect.models.cpu.prefix_attention import causal_attention


@dataclass(frozen=True, eq=False)
class Bucket:
    """Prompts that are equally long and have equally many rows, and these rows: slices of the two blocks.

    Only such prompts make a rectangle [P, rows a prompt], so one call of attention takes them all.
    """

    prompts: slice
    rows: slice
    length: int


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the line whose M tokens are N rows of at most R: from the line to rows, and back.

    Attributes:
        tokens: the part.
        count: N.
        longest: R.
        place_M: every token's place among the N x R; None if the rows are all equally long, so none is padded.
    """

    tokens: slice
    count: int
    longest: int
    place_M: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int) -> Block:
        """Describe rows of these lengths, the first of which begins at this place of the line."""
        longest, total = max(lengths), sum(lengths)
        place_M = None
        if total != longest * len(lengths):
            place_M = torch.tensor([n * longest + r for n, length in enumerate(lengths) for r in range(length)])
        return cls(slice(begin, begin + total), len(lengths), longest, place_M)

    def rows(self, line: Tensor) -> Tensor:
        """Take this part out of the line [T, ...], as padded rows [N, R, ...]."""
        own: Tensor = line[self.tokens]  # [M, ...]
        if self.place_M is not None:
            own = own.new_zeros(self.count * self.longest, *own.shape[1:]).index_copy(0, self.place_M, own)
        return own.view(self.count, self.longest, *own.shape[1:])

    def flat(self, rows: Tensor) -> Tensor:
        """Turn rows [N, R, ...] back into a part of the line [M, ...]."""
        found = rows.flatten(0, 1)
        return found if self.place_M is None else found[self.place_M]


@dataclass(frozen=True, eq=False)
class PackedSequences:
    """Distinct prompts, then what follows them row by row, as one line of T tokens.

    Attributes:
        ids_T: the tokens.
        position_T: their positions in their rows.
        prompts: where the prompts lie; None if rows share nothing and are read whole, as rests.
        rests: where lies what follows the prompts, in the prompts' order.
        buckets: which prompts and which rests belong together.
        start_B: where each row's rest begins, the rows in the order in which they were given.
        prompt_end_B: the place after each row's prompt's last token.
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
        """Pack rows of ids that begin with prompts of these lengths, which are read once; None: nothing is shared.

        Every row has more tokens than its prompt.
        """
        lengths = [0] * len(rows) if prompt_lengths is None else list(prompt_lengths)
        members: dict[tuple[int, ...], list[int]] = {}
        for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            members.setdefault(tuple(row[:length]), []).append(b)
        # Prompts of the same length and number of rows follow each other, so that a bucket is a slice: no copy.
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
        """Return the places [S] of the tokens before these positions of these rows: those that predict them.

        The first token after a prompt is predicted from the prompt's last, which lies elsewhere on the line.
        """
        place_S = position_S - 1 - self.prompt_B[row_S]
        return torch.where(place_S < 0, self.prompt_end_B[row_S] + place_S, self.start_B[row_S] + place_S)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Let every token attend to its row's earlier ones: queries [T, H, d], keys and values [T, J, d] -> [T, H, d]."""
        q, k, v = (self.rests.rows(tensor) for tensor in (queries, keys, values))  # [N, R, H, d] and twice [N, R, J, d]
        if self.prompts is None:
            return self.rests.flat(causal_attention(q, k, v, scale=scale))
        of_prompts = [self.prompts.rows(tensor) for tensor in (queries, keys, values)]  # [P, L, ...]
        first = self.prompts.flat(causal_attention(*of_prompts, scale=scale))
        found = []
        for bucket in self.buckets:
            # Cut to the bucket's length, so that no row sees a shorter prompt's padding.
            prefix = of_prompts[1][bucket.prompts, : bucket.length], of_prompts[2][bucket.prompts, : bucket.length]
            own = [tensor[bucket.rows] for tensor in (q, k, v)]
            found.append(causal_attention(*own, scale=scale, prefix=prefix if bucket.length else None))
        return torch.cat([first, self.rests.flat(torch.cat(found) if len(found) > 1 else found[0])])


class _Line:
    """The line as it grows: tokens with their positions."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []

    def add(self, ids: Sequence[int], first: int) -> int:
        """Append tokens, the first of which has this position in its row; return the place after the last."""
        self.ids += ids
        self.positions += range(first, first + len(ids))
        return len(self.ids)


def _buckets(kinds: Sequence[tuple[int, int]]) -> list[Bucket]:
    """Make a bucket of every run of prompts of the same kind: the same length and number of rows."""
    found, prompt, row = [], 0, 0
    for (length, rows), same in groupby(kinds):
        count = len(list(same))
        found.append(Bucket(slice(prompt, prompt + count), slice(row, row + count * rows), length))
        prompt, row = prompt + count, row + count * rows
    return found
