"""Float32 master weights for models whose own weights are bfloat16.

bfloat16 has 8 bits of precision, so an update below about 1/256 of a weight's size would be rounded away, and SCoRe's
learning rates are far below that. The optimizer therefore moves float32 copies, which gather the gradients of all
micro-batches too; the model computes with their rounding. For float32 and float64 weights, and for the adapters of
LoRA (float32 over bfloat16 weights), the master is the weight itself and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selfcorrect.models.dtypes import ROUNDED


class MasterWeights:
    """What the optimizer moves in place of ``weights``; ``self.parameters`` are the masters, in the same order."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.parameters = [nn.Parameter(w.detach().float()) if w.dtype in ROUNDED else w for w in weights]

    def _rounded(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(w, m) for w, m in zip(self.weights, self.parameters, strict=True) if m is not w]

    def grads_to_master(self) -> None:
        """Move the weights' gradients into the masters'; called after every backward pass."""
        for weight, master in self._rounded():
            if weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

    @torch.no_grad()
    def master_to_model(self) -> None:
        """Round the masters into the model's weights; called after every optimizer step."""
        for weight, master in self._rounded():
            weight.copy_(master)

    def state_dict(self) -> list[Tensor]:
        """The masters that differ from their weights, for a checkpoint."""
        return [master.detach() for _, master in self._rounded()]

    @torch.no_grad()
    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Take back what `state_dict` gave."""
        for (_, master), saved in zip(self._rounded(), state, strict=True):
            master.copy_(saved)
