"""Profile our step by operation and by kind of operation: `python -m benchmarks.profile_step WORKLOAD EPISODES [DTYPE]`.

The last table shows the bottleneck: if matrix products alone take half of a step, making all the rest cheaper can at most
double its speed.
"""

from __future__ import annotations

from benchmarks import as_the_command  # noqa: F401

# isort: split
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.autograd.profiler_util import EventList, FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.inputs import write_work
from benchmarks.step.ours import OurSide
from benchmarks.step.workloads import Workload, find_workload, resized

KINDS = {
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::", "aten::mkldnn"),
    "attention kernel": ("aten::_scaled_dot_product",),
}
"""Kinds of operations by the prefixes of their names; the first matching kind counts."""


def main(name: str, episodes: int, dtype: str | None = None) -> None:
    """Print the longest operations, then all operations by kind."""
    workload = resized(find_workload(name), episodes)
    wall, operations = profiled(replace(workload, dtype=dtype or workload.dtype))
    print(operations.table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=50))
    print(f"{'a step without the profiler':30} {wall:8.3f} s")
    for kind, seconds in by_kind(operations).items():
        print(f"{kind:30} {seconds:8.3f} s")


def profiled(workload: Workload) -> tuple[float, EventList]:
    """Return the seconds of the second step and the profile of the third; the first sets up what later ones reuse."""
    with TemporaryDirectory() as folder:
        write_work(workload, Path(folder))
        side = OurSide(Path(folder))
        side.step()
        begun = time.perf_counter()
        side.step()
        wall = time.perf_counter() - begun
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            side.step()
    return wall, profiler.key_averages()


def by_kind(operations: Iterable[FunctionEventAvg]) -> dict[str, float]:
    """Return the operations' own seconds by kind, as profiled; the profiler slows down small operations."""
    found = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for operation in operations:
        kinds = [kind for kind, beginnings in KINDS.items() if str(operation.key).startswith(beginnings)]
        found[kinds[0] if kinds else "other operations"] += operation.self_cpu_time_total / 1e6
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4])
