"""Float32 master weights for models whose own weights are bfloat16.

bfloat16 has 8 bits of precision, so an update below about 1/256 of a weight's size is rounded away, and SCoRe's learning
rates are far below that. The optimizer therefore updates float32 copies, and the model computes with their rounding. The
copies also accumulate the gradients of all micro-batches. Float32 and float64 weights, and LoRA's adapters (float32 over
bfloat16 weights), are their own masters, and nothing here has an effect. So are the float32 shards of a sharded model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from selfcorrect.distributed.shards import like
from selfcorrect.models.dtypes import ROUNDED


class MasterWeights:
    """The parameters that the optimizer updates: ``self.parameters``, one master for each of ``weights``, in their order.

    ``wider`` says that the weights are wider than the dtype in which the model computes and is saved.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, wider: bool = False) -> None:
        self.weights, self.wider = list(weights), wider
        self.parameters = [nn.Parameter(w.detach().float()) if w.dtype in ROUNDED else w for w in weights]

    def _rounded(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(w, m) for w, m in zip(self.weights, self.parameters, strict=True) if m is not w]

    def grads_to_master(self) -> None:
        """Add the weights' gradients to their masters' and drop them; called after every backward pass."""
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
        """Return the masters that a saved model does not hold exactly, for a checkpoint."""
        return [master.detach() for master in self._stored()]

    @torch.no_grad()
    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        """Restore what `state_dict` returned."""
        for master, saved in zip(self._stored(), state, strict=True):
            master.copy_(like(saved, master))

    def _stored(self) -> list[nn.Parameter]:
        return self.parameters if self.wider else [master for _, master in self._rounded()]
