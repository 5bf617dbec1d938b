"""Shards within a nested state, such as an optimizer's: taken out under names for their own files, and put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from selfcorrect.distributed.shards import is_shard

MARK = "(shard)"
"""The key of the dict that stands for a shard in the rest of the state."""


def parted(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a nested value with a plain note in place of every shard, and the shards by names that begin with ``name``."""
    taken: dict[str, Tensor] = {}

    def rest(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: rest(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(rest(inner, f"{name}.{i}") for i, inner in enumerate(value))
        if not (isinstance(value, Tensor) and is_shard(value)):
            return value
        taken[name] = value.detach()
        return note(name, value)

    return rest(value, name), taken


def note(name: str, tensor: Tensor) -> dict[str, Any]:
    """Return what stands for a tensor that lies in the files of shards under this name."""
    return {MARK: name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def joined_again(value: Any, empty: Callable[[list[int], torch.dtype], Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Return the value with a new tensor for every note of `parted`, and these tensors by name, which are still to be filled.

    ``empty`` makes a tensor of a shape and dtype, whole or a shard.

    Raises:
        ValueError: a note is damaged.
    """
    made: dict[str, Tensor] = {}

    def full(value: Any) -> Any:
        if isinstance(value, Mapping) and MARK in value:
            dtype = getattr(torch, str(value["dtype"]), None)
            if not isinstance(dtype, torch.dtype) or not all(isinstance(n, int) and n >= 0 for n in value["shape"]):
                raise ValueError(f"the note {dict(value)!r:.200} of a shard cannot be right")
            tensor = made[str(value[MARK])] = empty(list(value["shape"]), dtype)
            return tensor
        if isinstance(value, Mapping):
            return {key: full(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(full(inner) for inner in value)
        return value

    return full(value), made
