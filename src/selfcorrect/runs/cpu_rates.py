"""What this machine's CPU and memory can do: their sizes and rates, as an estimate of a run on it needs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from selfcorrect.models.dtypes import DTYPES
from selfcorrect.runs.model_shape import GIB, Cluster

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux states the memory limit of a container."""
WIDTH, NUMBERS = 1024, 2**25
"""The width of the square matrices that are multiplied, and the numbers that are read: more than caches hold."""
SECONDS, REPEATS = 0.5, 20
"""A rate is the best of at most `REPEATS` repetitions, which take about `SECONDS` together."""


def this_cpu(dtype: str, *, tflops: float | None = None, bandwidth: float | None = None) -> Cluster:
    """Return this machine as what an estimate is made for; rates that are not given are measured.

    The rates are measured in about two seconds, with the threads that a run would have; other programs lower them.
    """
    return Cluster(
        gpus=1,
        gib=memory_gib(),
        tflops=product_rate(DTYPES[dtype]) if tflops is None else tflops,
        bandwidth=memory_bandwidth() if bandwidth is None else bandwidth,
        cpu=True,
    )


def memory_gib() -> float:
    """Return the memory that this process may use: the machine's, or a container's limit."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, LIMITS):
        text = file.read_text().strip() if file.is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes) / GIB


def product_rate(dtype: torch.dtype) -> float:
    """Return the TFLOP/s of products of square matrices."""
    a = torch.ones(WIDTH, WIDTH, dtype=dtype)
    return 2 * WIDTH**3 / _best(lambda: a @ a) / 1e12


def memory_bandwidth() -> float:
    """Return the GB/s at which numbers are read from memory."""
    numbers = torch.ones(NUMBERS)
    return 4 * NUMBERS / _best(numbers.sum) / 1e9


def _best(work: Callable[[], object]) -> float:
    """Return the shortest time of ``work``, after once to warm up."""
    work()
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < SECONDS:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
