"""Forward passes behind one protocol: hidden states of scored tokens, and of new tokens after a cache.

`GeneralForward` works with every Hugging Face decoder and calls modules by their own ``forward``, so hooks fire (FSDP2
gathers parameters in them). On a CPU, models of Llama's shape have a faster one, in `selfcorrect.models.cpu`.
`LanguageModel.forward_pass` picks.
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


class ScoredRows(Protocol):
    """Rows of tokens [B, T] of which S positions are scored, row by row."""

    @property
    def tokens_BT(self) -> Tensor: ...

    @property
    def mask_BT(self) -> Tensor:
        """True where a row has a token."""

    @property
    def prompt_B(self) -> Tensor | None:
        """The lengths of the prompts, where each distinct prompt is to be read once for all of its rows."""

    @property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Row and position of every scored token: [S], [S]."""

    @property
    def packed(self) -> PackedSequences:
        """The same tokens without padding."""


@dataclass(frozen=True, eq=False)
class NewTokens:
    """What B rows read after L - S slots of a cache: S new slots, of which some may be empty.

    Attributes:
        ids_BS: the tokens; anything where a slot is empty.
        mask_BL: True where a slot of the cache holds a token, the new slots among them.
        position_BS: positions count a row's tokens, not its slots.
        last_B: the new slot of each row's last token, whose hidden state is wanted.
    """

    ids_BS: Tensor
    mask_BL: Tensor
    position_BS: Tensor
    last_B: Tensor


class ForwardPass(Protocol):
    """What scoring and sampling ask of a model's decoder."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether `read` lets several rows look at one copy of a prompt's keys and values."""

    def hidden(self, rows: ScoredRows) -> Tensor:
        """Return the hidden state that predicts each scored token: [S, D].

        Positions are shifted here and nowhere else: logprobs[b, t] = log p(tokens[b, t] | tokens[b, :t]), so the token
        at t is predicted from the hidden state at t - 1.
        """

    def read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None = None) -> Tensor:
        """Read new tokens after what the cache holds, and write them into it: hidden states [B, D] at ``new.last_B``.

        What is in ``prefix``, layer by layer, comes before the cache. No gradients.
        """


@runtime_checkable
class Decoder(Protocol):
    """What `GeneralForward` asks of a model."""

    @property
    def pad_id(self) -> int: ...

    @property
    def slots_limit(self) -> int | None:
        """How many slots a layer sees where empty ones lie among them; None: all."""

    def decode(self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, cache: Any = None, **kwargs: Any) -> Any:
        """Return the decoder's output; ``.last_hidden_state`` is [B, T, D]."""


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
        output = self.model.decode(rows.tokens_BT, rows.mask_BT, position_ids=token_positions(rows.mask_BT))
        hidden_BTD: Tensor = output.last_hidden_state
        return hidden_BTD[row_S, position_S - 1]

    def read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None = None) -> Tensor:
        """Read new tokens after what the cache holds, and write them into it: hidden states [B, D] at ``new.last_B``."""
        assert prefix is None, "rows look at a common prefix only where shares_prefixes says so"
        output = self.model.decode(new.ids_BS, new.mask_BL, position_ids=new.position_BS, cache=cache)
        hidden_BSD: Tensor = output.last_hidden_state
        return hidden_BSD[torch.arange(len(new.ids_BS), device=new.ids_BS.device), new.last_B]

    def _after_shared_prompts(self, rows: ScoredRows, prompt_B: Tensor) -> Tensor:
        """Read P distinct prompts once, and continue every row from its own.

        Gradients flow through the prompts' keys and values, summed over the rows. The batch must be padded on the right.
        """
        prompts = [tuple(row[:length]) for row, length in zip(rows.tokens_BT.tolist(), prompt_B.tolist(), strict=True)]
        place = {prompt: p for p, prompt in enumerate(dict.fromkeys(prompts))}
        prompt_of_B = prompt_B.new_tensor([place[prompt] for prompt in prompts])  # values below P
        longest = max(map(len, place))
        prompt_PL = prompt_B.new_tensor([[*prompt, *[self.model.pad_id] * (longest - len(prompt))] for prompt in place])
        valid_PL = prompt_B.new_tensor([[i < len(prompt) for i in range(longest)] for prompt in place]).bool()
        cache = DynamicCache()
        read = self.model.decode(prompt_PL, valid_PL, position_ids=token_positions(valid_PL), cache=cache)

        # What follows the prompt, moved to the left edge, so that the cache's L slots and these R make one row.
        length_B1 = rows.mask_BT.sum(1, keepdim=True)
        place_BR = prompt_B[:, None] + torch.arange(int((length_B1[:, 0] - prompt_B).max()), device=prompt_B.device)
        inside_BR = place_BR < length_B1
        rest_BR = rows.tokens_BT.gather(1, place_BR.clamp(max=rows.tokens_BT.shape[1] - 1))
        mask_BX = torch.cat([valid_PL[prompt_of_B], inside_BR], 1)  # X = L + R
        # Indexing copies keys and values [P, J, L, d] to each row [B, J, L, d]; its backward pass adds the rows' gradients.
        own = DynamicCache(
            ddp_cache_data=[(layer.keys[prompt_of_B], layer.values[prompt_of_B]) for layer in cache.layers]
        )
        rest = self.model.decode(rest_BR, mask_BX, position_ids=place_BR, cache=own)

        row_S, position_S = rows.scored
        before_S = position_S - 1 - prompt_B[row_S]  # -1: predicted from the prompt's last token
        first_SD = read.last_hidden_state[prompt_of_B[row_S], prompt_B[row_S] - 1]
        return torch.where(before_S[:, None] < 0, first_SD, rest.last_hidden_state[row_S, before_S.clamp(min=0)])

    def _fits_window(self, rows: ScoredRows) -> bool:
        """Whether a sliding window, which counts empty slots too, cannot cut off a prompt that is padded in the middle."""
        limit = self.model.slots_limit
        return limit is None or 2 * rows.tokens_BT.shape[1] <= limit


def token_positions(mask_BT: Tensor) -> Tensor:
    """Return the position [B, T] of every token in its row. Positions count tokens, so padding on the left moves nothing."""
    return (mask_BT.cumsum(1) - 1).clamp(min=0)
