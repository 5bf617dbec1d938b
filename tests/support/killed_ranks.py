"""Kill random processes of tiny runs that torchrun restarts, and compare every run with one that nobody disturbed.

    python tests/support/killed_ranks.py --kills 200 --set distributed.shard=true --set distributed.async_save=true

A run is killed again and again until it ends; then the next one begins.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
from support.launched import EXACT, words

LAUNCHER = (
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--max-restarts",
    "10000",
    "-m",
    "selfcorrect",
)
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
"""Restarted processes need new addresses (docs/scale.md)."""
PATIENCE_S = 600
LAST_WORDS = b"The run is in "


class Disturbed:
    """A run of two processes under torchrun."""

    def __init__(self, out: Path, settings: Sequence[str]) -> None:
        self.log = out.with_name(f"{out.name}.log")
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", *LAUNCHER, *words(out, *settings)],
                env={**os.environ, **NEW_STORE},
                stdout=log,
                stderr=log,
            )

    def processes(self) -> list[int]:
        """Return the processes that torchrun has started and that still run."""
        listed = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        return sorted(map(int, listed.read_text().split())) if listed.exists() else []

    def lines(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def wait_for(self, lines: int, delay_s: float) -> bool:
        """Wait for progress, as the run tells it, and a little more; return whether the run still goes on."""
        end = time.monotonic() + PATIENCE_S
        while self.lines() < lines and not self.finished():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(delay_s)
        return not self.finished()

    def finished(self) -> bool:
        """Return whether the run has said its last word, or the launcher has ended; after that, kills would only repeat it."""
        return LAST_WORDS in self.log.read_bytes() or self.launcher.poll() is not None

    def kill(self, chance: random.Random) -> int | None:
        """Kill one of the processes, and wait until all have ended; return its rank, or None if the run ended first."""
        before = self.processes()
        if len(before) < 2:
            return None
        victim = chance.randrange(len(before))
        os.kill(before[victim], signal.SIGKILL)
        while {*before} & {*self.processes()} and self.launcher.poll() is None:
            time.sleep(0.02)
        return victim


def disturbed_run(out: Path, settings: Sequence[str], chance: random.Random, kills: int) -> Counter[str]:
    """Finish a run that is killed up to ``kills`` times; return the numbers of kills by rank."""
    run, done = Disturbed(out, settings), Counter[str]()
    try:
        while done.total() < kills and run.wait_for(run.lines() + chance.randint(1, 9), chance.uniform(0, 1)):
            rank = run.kill(chance)
            if rank is not None:
                done[f"rank {rank}"] += 1
                print(f"killed rank {rank} after: {_last_word(run.log)}", flush=True)
        status = run.launcher.wait(PATIENCE_S)
        assert status == 0, f"status {status}\n{run.log.read_text()[-3000:]}"
    finally:
        if run.launcher.poll() is None:
            run.launcher.terminate()
            run.launcher.wait(60)
    return done


def _last_word(log: Path) -> str:
    own = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("selfcorrect: ")]
    return own[-1].removeprefix("selfcorrect: ")[:60] if own else "(nothing yet)"


def main() -> None:
    """Print the number of kills, and of runs that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="begin no further run after these")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    flags = parser.parse_args()
    chance, kills, runs, differing = random.Random(flags.seed), Counter[str](), 0, 0
    end = time.monotonic() + 60 * flags.minutes
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "undisturbed"
        disturbed_run(calm, flags.settings, chance, 0)
        while kills.total() < flags.kills and time.monotonic() < end:
            out = Path(folder) / f"run-{runs}"
            kills += disturbed_run(out, flags.settings, chance, flags.kills - kills.total())
            differing += any((out / file).read_bytes() != (calm / file).read_bytes() for file in EXACT)
            runs += 1
            print(f"{kills.total()} kills {dict(kills)} in {runs} runs, {differing} of them differ", flush=True)
    raise SystemExit(differing > 0)


if __name__ == "__main__":
    main()
