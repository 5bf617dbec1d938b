"""Time a training step of two source versions, alternating: `python benchmarks/two_trees.py WORKLOAD EPISODES PAIRS OLD NEW`.

OLD and NEW are `src` folders, for instance of two git worktrees. Each runs in a process with one thread. Prints the median,
minimum and maximum ratio of CPU seconds by phase, and whether the weights are bit-identical.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.step.inputs import write_work
from benchmarks.step.workloads import find_workload, resized

WARM_UP = 2
SIDE = """
import json, sys, time
from pathlib import Path
import selfcorrect.training.timing
from benchmarks.step.ours import OurSide

selfcorrect.training.timing.time.perf_counter = time.process_time
side = OurSide(Path(sys.argv[1]))
print("ready", flush=True)
for _ in sys.stdin:
    record = side.trainer.step()
    print(json.dumps({**record.seconds, "digest": side.trainer.policy.digest()}), flush=True)
"""


def main(name: str, episodes: int, pairs: int, trees: list[str]) -> None:
    """Print a line per phase."""
    with TemporaryDirectory() as folder:
        write_work(resized(find_workload(name), episodes), Path(folder))
        sides = [_start(tree, folder) for tree in trees]
        found = []
        for pair in range(WARM_UP + pairs):
            order = (0, 1) if pair % 2 == 0 else (1, 0)
            taken = {index: _ask(sides[index]) for index in order}
            found.append((taken[0], taken[1]))
        for side in sides:
            side.communicate()
    digests = [(old.pop("digest"), new.pop("digest")) for old, new in found]
    same = all(old == new for old, new in digests)
    print(f"{name}, {episodes} episodes, {pairs} pairs; weights {'are bit-identical' if same else 'DIFFER'}")
    counted = [({**old, "step": sum(old.values())}, {**new, "step": sum(new.values())}) for old, new in found[WARM_UP:]]
    for phase in ("step", "generate", "reference", "learn"):
        ratios = [old[phase] / new[phase] for old, new in counted]
        print(f"{phase:10} old / new {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _start(tree: str, folder: str) -> subprocess.Popen[str]:
    side = subprocess.Popen(
        [sys.executable, "-c", SIDE, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tree, str(Path(tree).parent)]), "OMP_NUM_THREADS": "1"},
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
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:6])
