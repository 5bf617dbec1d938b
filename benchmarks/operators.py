"""Time single operators on a CPU, on one thread where nothing else is said: `python -m benchmarks.operators`.

Questions (docs/dev/bench.md, docs/dev/log.md): what bfloat16 gains in products of matrices; what it gains in attention,
learning and sampling; what a LoRA adapter costs inside its layer's product; and what summing the gradients of repeated rows
costs. Prints the least of several tries: CPU seconds
with one thread, seconds of the clock with several.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from selfcorrect.models.cpu.causal_products import attention_by_products
from selfcorrect.models.cpu.onednn_linear import OneDNNLinear, with_adapter_inside
from selfcorrect.models.cpu.prefix_attention import _Attention

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
DTYPES = (torch.float32, torch.bfloat16)
TRIES, LEAST_S = 7, 0.02


def main() -> None:
    """Print all tables."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("products of T x I by I x O through oneDNN, GFLOP/s: float32, bfloat16")
    for shape in ((64, 256, 1024), (4096, 256, 1024), (16, 576, 1536), (64, 576, 1536), (4096, 576, 1536)):
        print(f"  {shape!s:20} " + "  ".join(f"{product_rate(*shape, dtype):6.0f}" for dtype in DTYPES))
    print(
        "causal attention of rows x heads x tokens, head size 64, ms: float32 and bfloat16, forward; the same, backward"
    )
    for shape in ((64, 2, 64), (16, 3, 128), (16, 3, 256)):
        forward, backward = zip(*(attention_ms(*shape, dtype) for dtype in DTYPES), strict=True)
        print(f"  {shape!s:20} " + "  ".join(f"{ms:6.2f}" for ms in (*forward, *backward)))
    print(
        "the same with all of learning, forward and backward, from bfloat16: the fused kernel in float32, products in bfloat16"
    )
    for shape in ((16, 9, 125), (64, 2, 64)):
        print(f"  {shape!s:20} " + "  ".join(f"{ms:6.1f}" for ms in learning_ms(*shape)))
    print(
        "frozen layers I x O of T tokens in bfloat16, forward and backward, ms: LoRA by peft, inside the product, none"
    )
    for shape in ((2085, 576, 1536), (2085, 576, 576)):
        print(f"  {shape!s:20} " + "  ".join(f"{ms:6.1f}" for ms in adapter_ms(*shape)))
    print(
        "rows x heads x queries attend to 150 slots of a cache with room for 200, us: float32 products, bfloat16 products of the"
    )
    print("slice, of the whole buffer, and the fused kernel in bfloat16")
    for shape in ((64, 2, 2), (64, 3, 3), (16, 3, 3)):
        print(f"  {shape!s:20} " + "  ".join(f"{us:6.0f}" for us in cache_us(*shape)))
    print(
        "gradients of S rows of D numbers, repeated among T, summed by index_put and by the embedding, ms: 1 thread; all"
    )
    for shape in ((2984, 128, 1248), (6000, 576, 4000), (40, 20480, 160)):
        found = [*sum_ms(*shape), *sum_ms(*shape, threads=threads)]
        print(f"  {shape!s:20} " + "  ".join(f"{ms:6.2f}" for ms in found))


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds of a call: the least mean over several tries."""
    function()
    best, calls = float("inf"), 1
    for _ in range(TRIES):
        begun = clock()
        for _ in range(calls):
            function()
        taken = clock() - begun
        best = min(best, taken / calls)
        calls = max(calls, round(LEAST_S / max(best, 1e-9)))
    return best


def product_rate(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
    """Return the rate of a product in GFLOP/s, with the weight in oneDNN's layout."""
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    taken = seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return 2e-9 * rows * inner * outer / taken


def attention_ms(rows: int, heads: int, tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the milliseconds of the fused kernel's forward and backward pass."""
    q, k, v, g = (torch.randn(rows, tokens, heads, 64).to(dtype).transpose(1, 2) for _ in range(4))
    out, lse = FORWARD(q, k, v, 0.0, True)
    forward = seconds(lambda: FORWARD(q, k, v, 0.0, True))
    return 1e3 * forward, 1e3 * seconds(lambda: BACKWARD(g, q, k, v, out, lse, 0.0, True))


def learning_ms(rows: int, heads: int, tokens: int) -> list[float]:
    """Return the milliseconds of causal attention and its backward pass while learning, in two ways."""
    q, k, v, g = (torch.randn(rows, tokens, heads, 64).to(torch.bfloat16).requires_grad_() for _ in range(4))

    def by_kernel(*tensors: Tensor) -> Tensor:
        found: Tensor = _Attention.apply(*tensors, 0.125, None, None)
        return found

    def by_products(*tensors: Tensor) -> Tensor:
        return attention_by_products(*tensors, 0.125)

    return [
        1e3 * seconds(lambda of=attention: torch.autograd.grad(of(q, k, v), [q, k, v], g))  # type: ignore[misc]
        for attention in (by_kernel, by_products)
    ]


def adapter_ms(tokens: int, inner: int, outer: int) -> list[float]:
    """Return the milliseconds of a frozen layer and its backward pass: with peft's adapter, with it inside, without it."""
    from peft import LoraConfig, get_peft_model

    below = OneDNNLinear(inner, outer, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    model = get_peft_model(nn.Sequential(below), LoraConfig(r=16, lora_alpha=32, target_modules=["0"]))  # type: ignore[arg-type]
    layer = model.base_model.model[0]
    inside = with_adapter_inside(layer)
    assert inside is not None, "this processor has no bfloat16"
    factors = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    x, g = torch.randn(tokens, inner).to(torch.bfloat16).requires_grad_(), torch.randn(tokens, outer).to(torch.bfloat16)
    ways = ((layer, [x, *factors]), (inside, [x, *factors]), (below, [x]))
    return [1e3 * seconds(lambda f=f, to=to: torch.autograd.grad(f(x), to, g)) for f, to in ways]  # type: ignore[misc]


def cache_us(rows: int, heads: int, queries: int, slots: int = 150, room: int = 200) -> list[float]:
    """Return the microseconds of attention to a cache in four ways."""

    def products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        weights = torch.softmax(torch.bmm(q, keys.transpose(1, 2))[..., :slots], -1)
        return torch.bmm(functional.pad(weights, (0, keys.shape[1] - slots)), values)

    found = []
    for dtype in DTYPES:
        q = torch.randn(rows * heads, queries, 64).to(dtype)
        keys, values = (torch.randn(rows, heads, room, 64).to(dtype) for _ in range(2))
        first = [buffer[:, :, :slots].flatten(0, 1) for buffer in (keys, values)]
        found.append(seconds(lambda q=q, of=first: products(q, *of)))  # type: ignore[misc]
        if dtype == torch.bfloat16:
            found.append(seconds(lambda q=q, k=keys, v=values: products(q, k.flatten(0, 1), v.flatten(0, 1))))  # type: ignore[misc]
            by_head = q.view(rows, heads, queries, 64)
            found.append(
                seconds(lambda q=by_head, k=keys, v=values: FORWARD(q, k[:, :, :slots], v[:, :, :slots], 0.0, False))  # type: ignore[misc]
            )
    return [1e6 * each for each in found]


def sum_ms(rows: int, width: int, taken: int, *, threads: int = 1) -> tuple[float, float]:
    """Return the milliseconds of adding ``taken`` rows up by their indices, in two ways; with several threads, by the clock."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    index, gradients = torch.randint(0, rows, (taken,)).sort().values, torch.randn(taken, width)
    put = seconds(lambda: torch.zeros(rows, width).index_put_((index,), gradients, accumulate=True), clock)
    embedding = seconds(lambda: torch.ops.aten.embedding_dense_backward(gradients, index, rows, -1, False), clock)
    torch.set_num_threads(1)
    return 1e3 * put, 1e3 * embedding


if __name__ == "__main__":
    main()
