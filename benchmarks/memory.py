"""Measure what a process holds over training steps whose attempts differ in length: `python -m benchmarks.memory WORKLOAD`.

Every step draws new lengths, as a real run has them. A line per step: memory held after the step, its peak within the
step, and of what is held, what the allocator has handed out and what it keeps free (glibc's ``mallinfo2``), in MiB.

``--allocator`` chooses how glibc treats large blocks: ``command``, as the command line sets it; ``glibc``, its own rule; or a
number of MiB from which a block is mapped alone.
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
MAPPED_FROM, TRIMMED_FROM = -3, -1


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, help="layers of a model of random weights; unset = the workload's")
    parser.add_argument("--allocator", default="command")
    parser.add_argument("settings", nargs="*", help="key.path=value")
    arguments = parser.parse_args()
    allocate(arguments.allocator)
    measure(arguments)


def allocate(how: str) -> None:
    """Set how the allocator treats large blocks; before torch allocates any."""
    runtime.set_environment()
    if how == "command":
        runtime.keep_freed_memory()
    elif how != "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MAPPED_FROM, int(float(how) * MIB))
        libc.mallopt(TRIMMED_FROM, 2**31 - 1)


def measure(arguments: argparse.Namespace) -> None:
    """Take the steps, and print a line for each."""
    from benchmarks.step.inputs import write_work
    from benchmarks.step.ours import OurSide
    from benchmarks.step.workloads import Shape, find_workload, resized
    from selfcorrect.rng import generator

    workload = resized(find_workload(arguments.workload), arguments.episodes)
    if arguments.layers and isinstance(workload.model, Shape):
        workload = replace(workload, model=replace(workload.model, layers=arguments.layers))
    with TemporaryDirectory() as folder:
        with multiprocessing.get_context("spawn").Pool(
            1
        ) as pool:  # what a model takes to make is not what it takes to train
            pool.apply(write_work, (workload, Path(folder)))
        ours = OurSide(Path(folder), changes=arguments.settings)
    print(f"{workload.name}, {workload.episodes} episodes, {arguments.allocator}: loaded {held():.0f} MiB")
    print("step  seconds   held   peak  handed out   free")
    engine: Any = ours.trainer.sampler.engine
    for step in range(1, arguments.steps + 1):
        draw = generator(0, "memory", step)
        engine.lengths = {key: int(draw.integers(8, workload.turn + 1)) for key in engine.lengths}
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        ours.trainer.step()
        seconds, (out, free) = time.perf_counter() - begin, heap()
        print(f"{step:4}  {seconds:7.1f}  {held():5.0f}  {held('VmHWM'):5.0f}  {out:10.0f}  {free:5.0f}", flush=True)


def held(name: str = "VmRSS") -> float:
    """Return a line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def heap() -> tuple[float, float]:
    """Return the MiB that the allocator has handed out, mapped blocks included, and those that it keeps free."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo
    found = libc.mallinfo2()
    return (found.uordblks + found.hblkhd) / MIB, found.fordblks / MIB


if __name__ == "__main__":
    main()
