"""The interface of a model for scoring: anything with hidden states and logits can be scored."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from selfcorrect.models.forward import ForwardPass

T = TypeVar("T")


class HeadPass(StrEnum):
    """The way from hidden states to log-probabilities: `chunked_logprobs` or `checkpointed_logprobs`."""

    CHUNKED = "chunked"
    CHECKPOINTED = "checkpointed"


@runtime_checkable
class Scorable(Protocol):
    """A model whose tokens can be scored: hidden states of rows and logits of hidden states."""

    @property
    def forward_pass(self) -> ForwardPass: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""

    @property
    def head_pass(self) -> HeadPass: ...

    @property
    def plain_head(self) -> nn.Linear | None:
        """The head, if logits are only a product with its weight [V, D]; else None."""

    def as_forward(self, function: Callable[[], T]) -> T:
        """Return what the function returns, called as one forward pass of the model: a tensor, or a tuple of tensors."""

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the head's trained parameters."""

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return next-token logits of hidden states [..., D] -> [..., V], in float32 or better."""
