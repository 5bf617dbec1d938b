"""Where our step's time goes, operation by operation and by kind: `python benchmarks/profile_step.py WORKLOAD EPISODES`.

The last table says what binds: a step whose products alone take half of its seconds cannot become more than twice as fast by
making all the rest cheaper.
"""

from __future__ import annotations

import as_the_command  # noqa: F401

# isort: split
import sys
import time
from collections.abc import Iterable
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
"""Beginnings of the operations' names; the first kind that fits counts."""


def main(name: str, episodes: int) -> None:
    """Print the operations that take longest, and all of them by kind."""
    wall, operations = profiled(resized(find_workload(name), episodes))
    print(operations.table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=50))
    print(f"{'a step without the profiler':30} {wall:8.3f} s")
    for kind, seconds in by_kind(operations).items():
        print(f"{kind:30} {seconds:8.3f} s")


def profiled(workload: Workload) -> tuple[float, EventList]:
    """Seconds of the second step, and what the profiler saw in the third; the first sets up what the later ones reuse."""
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
    """Seconds that operations took themselves, under the profiler, which makes small ones dearer."""
    found = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for operation in operations:
        kinds = [kind for kind, beginnings in KINDS.items() if str(operation.key).startswith(beginnings)]
        found[kinds[0] if kinds else "other operations"] += operation.self_cpu_time_total / 1e6
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
