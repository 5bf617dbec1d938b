"""Measure this machine's limits with the benchmark's threads: ``python -m benchmarks.step.roofline DTYPE``.

This is a separate process, so that its arrays count in no side's peak memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.step import protocol as side

SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
"""Sizes of the square matrices that are multiplied; the best rate counts."""
ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
"""Elements of the array that is read: 128 MiB in float32, beyond a CPU's caches, or 1 GiB, beyond a GPU's."""
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits of a machine: floating-point operations and bytes per second."""

    rate: float
    bandwidth: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """Return the best rate of several matrix products, and the best bandwidth over a long array (read; read and write)."""
    rate = 0.0
    for n in SIDES[device.type]:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rate = max(rate, 2.0 * n**3 / _best(lambda a=a, b=b: torch.mm(a, b)))  # type: ignore[misc]
    x = torch.ones(ELEMENTS[device.type], dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    total = x.numel() * x.element_size()
    read = total / _best(x.sum)
    copied = 2 * total / _best(lambda: y.copy_(x))
    return Machine(rate, max(read, copied))


def _best(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several runs, after a warm-up run."""
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        work()
        side.wait()
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def main() -> None:
    """Answer commands."""
    dtype = getattr(torch, sys.argv[1])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

    def measure() -> dict[str, float]:
        found = measure_machine(dtype, device)
        torch.cuda.empty_cache()  # this process stays alive while the sides are measured
        return found.to_json()

    side.answer({"machine": measure}, lambda: {"device": name})


if __name__ == "__main__":
    main()
