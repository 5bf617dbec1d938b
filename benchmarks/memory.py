"""Measure what a process holds over training steps whose attempts differ in length: `python -m benchmarks.memory WORKLOAD`.

Every step draws new lengths, as a real run has them. A line per step: memory held after the step, its peak within the
step, and of what is held, what the allocator has handed out and what it keeps free (glibc's ``mallinfo2``), in MiB.

``--allocator`` chooses how glibc treats large blocks: ``command``, as the command line sets it; ``glibc``, its own rule; or a
number of MiB from which a block is mapped alone. The caches of compiled products are the command line's, unless the environment
has others (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`, `LRU_CACHE_CAPACITY`).

``--products`` takes no steps: it measures those caches alone, by products with ever new numbers of rows.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfcorrect import runtime

MIB = 2**20
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
WIDTH, FEWEST_ROWS, SHAPES, EVERY = 256, 8, 600, 100
"""The products of ``--products``: their width, the fewest rows, how many numbers of rows, and how many for each line."""


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="?")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, help="layers of a model of random weights; unset = the workload's")
    parser.add_argument("--dtype", help="unset = the workload's; of --products: float32")
    parser.add_argument("--allocator", default="command")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--products", action="store_true")
    arguments = parser.parse_args()
    if arguments.products == (arguments.workload is not None):
        parser.error("give a workload or --products")
    allocate(arguments.allocator)
    if arguments.products:
        measure_products(arguments.dtype or "float32")
    else:
        measure_steps(arguments)


def allocate(how: str) -> None:
    """Set the caches, and how the allocator treats large blocks; before torch allocates any."""
    runtime.set_environment()
    if how == "command":
        runtime.keep_freed_memory()
    elif how != "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(runtime.M_MMAP_THRESHOLD, int(float(how) * MIB))
        mallopt(runtime.M_TRIM_THRESHOLD, 2**31 - 1)


def measure_steps(arguments: argparse.Namespace) -> None:
    """Take the steps, and print a line for each."""
    from benchmarks.step import protocol
    from benchmarks.step.inputs import write_work
    from benchmarks.step.ours import OurSide
    from benchmarks.step.workloads import Shape, find_workload, resized
    from selfcorrect.rng import generator

    workload = resized(find_workload(arguments.workload), arguments.episodes)
    workload = replace(workload, dtype=arguments.dtype or workload.dtype)
    if arguments.layers and isinstance(workload.model, Shape):
        workload = replace(workload, model=replace(workload.model, layers=arguments.layers))
    with TemporaryDirectory() as folder:
        # In another process: what a model takes to make is not what it takes to train.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_work, (workload, Path(folder)))
        ours = OurSide(Path(folder), changes=arguments.set)
    print(f"{workload.name}, {workload.episodes} episodes, {workload.dtype}, allocator {arguments.allocator}")
    print(f"loaded: {protocol.resident():.0f} MiB\nstep  seconds   held   peak  handed out   free")
    engine: Any = ours.trainer.sampler.engine
    for step in range(1, arguments.steps + 1):
        draw = generator(0, "memory", step)
        engine.lengths = {key: int(draw.integers(8, workload.turn + 1)) for key in engine.lengths}
        protocol.forget_peak()
        begin = time.perf_counter()
        ours.trainer.step()
        seconds, (out, free) = time.perf_counter() - begin, heap()
        print(
            f"{step:4}  {seconds:7.1f}  {protocol.resident():5.0f}  {protocol.peak():5.0f}  {out:10.0f}  {free:5.0f}",
            flush=True,
        )


def measure_products(dtype: str) -> None:
    """Print what is handed out after products with ever new numbers of rows, and the seconds of all, twice."""
    import torch

    torch.set_num_threads(1)
    weight = torch.ones(WIDTH, WIDTH, dtype=getattr(torch, dtype))
    for again in (False, True):
        begin = time.perf_counter()
        for shape in range(1, SHAPES + 1):
            rows = torch.ones(FEWEST_ROWS + shape, WIDTH, dtype=weight.dtype)
            torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
            if shape % EVERY == 0 and not again:
                print(f"{shape} shapes: {heap()[0]:.1f} MiB handed out")
        print(f"all {SHAPES} {'again' if again else 'at first'}: {time.perf_counter() - begin:.2f} s")


def heap() -> tuple[float, float]:
    """Return the MiB that the allocator has handed out, mapped blocks included, and those that it keeps free."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    found = mallinfo2()
    return (found.uordblks + found.hblkhd) / MIB, found.fordblks / MIB


if __name__ == "__main__":
    main()
