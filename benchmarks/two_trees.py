"""Time a training step of two source versions, alternating: `python -m benchmarks.two_trees WORKLOAD EPISODES PAIRS OLD NEW...`.

OLD and NEW are `src` folders, for instance of two git worktrees, and may end in a dtype: `src:bfloat16`. Each runs in a
process with one thread. Prints the median, minimum and maximum ratio of the first one's CPU seconds to each other's by
phase, whether the weights are bit-identical, and the largest difference of a token's log-probability between engine and policy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    gap = record.metrics["max_logprob_diff"]
    print(json.dumps({**record.seconds, "digest": side.trainer.policy.digest(), "gap": gap}), flush=True)
"""


def main(name: str, episodes: int, pairs: int, given: list[str]) -> None:
    """Print a line per phase of every side after the first."""
    chosen = resized(find_workload(name), episodes)
    with TemporaryDirectory() as folder:
        sides = []
        for place, text in enumerate(given):
            tree, _, dtype = text.partition(":")
            if not (Path(tree) / "selfcorrect").is_dir():
                sys.exit(f"{tree} has no package selfcorrect")
            work = Path(folder) / str(place)
            work.mkdir()
            write_work(replace(chosen, dtype=dtype or chosen.dtype), work)
            sides.append(_start(tree, str(work)))
        found = [_turn(sides, backwards=bool(turn % 2)) for turn in range(WARM_UP + pairs)]
        for side in sides:
            side.communicate()
    print(f"{name}, {episodes} episodes, {pairs} pairs")
    for place in range(1, len(given)):
        _compare(given[0], given[place], [(taken[0], taken[place]) for taken in found])


def _compare(one: str, other: str, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    same = all(first["digest"] == second["digest"] for first, second in found)
    print(f"{one} over {other}; weights {'are bit-identical' if same else 'DIFFER'}")
    for phase in ("step", "generate", "reference", "learn"):
        pairs = [(_seconds(first, phase), _seconds(second, phase)) for first, second in found[WARM_UP:]]
        ratios = [first / second for first, second in pairs]
        print(
            f"  {phase:10} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"median of the second {statistics.median(second for _, second in pairs):.2f} s"
        )
    gaps = [max(side["gap"] for side in sides) for sides in zip(*found, strict=True)]
    print(f"  largest difference of engine and policy {gaps[0]:.2g} and {gaps[1]:.2g} nats")


def _seconds(taken: dict[str, Any], phase: str) -> float:
    seconds = {name: value for name, value in taken.items() if name not in ("digest", "gap")}
    return float(sum(seconds.values()) if phase == "step" else seconds[phase])


def _turn(sides: list[subprocess.Popen[str]], *, backwards: bool) -> list[dict[str, Any]]:
    """Return what a step of each side took, with the sides asked in turn."""
    order = list(range(len(sides)))
    taken = {place: _ask(sides[place]) for place in (reversed(order) if backwards else order)}
    return [taken[place] for place in order]


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


def _ask(side: subprocess.Popen[str]) -> dict[str, Any]:
    assert side.stdin and side.stdout
    side.stdin.write("step\n")
    side.stdin.flush()
    taken: dict[str, Any] = json.loads(side.stdout.readline())
    return taken


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
