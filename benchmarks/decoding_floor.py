"""Measure the time to decode a token, and the time of its matrix products and attention alone.

`python -m benchmarks.decoding_floor small 64 128 512` decodes batches of 64, 128 and 512 rows with the workload's model. The
caches hold half of an episode's tokens, and a problem's samples share their prompt where the engine would share it. The whole
is timed; the profiler adds up products (layers and head) and attention (the new token with its cache). No token is drawn. The
last two columns are the fraction of the limit (docs/dev/bench.md) reached, and the fraction if all else were free.
"""

from __future__ import annotations

from benchmarks import as_the_command  # noqa: F401

# isort: split
import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.flops import Counts
from benchmarks.step.inputs import model_of
from benchmarks.step.ours import model_size
from benchmarks.step.roofline import measure_machine
from benchmarks.step.workloads import Workload, find_workload
from selfcorrect.engines import HFEngine
from selfcorrect.engines.kv_cache import KVCache
from selfcorrect.models.language_model import LanguageModel

TOKENS = 20
PRODUCTS, ATTENTION = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"), ("aten::bmm", "aten::_softmax")
"""Names of operations; every softmax is attention's, since no token is drawn."""


def main(name: str, counts: list[int]) -> None:
    """Print a line per number of rows."""
    workload = find_workload(name)
    context = max((workload.prompt + 2 * workload.turn) // 2, workload.prompt + TOKENS)
    model = model_of(workload, context=context + TOKENS)
    size, machine = model_size(model), measure_machine(torch.float32, torch.device("cpu"))
    weights = size.layer_weights + size.head_weights
    print(f"{torch.get_num_threads()} threads, {machine.rate / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s")
    print(f"{name}, {context} tokens in the cache; milliseconds per token of all rows")
    print("| rows | whole | products | GFLOP/s | attention | GB/s | the limit | reached | all else free |")
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in counts:
        whole, products, attention = measured(model, workload, rows, context)
        cache, seen = rows * size.layers * size.cache_width * context, 4.0 * size.query_width * size.layers * context
        needed = Counts(size.item * (weights + cache), rows * (2.0 * weights + seen))
        limit = needed.limit(machine.bandwidth, machine.rate)
        print(
            f"| {rows} | {whole * 1e3:.2f} | {products * 1e3:.2f} | {2e-9 * weights * rows / products:.0f} "
            f"| {attention * 1e3:.2f} | {1e-9 * size.item * cache / attention:.1f} | {limit * 1e3:.2f} "
            f"| {limit / whole:.0%} | {limit / (products + attention):.0%} |",
            flush=True,
        )


@torch.no_grad()
def measured(model: LanguageModel, workload: Workload, rows: int, context: int) -> tuple[float, float, float]:
    """Return the seconds per token of all rows: the whole, timed; its products and its attention, profiled."""
    engine = HFEngine(model)
    # With this length, the measured tokens attend to ``context`` others on average.
    own = context - workload.prompt - TOKENS // 2
    one, everyone = torch.full((rows, 1), 5), torch.arange(rows)
    valid = torch.ones((rows, max(own, workload.prompt)), dtype=torch.bool)

    def tokens(cache: KVCache, count: int) -> KVCache:
        for _ in range(count):
            cache, _ = engine.read(cache, one, valid[:, :1])
        return cache

    with model.sampling(rows):
        problems = -(-rows // workload.group)
        prompts, _ = engine.read(None, one[:problems].expand(-1, workload.prompt), valid[:problems, : workload.prompt])
        of = everyone // workload.group
        begun = prompts.shared_by(of, room=own) if prompts.sharing_pays(rows) else prompts.select(of)
        begun, _ = engine.read(begun, one.expand(-1, own), valid[:, :own])
        cache = tokens(begun.select(everyone), 1)
        start = time.perf_counter()
        tokens(cache, TOKENS)
        whole = time.perf_counter() - start
        cache = tokens(begun.select(everyone), 1)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            tokens(cache, TOKENS)
    found = profiler.key_averages()
    products, attention = (
        sum(o.self_cpu_time_total for o in found if o.key in kind) / 1e6 for kind in (PRODUCTS, ATTENTION)
    )
    return whole / TOKENS, products / TOKENS, attention / TOKENS


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]])
