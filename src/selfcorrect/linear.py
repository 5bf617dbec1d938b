"""Linear layers through oneDNN instead of the BLAS that torch takes for float32 on a CPU.

The BLAS is tuned for some makers' processors; on others oneDNN's kernels are up to twice as fast. The product of the
weights' gradient stays with the BLAS, which is better at it. Same arithmetic, another order of adding up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEWEST_ROWS = 8
"""Below this many rows the BLAS's products with a vector are as good."""


def quicken(model: nn.Module) -> None:
    """Have every plain linear layer of a model compute so, where it can; parameters and their names stay."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuickLinear


class QuickLinear(nn.Linear):
    """`torch.nn.Linear`, computed by oneDNN on a CPU in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float32 or input.device.type != "cpu" or input.numel() < FEWEST_ROWS * self.in_features:
            return super().forward(input)
        found: Tensor = _Linear.apply(input, self.weight, self.bias)
        return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input = _product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        flat = grad.flatten(0, -2)
        of_weight = flat.t() @ input.flatten(0, -2) if ctx.needs_input_grad[1] else None
        of_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found
