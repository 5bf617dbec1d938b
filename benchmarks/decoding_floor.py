"""What decoding takes if only its products of matrices and its attention took time.

`python benchmarks/decoding_floor.py small 64 128 512`: the numbers are rows that decode side by side. One token of each row is
fed through random weights of the workload's shape by the very calls that sampling makes (packed weights, `cached_attention`),
with half of the tokens of a whole episode in the cache. The last column is the share of the limit (docs/bench.md) that a step
would reach if everything else were free.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from selfcorrect.attention import cached_attention
from selfcorrect.bench.counts import Counts
from selfcorrect.bench.machine import measure_machine
from selfcorrect.bench.workloads import Shape, find_workload
from selfcorrect.linear import Joined, packed, quicken

REPEATS = 30


def main(name: str, counts: list[int]) -> None:
    """Print a line for each number of rows."""
    workload = find_workload(name)
    if not isinstance(workload.model, Shape):
        sys.exit(f"{name} has no shape of its own; one of small, vocab and long has")
    shape = workload.model
    context = (workload.prompt + 2 * workload.turn) // 2
    machine = measure_machine(torch.float32, torch.device("cpu"))
    print(f"{torch.get_num_threads()} threads, {machine.rate / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s")
    print(f"{name}, {context} tokens in the cache; milliseconds per token of all rows")
    print("| rows | products | GFLOP/s | attention | GB/s | the limit | share of it, all else free |")
    print("|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for rows in counts:
            floor = Floor(shape, rows, context)
            with packed(floor, rows):
                products = _seconds(floor.products)
            attention = _seconds(floor.attention)
            weights, cache = floor.weights(), floor.cache()
            cached = 4.0 * shape.layers * shape.heads * shape.head_dim * rows * context
            limit = Counts(4.0 * (weights + cache), 2.0 * weights * rows + cached).limit(
                machine.bandwidth, machine.rate
            )
            print(
                f"| {rows} | {products * 1e3:.2f} | {2e-9 * weights * rows / products:.0f} | {attention * 1e3:.2f} "
                f"| {4e-9 * cache / attention:.1f} | {limit * 1e3:.2f} | {limit / (products + attention):.0%} |",
                flush=True,
            )


class Floor(nn.Module):
    """The matrices of a model and the caches of its rows."""

    def __init__(self, shape: Shape, rows: int, context: int) -> None:
        super().__init__()
        self.shape, self.rows = shape, rows
        inside, cached = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        pairs = [
            (shape.width, inside),
            (shape.width, cached),
            (shape.width, cached),
            (inside, shape.width),
            (shape.width, shape.inner),
            (shape.width, shape.inner),
            (shape.inner, shape.width),
        ]
        self.layers = [[nn.Linear(x, y, bias=False) for x, y in pairs] for _ in range(shape.layers)]
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.linears = nn.ModuleList([*(linear for layer in self.layers for linear in layer), self.head])
        quicken(self)
        joined = [Joined.of(layer[:3], rows) for layer in self.layers]
        self.joined = [each for each in joined if each is not None]
        self.inputs = {width: torch.randn(rows, width) for width in (shape.width, inside, shape.inner)}
        self.queries = torch.randn(rows, shape.heads, 1, shape.head_dim)
        self.caches = [torch.randn(2, rows, shape.kv_heads, context, shape.head_dim) for _ in range(shape.layers)]

    def products(self) -> None:
        """One token's products, in the order of the layers."""
        for joined, layer in zip(self.joined, self.layers, strict=True):
            joined(self.inputs[self.shape.width])
            for linear in layer[3:]:
                linear(self.inputs[linear.in_features])
        self.head(self.inputs[self.shape.width])

    def attention(self) -> None:
        for keys, values in self.caches:
            cached_attention(self.queries, keys, values, self.shape.head_dim**-0.5, None)

    def weights(self) -> int:
        return sum(weight.numel() for weight in self.parameters())

    def cache(self) -> int:
        return sum(cache.numel() for cache in self.caches)


def _seconds(work: Callable[[], None]) -> float:
    """The median of several runs, after one that does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]])
