"""Forward passes behind one protocol: hidden states of scored tokens, and of new tokens after a cache.

`GeneralForward` works with every Hugging Face decoder. It calls modules through their ``forward``, so hooks fire (FSDP2
gathers parameters in them). On a CPU, Llama-like models use the faster pass in `selfcorrect.models.cpu`.
`LanguageModel.forward_pass` selects one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.cpu.prefix_attention import SharedPrefix
from selfcorrect.models.selection import rows_at, tokens_at


class ScoredRows(Protocol):
    """Rows of tokens [B, T], padded on the right, with S scored positions, listed row by row."""

    @property
    def tokens_BT(self) -> Tensor: ...

    @property
    def mask_BT(self) -> Tensor:
        """True where a row has a token."""

    @property
    def prompt_B(self) -> Tensor | None:
        """Prompt lengths [B] if each distinct prompt must be read once for all its rows; None if nothing is shared."""

    @property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Row and position of every scored token: [S], [S]."""

    @property
    def packed(self) -> PackedSequences:
        """The same tokens without padding."""

    @property
    def prompts(self) -> DistinctPrompts:
        """The distinct prompts of the rows; only where ``prompt_B`` is not None."""


@dataclass(frozen=True, eq=False)
class DistinctPrompts:
    """P distinct prompts with which B rows of tokens begin.

    Attributes:
        ids_PL: the prompts' tokens, padded on the right.
        mask_PL: True where a prompt has a token.
        of_B: each row's prompt.
        rest: the tokens of the longest row after its prompt.
    """

    ids_PL: Tensor
    mask_PL: Tensor
    of_B: Tensor
    rest: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], prompt_B: Sequence[int], pad_id: int) -> DistinctPrompts:
        """Return the prompts of rows without padding, whose prompts have these lengths."""
        prompts = [tuple(row[:length]) for row, length in zip(rows, prompt_B, strict=True)]
        place = {prompt: p for p, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, place))
        return cls(
            torch.tensor([[*prompt, *[pad_id] * (longest - len(prompt))] for prompt in place]),
            torch.tensor([[i < len(prompt) for i in range(longest)] for prompt in place]),
            torch.tensor([place[prompt] for prompt in prompts]),
            max(len(row) - length for row, length in zip(rows, prompt_B, strict=True)),
        )

    def to(self, device: torch.device) -> DistinctPrompts:
        return DistinctPrompts(self.ids_PL.to(device), self.mask_PL.to(device), self.of_B.to(device), self.rest)


@dataclass(frozen=True, eq=False)
class NewTokens:
    """S new slots that B rows append to the L - S slots of a cache; some new slots may be empty.

    Attributes:
        ids_BS: the tokens; arbitrary ids in empty slots.
        mask_BL: True where a slot holds a token, for cached and new slots.
        position_BS: positions, which count a row's tokens, not its slots.
        last_B: the new slot of each row's last token, whose hidden state `read` returns.
    """

    ids_BS: Tensor
    mask_BL: Tensor
    position_BS: Tensor
    last_B: Tensor


class ForwardPass(Protocol):
    """The interface of a decoder for scoring and sampling."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether `read` lets several rows attend to one copy of a prompt's keys and values."""

    def hidden(self, rows: ScoredRows) -> Tensor:
        """Return the hidden state that predicts each scored token: [S, D].

        This is the only place that shifts positions: logprobs[b, t] = log p(tokens[b, t] | tokens[b, :t]), so the
        hidden state at t - 1 predicts the token at t.
        """

    def read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None = None) -> Tensor:
        """Append new tokens to the cache and return their hidden states [B, D] at ``new.last_B``.

        ``prefix`` (one entry per layer) comes before the cache. No gradients.
        """


@runtime_checkable
class Decoder(Protocol):
    """The interface of a model for `GeneralForward`."""

    @property
    def pad_id(self) -> int: ...

    @property
    def slots_limit(self) -> int | None:
        """The number of slots, empty ones included, that a sliding window covers; None: no limit."""

    @property
    def takes_masks(self) -> bool:
        """Whether `decode` should get the masks of `window_masks` instead of 0/1 masks, within a window too."""

    def decode(self, ids_BT: Tensor, mask_BT: Any = None, *, cache: Any = None, **kwargs: Any) -> Any:
        """Return the decoder's output; ``.last_hidden_state`` is [B, T, D]."""

    def window_masks(self, full_BSL: Tensor, sliding_BSL: Tensor) -> Any:
        """Return what `decode` takes in place of a mask so that queries see these keys, by the kind of layer."""


@dataclass(frozen=True, eq=False)
class GeneralForward:
    """The forward pass of any Hugging Face decoder, over padded rows and masks."""

    model: Decoder
    shares_prefixes: ClassVar[bool] = False

    def hidden(self, rows: ScoredRows) -> Tensor:
        """Return the hidden state that predicts each scored token: [S, D]."""
        if rows.prompt_B is not None and self._fits_window(rows):
            return self._after_shared_prompts(rows, rows.prompt_B)
        row_S, position_S = rows.scored
        hidden_BTD = self._decoded(rows.tokens_BT, self._trailing(rows.mask_BT), token_positions(rows.mask_BT))
        return tokens_at(hidden_BTD, row_S, position_S - 1)

    def read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None = None) -> Tensor:
        """Append new tokens to the cache and return their hidden states [B, D] at ``new.last_B``."""
        assert prefix is None, "rows share a prefix only if shares_prefixes is True"
        hidden_BSD = self._decoded(new.ids_BS, new.mask_BL, new.position_BS, cache)
        return hidden_BSD[torch.arange(len(new.ids_BS), device=new.ids_BS.device), new.last_B]

    def _decoded(
        self, ids_BS: Tensor, mask_BL: Tensor | None, position_BS: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Return the hidden states [B, S, D] of ids that follow a cache."""
        mask: Any = mask_BL
        positions: Tensor | None = position_BS
        if mask_BL is None:
            positions = None  # 0, 1, ...: `transformers` would take the repeated ones of padding for further sequences
        # Reading the tokens before them is one call, and a family may have masks of its own for it.
        elif ids_BS.shape[1] == 1 or self._beyond_window(mask_BL):
            mask = self._ready(mask_BL, position_BS)
        hidden_BSD: Tensor = self.model.decode(ids_BS, mask, position_ids=positions, cache=cache).last_hidden_state
        return hidden_BSD

    def _trailing(self, mask_BL: Tensor) -> Tensor | None:
        """Return the mask of rows that are padded on the right. Without one, no token sees the padding after it either.

        On a GPU no mask is better: with one, the host waits to see whether it is needed, and attention is slower.
        """
        return mask_BL if mask_BL.device.type == "cpu" or self._beyond_window(mask_BL) else None

    def _ready(self, mask_BL: Tensor, position_BS: Tensor) -> Any:
        """Return a mask for the ids at these positions, in a form that leaves the family nothing to find out.

        Given a 0/1 mask, `transformers` makes the host wait at every call, to see whether it is needed. Beyond a sliding
        window, the family's own masks also count padding as tokens, and leave queries in the padding without a key, which
        gives NaN. The masks of `token_window` do neither.
        """
        beyond = self._beyond_window(mask_BL)
        if not beyond and not self.model.takes_masks:
            return mask_BL
        window = self.model.slots_limit if beyond else mask_BL.shape[1]
        return self.model.window_masks(*token_window(mask_BL, position_BS, window or mask_BL.shape[1]))

    def _beyond_window(self, mask_BL: Tensor) -> bool:
        return bool(self.model.slots_limit and mask_BL.shape[1] > self.model.slots_limit)

    def _after_shared_prompts(self, rows: ScoredRows, prompt_B: Tensor) -> Tensor:
        """Read P distinct prompts once and continue every row from its prompt; return hidden states [S, D].

        The samples of a problem share a prompt, so this saves most of the prompt tokens. Gradients flow through the
        prompts' keys and values, summed over the rows. The batch must be padded on the right.
        """
        shared = rows.prompts
        cache = DynamicCache()
        mask_PL = self._trailing(shared.mask_PL)
        read = self.model.decode(shared.ids_PL, mask_PL, position_ids=token_positions(shared.mask_PL), cache=cache)

        # Shift each row's tokens after the prompt to the left edge, so the cache's L slots and these R form one row.
        length_B1 = rows.mask_BT.sum(1, keepdim=True)
        place_BR = prompt_B[:, None] + torch.arange(shared.rest, device=prompt_B.device)
        inside_BR = place_BR < length_B1
        rest_BR = rows.tokens_BT.gather(1, place_BR.clamp(max=rows.tokens_BT.shape[1] - 1))
        mask_BX = torch.cat([shared.mask_PL[shared.of_B], inside_BR], 1)  # X = L + R
        # Gather a copy of its prompt's cache for every row: keys and values [P, J, L, d] -> [B, J, L, d]. The backward
        # pass sums the rows' gradients into the one prompt.
        own = DynamicCache(
            ddp_cache_data=[
                (rows_at(layer.keys, shared.of_B), rows_at(layer.values, shared.of_B)) for layer in cache.layers
            ]
        )
        rest = self.model.decode(rest_BR, self._ready(mask_BX, place_BR), position_ids=place_BR, cache=own)

        row_S, position_S = rows.scored
        before_S = position_S - 1 - prompt_B[row_S]  # -1: the prompt's last token predicts it
        first_SD = tokens_at(read.last_hidden_state, shared.of_B[row_S], prompt_B[row_S] - 1)
        own_SD = tokens_at(rest.last_hidden_state, row_S, before_S.clamp(min=0))
        return torch.where(before_S[:, None] < 0, first_SD, own_SD)

    def _fits_window(self, rows: ScoredRows) -> bool:
        """Whether a row with padding in the middle fits the sliding window, which counts empty slots too.

        Prompt and rest are each at most T slots, so 2 T is the bound.
        """
        limit = self.model.slots_limit
        return limit is None or 2 * rows.tokens_BT.shape[1] <= limit


def token_positions(mask_BT: Tensor) -> Tensor:
    """Return the position [B, T] of every token in its row, counting tokens only: left padding shifts nothing."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)


def token_window(mask_BL: Tensor, position_BS: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return which keys each query sees [B, S, L], without and with a sliding window of ``window`` tokens."""
    key_B1L, query_BS1 = token_positions(mask_BL)[:, None], position_BS[:, :, None]
    full_BSL = mask_BL[:, None] & (key_B1L <= query_BS1)
    return full_BSL, full_BSL & (query_BS1 - key_B1L < window)
