"""Where our step's time goes, operation by operation: `python benchmarks/profile_step.py WORKLOAD EPISODES`."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile

from selfcorrect.bench.ours import OurSide
from selfcorrect.bench.work import write_work
from selfcorrect.bench.workloads import find_workload, resized


def main(name: str, episodes: int) -> None:
    """Profile the second step; the first one also sets up what the later ones reuse."""
    with TemporaryDirectory() as folder:
        write_work(resized(find_workload(name), episodes), Path(folder))
        side = OurSide(Path(folder))
        side.step()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            side.step()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=50))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
