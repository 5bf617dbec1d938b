"""Time a training step with several settings, alternating.

`python -m benchmarks.settings WORKLOAD EPISODES PAIRS THREADS SETTINGS...`. Each SETTINGS is one argument: ``key=value``
separated by blanks, or ``-`` for none. Names in capitals are environment variables of the process. For instance

    python -m benchmarks.settings small 64 4 2 "model.cpu_kernels=false optimizer.micro_batch_tokens=16384" -
    python -m benchmarks.settings small 64 4 2 MALLOC_ARENA_MAX=8 -

(with any malloc variable, `runtime.keep_freed_memory` leaves the C library alone). Prints seconds by phase, the median,
minimum and maximum of the paired ratios of the first settings to each, and the peak memory above the loaded model.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.step.inputs import write_work
from benchmarks.step.process import Side, our_command
from benchmarks.step.workloads import find_workload, resized

PHASES = ("generate", "reference", "learn")


def main(name: str, episodes: int, pairs: int, threads: int, variants: list[str]) -> None:
    """Print the seconds and ratios of each of the settings."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        write_work(resized(find_workload(name), episodes), Path(folder))
        sides = [stack.enter_context(Side(v, _command(Path(folder), v), threads=threads)) for v in variants]
        taken: list[list[dict[str, float]]] = [[] for _ in sides]
        for pair in range(pairs + 1):
            order = range(len(sides)) if pair % 2 else reversed(range(len(sides)))
            for index in order:
                done: dict[str, Any] = sides[index].ask("step")
                if pair:  # the first one is a warm-up
                    taken[index].append({"step": done["seconds"], "peak": done["peak_mib"], **done["phases"]})
    print(f"{name}, {episodes} episodes, {threads} threads, {pairs} alternating steps each")
    for variant, steps in zip(variants, taken, strict=True):
        print(f"\n{variant}: peak {max(step['peak'] for step in steps):.0f} MiB")
        for phase in ("step", *PHASES):
            ratios = [first[phase] / step[phase] for first, step in zip(taken[0], steps, strict=True)]
            middle = statistics.median(step[phase] for step in steps)
            print(
                f"  {phase:10} {middle:8.3f} s   first / this {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def _command(folder: Path, variant: str) -> list[str]:
    given = [] if variant == "-" else variant.split()
    of_process = [text for text in given if text[0].isupper()]
    return ["env", *of_process, *our_command(folder), *(text for text in given if not text[0].isupper())]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
