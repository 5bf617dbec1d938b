"""A training step with different settings, in turn: `python benchmarks/settings.py WORKLOAD EPISODES PAIRS THREADS SETTINGS...`.

Each SETTINGS is one text: ``key=value`` with blanks between, names in capitals for the process's environment, ``-`` for
nothing. For instance

    python benchmarks/settings.py small 64 4 2 "model.fast=false optimizer.share_prompts=false optimizer.token_budget=16384" -
    python benchmarks/settings.py small 64 4 2 MALLOC_ARENA_MAX=8 -

(any variable of malloc's leaves the C library alone, see `console.keep_freed_memory`). Prints seconds by phase, the median
ratio of the first to each, pair by pair, with the least and the greatest, and the peak of memory above the loaded model.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from selfcorrect.bench.work import write_work
from selfcorrect.bench.workloads import find_workload, resized
from selfcorrect.console import ENVIRONMENT

PHASES = ("seconds", "generate", "reference", "learn")
SIDE = """
import json, sys
from pathlib import Path
from selfcorrect.bench.ours import OurSide
from selfcorrect.console import keep_freed_memory

keep_freed_memory()
side = OurSide(Path(sys.argv[1]), changes=sys.argv[2:])
print("ready", flush=True)
for _ in sys.stdin:
    done = side.step()
    print(json.dumps({**done["phases"], "seconds": done["seconds"], "peak": done["peak_mib"]}), flush=True)
"""


def main(name: str, episodes: int, pairs: int, threads: str, variants: list[str]) -> None:
    """Print a line for each of the settings."""
    with TemporaryDirectory() as folder:
        write_work(resized(find_workload(name), episodes), Path(folder))
        sides = [_start(folder, threads, [] if variant == "-" else variant.split()) for variant in variants]
        taken: list[list[dict[str, float]]] = [[] for _ in sides]
        for pair in range(pairs + 1):
            order = range(len(sides)) if pair % 2 else reversed(range(len(sides)))
            for place in order:
                done = _ask(sides[place])
                if pair:  # the first one sets things up
                    taken[place].append(done)
        for side in sides:
            side.communicate()
    print(f"{name}, {episodes} episodes, {threads} threads, {pairs} steps of each in turn")
    for variant, steps in zip(variants, taken, strict=True):
        print(f"\n{variant}: peak {max(step['peak'] for step in steps):.0f} MiB")
        for phase in PHASES:
            ratios = [first[phase] / step[phase] for first, step in zip(taken[0], steps, strict=True)]
            middle = statistics.median(step[phase] for step in steps)
            print(
                f"  {phase:10} {middle:8.3f} s   first / this {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def _start(folder: str, threads: str, given: list[str]) -> subprocess.Popen[str]:
    of_process = dict(text.split("=", 1) for text in given if text[0].isupper())
    changes = [text for text in given if not text[0].isupper()]
    side = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SIDE, folder, *changes],
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": threads, **of_process},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert side.stdout and side.stdout.readline() == "ready\n"
    return side


def _ask(side: subprocess.Popen[str]) -> dict[str, float]:
    assert side.stdin and side.stdout
    side.stdin.write("step\n")
    side.stdin.flush()
    taken: dict[str, float] = json.loads(side.stdout.readline())
    return taken


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
