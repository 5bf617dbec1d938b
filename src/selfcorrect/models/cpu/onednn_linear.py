"""Linear layers through oneDNN instead of the BLAS that torch uses for float32 on a CPU.

The BLAS is tuned for some vendors' processors; on others oneDNN's kernels are up to twice as fast. The gradient of the
weight stays with the BLAS, which is faster there. The arithmetic is the same; only the order of summation differs.
In bfloat16 torch uses oneDNN anyway; what these layers add there is weights in oneDNN's own layout, and LoRA adapters
inside their layers' products (`with_adapter_inside`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfcorrect.models.cpu.instructions import has_bfloat16
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.lora import active_adapter, below_adapters, factors, has_adapter, only_adds, weight_with

FEWEST_ROWS = 8
"""The fewest rows for oneDNN; below, the BLAS's matrix-vector products are as fast."""

WORTH_PACKING = 2**15
"""The fewest elements worth prepacking; smaller weights stay in the nearest cache in any layout."""


def use_onednn(model: nn.Module) -> None:
    """Turn every plain linear layer of a model into an `OneDNNLinear` if possible; parameters keep their names."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDNNLinear


@contextlib.contextmanager
def prepacked_weights(model: nn.Module, rows: int, *, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Within the block, let `OneDNNLinear` layers compute from a copy of their weights in oneDNN's memory layout.

    This holds for all layers except ``but``, in batches of about ``rows`` rows, and only without gradients. The weights
    must not change meanwhile.
    """
    layers = [m for m in model.modules() if isinstance(m, OneDNNLinear) and m not in but]
    try:
        for layer in layers:
            layer.prepacked = _prepacked(layer.weight, rows)
        yield
    finally:
        for layer in layers:
            layer.prepacked = None


class FusedLinear:
    """Several `OneDNNLinear` layers of the same input as one product with concatenated outputs; no gradients.

    Layers under LoRA adapters compute with the adapter's update. In float32 it is added to their weights. Added to
    bfloat16 weights it would be rounded at their scale and partly lost, so there the product has further inputs:
    y = [W | B] (x, A x), with A and B rounded at their own scale.

    Args:
        weight: the layers' weights [O, I], or [W | B], [O, I + R].
        down: A [R, I]; None: the product has no further inputs.
        bias: [O], or None.
        rows: the product is for batches of about this many rows.
    """

    def __init__(self, weight: Tensor, down: Tensor | None, bias: Tensor | None, rows: int) -> None:
        prepacked = _prepacked(weight, rows)
        self.prepacked, self.weight, self.bias = prepacked is not None, weight if prepacked is None else prepacked, bias
        self.down = down

    @classmethod
    def of(cls, layers: Sequence[nn.Module], rows: int, adapter: str | None = None) -> FusedLinear | None:
        """Fuse layers for batches of about ``rows`` rows; None if one is no plain `OneDNNLinear`, or only some have a bias.

        A plain layer under a LoRA adapter counts, unless the adapter does more than add its update to the weight.
        """
        below = [layer for layer in map(below_adapters, layers) if type(layer) is OneDNNLinear and _takes(layer.weight)]
        biases = [layer.bias.detach() for layer in below if layer.bias is not None]
        added = all(only_adds(layer, adapter) for layer in layers)
        if not added or len(below) != len(layers) or 0 < len(biases) < len(layers):
            return None
        bias = torch.cat(biases) if biases else None
        if below[0].weight.dtype in ROUNDED and any(has_adapter(layer, adapter) for layer in layers):
            return cls(*_beside(layers, adapter), bias, rows)
        weights = [weight for layer in layers if (weight := weight_with(layer, adapter)) is not None]
        return cls(torch.cat(weights).detach(), None, bias, rows)

    def __call__(self, input: Tensor) -> Tensor:
        if self.down is not None:
            input = torch.cat([input, nn.functional.linear(input, self.down)], -1)
        if self.prepacked:
            return _product(input, self.weight, self.bias)
        return nn.functional.linear(input, self.weight, self.bias)


class OneDNNLinear(nn.Linear):
    """A `torch.nn.Linear` that oneDNN computes on a CPU, in float32 or in the bfloat16 of a processor that has it."""

    prepacked: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.prepacked is not None and not torch.is_grad_enabled():
            return _product(input, self.prepacked, self.bias)
        fits = _takes(input) and input.dtype == self.weight.dtype and input.shape[-1] == self.in_features
        if not fits or input.numel() < FEWEST_ROWS * self.in_features:
            return super().forward(input)
        found: Tensor = _Linear.apply(input, self.weight, self.bias)
        return found


def with_adapter_inside(layer: Any) -> Callable[[Tensor], Tensor] | None:
    """Return the function that computes a frozen bfloat16 layer and its active LoRA adapter in one product; else None.

    peft computes an adapter beside its layer, in the float32 of the adapter's weights: several passes over float32 copies
    of the input and the output, which take longer than the products. Here the adapter's weights are rounded, as sampling
    rounds them (`FusedLinear`). The gradients have the dtype of the adapter's weights.
    """
    below: Any = below_adapters(layer)
    name = None if below is layer else active_adapter(layer)
    if name is None or type(below) is not OneDNNLinear or below.weight.dtype not in ROUNDED or not _takes(below.weight):
        return None
    if not only_adds(layer, name) or any(parameter.requires_grad for parameter in below.parameters()):
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return partial(_apply_inside, below.weight, below.bias, down, up, layer.scaling[name])


def _apply_inside(weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float, input: Tensor) -> Tensor:
    found: Tensor = _AdapterInside.apply(input, weight, bias, down, up, scale)
    return found


def input_gradient(layer: nn.Linear, grad: Tensor) -> Tensor:
    """Return the gradient of a layer's input [S, D] from its output's [S, V], as the layer's backward pass does."""
    onednn = type(layer) is OneDNNLinear and _takes(layer.weight)
    return _product(grad, layer.weight.t(), None) if onednn else grad @ layer.weight


def _takes(weight: Tensor) -> bool:
    fast = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16())
    return fast and weight.device.type == "cpu"


class _Linear(torch.autograd.Function):
    """A linear product: output and input gradient through oneDNN, weight gradient through the BLAS."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad_input = _product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        grad_TO = grad.flatten(0, -2)  # input [..., I], output [..., O], weight [O, I]
        grad_weight = grad_TO.t() @ input.flatten(0, -2) if ctx.needs_input_grad[1] else None
        grad_bias = grad_TO.sum(0) if ctx.needs_input_grad[2] else None
        return grad_input, grad_weight, grad_bias


class _AdapterInside(torch.autograd.Function):
    """A frozen layer W [O, I] with its adapter A [R, I] and B [O, R] on inputs x [T, I]: y = [W | s B] (x, A x).

    With the output's gradient g and h = s B^T g, the input's is [W^T | A^T] (g, h), A's is h^T x, and B's is s g^T (A x).
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        narrow_down, narrow_up = down.to(weight.dtype), (scale * up).to(weight.dtype)
        inner_TR = _product(input, narrow_down, None)
        ctx.save_for_backward(input, inner_TR, weight, narrow_down, narrow_up)
        ctx.scale, ctx.dtype = scale, down.dtype
        return _product(torch.cat([input, inner_TR], 1), torch.cat([weight, narrow_up], 1), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, inner_TR, weight, down, up = ctx.saved_tensors
        grad_inner_TR = _product(grad, up.t(), None)
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = _product(torch.cat([grad, grad_inner_TR], 1), torch.cat([weight, down]).t(), None)
        grad_down = _product(grad_inner_TR.t(), input.t(), None).to(ctx.dtype)
        grad_up = _product(inner_TR.t(), grad.t(), None).t().to(ctx.dtype).mul_(ctx.scale)
        return grad_input, None, None, grad_down, grad_up, None


def _beside(layers: Sequence[nn.Module], adapter: str | None) -> tuple[Tensor, Tensor]:
    """Return [W | B], [O, I + R], and A [R, I] of layers with the same input, some or all of them under the adapter."""
    weights: list[Any] = [below_adapters(layer).weight for layer in layers]
    of_layers = [factors(layer, adapter) for layer in layers]
    # A layer's B has the columns of its own A, and zeros in the others'.
    ups = [
        w.new_zeros(len(w), 0) if pair is None else pair[1].to(w) for w, pair in zip(weights, of_layers, strict=True)
    ]
    down = torch.cat([pair[0] for pair in of_layers if pair is not None])
    return torch.cat([torch.cat(weights).detach(), torch.block_diag(*ups)], 1), down.to(weights[0])


def _prepacked(weight: Tensor, rows: int) -> Tensor | None:
    """Return a copy of the weight in oneDNN's layout for about ``rows`` rows; None if prepacking does not pay."""
    if not _takes(weight) or weight.numel() < WORTH_PACKING:
        return None
    found: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return found


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found
