"""Time sampling with prompts that a problem's samples share and with a copy per row, alternating.

`python -m benchmarks.shared_prompts small 512 3` takes a workload, its episodes and the number of pairs, after a warm-up pair.
A fourth number replaces the engine's limit: the bytes per layer from which prompts are shared, not copied (0: always).
"""

from __future__ import annotations

from benchmarks import as_the_command  # noqa: F401

# isort: split
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.step.inputs import write_work
from benchmarks.step.ours import OurSide
from benchmarks.step.workloads import find_workload, resized
from selfcorrect.engines import kv_cache as cache

NEVER = 2**60


def main(name: str, episodes: int, pairs: int, limit: int = cache.SHARED_FROM) -> None:
    """Print the seconds of each pair, then the median, minimum and maximum ratio of copied to shared."""
    with TemporaryDirectory() as folder:
        write_work(resized(find_workload(name), episodes), Path(folder))
        trainer = OurSide(Path(folder)).trainer
        ratios = []
        for pair in range(pairs + 1):
            seconds = {}
            for of in (limit, NEVER) if pair % 2 else (NEVER, limit):
                cache.SHARED_FROM = of
                begun = time.perf_counter()
                trainer.sampler.sample(trainer.state.step)
                seconds[of] = time.perf_counter() - begun
            print(
                f"{'pair' if pair else 'warm-up'}: shared {seconds[limit]:.2f} s, copied {seconds[NEVER]:.2f} s",
                flush=True,
            )
            if pair:
                ratios.append(seconds[NEVER] / seconds[limit])
    print(f"{name}, {episodes} episodes: copied / shared {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
