"""The key-value cache of rows sampled in one batch. Rows may share one copy of their prompt's keys and values.

Letters in shapes: B rows, L slots, P prompts, J key heads, d head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from selfcorrect.models.cpu.prefix_attention import SharedPrefix

SHARED_FROM = 2**23
"""Bytes per layer that copies of the prompts must cost before rows share one copy instead."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values [B, J, L, d]: the first L slots of larger buffers.

    A new token is written into a free slot, so earlier slots are copied only when the buffer is full, not for every
    token. Tensors returned earlier stay unchanged. Free slots hold finite numbers, because products may read them and give
    them the weight 0.
    """

    keys: Tensor  # [B, J, L, d], a view of the buffer
    values: Tensor
    _keys: Tensor  # [B, J, L and more, d]
    _values: Tensor

    def __init__(self, filled: tuple[Tensor, Tensor] | None = None, *, used: int | None = None) -> None:
        super().__init__()
        if filled is not None:
            self._fill(*filled, used)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self._fill(key_states[:, :, :0], value_states[:, :, :0])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.keys.shape[2]
        end = used + key_states.shape[2]
        self._keys = _written(self._keys, key_states, used)
        self._values = _written(self._values, value_states, used)
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def _fill(self, keys: Tensor, values: Tensor, used: int | None = None) -> None:
        self._keys, self._values = keys, values
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]
        self.is_initialized = True


def _with_room(slots: int) -> int:
    """Return a quarter more slots than needed, so that a row of n tokens is copied about log n times."""
    return slots + slots // 4 + 8


def _written(buffer: Tensor, states: Tensor, used: int) -> Tensor:
    """Write states [B, J, S, d] after the ``used`` slots of a buffer; return it, or a larger copy where they do not fit."""
    end = used + states.shape[2]
    if end > buffer.shape[2]:
        larger = states.new_zeros((*states.shape[:2], _with_room(end), states.shape[3]))
        larger[:, :, :used] = buffer[:, :, :used]
        buffer = larger
    buffer[:, :, used:end] = states
    return buffer


@dataclass(frozen=True, eq=False)
class Prompts:
    """Keys and values [P, J, L, d] of distinct prompts, layer by layer; ``mask_PL`` marks the slots that hold tokens."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask_PL: Tensor

    def select(self, places: Tensor) -> Prompts:
        """Return a copy of the prompts at these indices."""
        layers = ((keys.index_select(0, places), values.index_select(0, places)) for keys, values in self.layers)
        return Prompts(tuple(layers), self.mask_PL[places])


@dataclass(frozen=True, eq=False)
class RowPrefixes:
    """The shared prompts with which B rows begin.

    Attributes:
        prompts: all prompts of the rows' original batch; some may have no row left.
        prompt_B: the index of each row's prompt.
        length_B1: the number of tokens in that prompt.
        layers: for each layer, the prompts still in use, in the form that attention takes.
    """

    prompts: Prompts
    prompt_B: Tensor
    length_B1: Tensor
    layers: tuple[SharedPrefix, ...]

    @classmethod
    def of(cls, prompts: Prompts, prompt_B: Tensor) -> RowPrefixes:
        """Return prefixes for rows with the prompts ``prompt_B``; attention skips prompts without a row."""
        used_U, of_B, rows_U = prompt_B.unique(
            return_inverse=True, return_counts=True
        )  # of_B counts within the U used ones
        seen = prompts if len(used_U) == len(prompts.mask_PL) else prompts.select(used_U)
        # Attention works on a grid of U prompts x G rows, G for the prompt with most rows. A row's place is its prompt's
        # first place plus its rank among the prompt's rows: its rank in the sorted order minus the first row's.
        group, order_B = int(rows_U.max()), of_B.argsort(stable=True)
        number_B = torch.arange(len(of_B), device=of_B.device)
        first_U = rows_U.cumsum(0) - rows_U
        place_B = torch.empty_like(of_B)
        place_B[order_B] = of_B[order_B] * group + number_B - first_U[of_B[order_B]]
        in_order = len(of_B) == group * len(used_U) and torch.equal(place_B, number_B)
        mask_UL = None
        if not seen.mask_PL.all():
            like = seen.layers[0][0]
            mask_UL = like.new_zeros(seen.mask_PL.shape).masked_fill_(~seen.mask_PL, -torch.inf)
        layers = (SharedPrefix(*layer, mask_UL, of_B, group, None if in_order else place_B) for layer in seen.layers)
        return cls(prompts, prompt_B, prompts.mask_PL.sum(1, keepdim=True)[prompt_B], tuple(layers))

    def select(self, rows: Tensor) -> RowPrefixes:
        """Return the prefixes of the rows at these indices."""
        return RowPrefixes.of(self.prompts, self.prompt_B[rows])


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of B rows in L slots after the prefix, layer by layer; ``mask_BL`` marks the slots that hold tokens."""

    layers: tuple[PreallocatedLayer, ...]
    mask_BL: Tensor
    prefix: RowPrefixes | None = None

    @property
    def tokens_B1(self) -> Tensor:
        """Return the number of tokens in each row, prefix included."""
        own_B1 = self.mask_BL.sum(1, keepdim=True)
        return own_B1 if self.prefix is None else own_B1 + self.prefix.length_B1

    def select(self, rows: Tensor) -> KVCache:
        """Return a copy of the rows at these indices."""
        layers = (
            PreallocatedLayer((layer.keys.index_select(0, rows), layer.values.index_select(0, rows)))
            for layer in self.layers
        )
        return KVCache(tuple(layers), self.mask_BL[rows], self.prefix and self.prefix.select(rows))

    def sharing_pays(self, rows: int) -> bool:
        """Return whether ``rows`` rows should share these prompts: attention then reads less, in more steps."""
        return _sharing_pays(self.layers[0].keys, rows)

    def shared_by(self, row_B: Tensor, *, room: int) -> KVCache:
        """Return B rows that begin with these rows' tokens, shared rather than copied, and have ``room`` slots of their own."""
        prompts = Prompts(tuple((layer.keys, layer.values) for layer in self.layers), self.mask_BL)

        def empty(like: Tensor) -> Tensor:
            return like.new_zeros(len(row_B), like.shape[1], room, like.shape[3])  # [B, J, room, d]

        layers = (PreallocatedLayer((empty(layer.keys), empty(layer.values)), used=0) for layer in self.layers)
        return KVCache(tuple(layers), self.mask_BL.new_empty(len(row_B), 0), RowPrefixes.of(prompts, row_B))

    def whole(self) -> KVCache:
        """Return the same rows, each with a copy of its prefix."""
        if self.prefix is None:
            return self
        row_B, prompts = self.prefix.prompt_B, self.prefix.prompts
        layers = (  # [B, J, L of the prompts + L, d]
            PreallocatedLayer((torch.cat([keys[row_B], layer.keys], 2), torch.cat([values[row_B], layer.values], 2)))
            for (keys, values), layer in zip(prompts.layers, self.layers, strict=True)
        )
        return KVCache(tuple(layers), torch.cat([prompts.mask_PL[row_B], self.mask_BL], 1))

    def compacted(self) -> KVCache:
        """Return this cache, or its `whole` where too few rows are left for sharing to pay."""
        if self.prefix is None or _sharing_pays(self.prefix.layers[0].keys, len(self.mask_BL)):
            return self
        return self.whole()

    @staticmethod
    def gathered(handles: Sequence[Handle], *, room: int) -> KVCache:
        """Copy parked rows into one cache of B rows, with room for at least ``room`` more slots.

        Rows are parked in several caches, because they leave a batch at different times. Each cache's rows are copied in
        one step, layer by layer and straight into place, so at most one layer exists a third time. Shorter rows are padded
        on the left with masked slots, so that all rows end at the same slot and new tokens follow there. Prompts of one
        batch stay shared. Prompts of several batches are copied, because attention takes one set of shared prompts.
        """
        groups: dict[int, list[int]] = defaultdict(list)  # parked cache -> its rows b in the new cache
        for b, handle in enumerate(handles):
            groups[id(handle.parked)].append(b)
        parked = [handles[members[0]].parked for members in groups.values()]
        if len({part.prefix and id(part.prefix.prompts) for part in parked}) > 1:
            parked = [part.whole() for part in parked]
        device, longest = parked[0].mask_BL.device, max(part.mask_BL.shape[1] for part in parked)
        # For every parked cache, the target indices of its M rows [M] and their indices within it [M].
        places = [torch.tensor(members, device=device) for members in groups.values()]
        rows = [torch.tensor([handles[b].row for b in members], device=device) for members in groups.values()]

        def moved(tensors: Sequence[Tensor], slots: int, dim: int) -> Tensor:
            """Merge one tensor per parked cache, slots in dimension ``dim``, into one of B rows, padded with zeros."""
            shape = list(tensors[0].shape)
            shape[0], shape[dim] = len(handles), slots
            together = tensors[0].new_zeros(shape)  # [B, J, slots, d], or [B, slots] for masks
            for tensor, place, row in zip(tensors, places, rows, strict=True):
                length = tensor.shape[dim]
                together.narrow(dim, longest - length, length).index_copy_(0, place, tensor.index_select(0, row))
            return together

        slots = _with_room(longest + room)
        layers = [
            PreallocatedLayer(
                (moved([of.keys for of in layer], slots, 2), moved([of.values for of in layer], slots, 2)), used=longest
            )
            for layer in zip(*(part.layers for part in parked), strict=True)
        ]
        prefix = None
        if parked[0].prefix is not None:
            prompt_B = torch.empty(len(handles), dtype=torch.long, device=device)
            for part, place, row in zip(parked, places, rows, strict=True):
                assert part.prefix is not None
                prompt_B[place] = part.prefix.prompt_B[row]
            prefix = RowPrefixes.of(parked[0].prefix.prompts, prompt_B)
        return KVCache(tuple(layers), moved([part.mask_BL for part in parked], longest, 1), prefix)


def _sharing_pays(keys_PJLd: Tensor, rows: int) -> bool:
    """Return whether copying P prompts for ``rows`` rows would take at least `SHARED_FROM` more bytes of keys and values."""
    return (rows - len(keys_PJLd)) * 2 * keys_PJLd[0].nbytes >= SHARED_FROM


@dataclass(frozen=True, eq=False)
class Handle:
    """The location of a completion's cache: a row of a parked cache that holds exactly ``ids``."""

    parked: KVCache
    row: int
    ids: tuple[int, ...]
