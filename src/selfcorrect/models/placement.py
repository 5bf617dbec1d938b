"""Where a model's weights lie: all in this process, or in shards over several (`selfcorrect.distributed.shards`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Placement(Protocol):
    """The rules for calling a model and reading its weights. All processes that hold shards call its methods together."""

    @property
    def sharded(self) -> bool:
        """Whether each process holds only its shard of every weight."""

    @property
    def in_parts(self) -> bool:
        """Whether single layers and products may be called now, not only the whole model."""

    @property
    def blank(self) -> Any:
        """The model without weights, which writes files in place of a sharded one; else None."""

    @property
    def rounded(self) -> torch.dtype | None:
        """The dtype in which the model computes, where its shards are wider; else None."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor of this shape that lies as the weights do."""

    def as_forward(self, function: Callable[[], T]) -> T:
        """Return what the function returns, which calls the model's parts; for the shards it is one call of the model.

        The result is a tensor or a tuple of tensors.
        """

    def whole(self) -> AbstractContextManager[None]:
        """Hold all weights whole within the block, in which each process may call the model as often as it likes."""

    def release(self) -> None:
        """Drop what is whole after a forward pass that no backward pass follows."""

    def full(self, tensor: Tensor) -> Tensor:
        """Return a weight whole, in the dtype that the model computes with."""

    def gathered(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights whole, for a file; of shards only in the first process and on the CPU, elsewhere none."""


class Local:
    """The placement of a model that lies whole in this process: nothing is to be done."""

    sharded, in_parts, blank, rounded = False, True, None, None

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def as_forward(self, function: Callable[[], T]) -> T:
        return function()

    @contextmanager
    def whole(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        pass

    def full(self, tensor: Tensor) -> Tensor:
        return tensor

    def gathered(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors


LOCAL = Local()
