"""What scoring asks of a model, so that anything with hidden states and logits can be scored."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from selfcorrect.models.forward import ForwardPass


class HeadPass(StrEnum):
    """How log-probabilities come from hidden states: `chunked_logprobs` or `checkpointed_logprobs`."""

    CHUNKED = "chunked"
    CHECKPOINTED = "checkpointed"


@runtime_checkable
class Scorable(Protocol):
    """A model whose tokens can be scored: hidden states of rows, and what its head makes of them."""

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
        """The head, if logits are a product with its weight [V, D] and nothing else."""

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what is trained of the head."""

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return next-token logits of hidden states [..., D] -> [..., V], in float32 or better."""
