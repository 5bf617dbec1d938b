"""Kill a tiny run at chosen moments, resume it, and compare every bit with an undisturbed run.

Run as a script, for many more kills than the tests make:

    python tests/support/crash.py --events --kills 100

Each run is a fork of this process, so the heavy imports are paid once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
from selfcorrect.config.toml import load_config
from selfcorrect.errors import RunDirectoryError
from selfcorrect.runs.run import resume, train
from support.models import tiny_model
from support.verifiers import lenient_additions

SETTINGS = [
    "stages.stage1.steps=3",
    "stages.score.steps=4",
    "rollout.batch_size=8",
    "rollout.group_size=4",
    "task.train_problems=40",
    "task.dev_problems=4",
    "eval.problems=6",
    "eval.dev_every=2",
    "log.save_every=2",
    "log.keep_window=2",
    "log.episodes_every=1",
    "log.episodes=4",
    "optimizer.warmup_steps=0",
]
SHORTER = [*SETTINGS, "rollout.max_tokens=3", "eval.problems=2"]
"""Settings for hundreds of runs."""
CRASHED, REFUSED = 77, 78


class Harness:
    """A maker of runs under ``folder`` with these settings, and of an undisturbed one to compare them with."""

    def __init__(self, folder: Path, *changes: str) -> None:
        torch.set_num_threads(1)
        self.folder = folder
        model = folder / "model"
        small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
        tiny_model(1, dtype=torch.float32, **small).save(model)
        self.config = load_config("demo", [*SHORTER, f"model.source={model}", *changes])
        train(self.config, folder / "warm")  # in this process: forks then find everything imported
        start = time.monotonic()
        self.undisturbed = self.run("undisturbed")
        self.seconds = time.monotonic() - start

    def run(self, name: str, **crash: object) -> dict[str, str]:
        """Make a run that crashes as requested, resume it until it is finished, and return its digests."""
        out = self.folder / name
        status = self.child(out, **crash)
        for _ in range(20):
            if status == 0:
                break
            assert status in (CRASHED, REFUSED, -signal.SIGKILL, -signal.SIGXFSZ), f"a run ended with status {status}"
            status = self.child(out)
        assert status == 0, f"{name} did not finish"
        found = digests(out)
        if name != "undisturbed":
            shutil.rmtree(out)
        return found

    def child(
        self,
        out: Path,
        *,
        event: int | None = None,
        seconds: float | None = None,
        file_size: int | None = None,
        disk_size: int | None = None,
    ) -> int:
        """Fork, start or resume the run in ``out``, crash it as requested; return the exit status, negative for a signal."""
        process = os.fork()
        if process == 0:
            try:
                if event is not None:
                    crash_at(event, out)
                if file_size is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                if disk_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (disk_size, disk_size))
                resume(out) if (out / "config.toml").exists() else train(self.config, out)
            except RunDirectoryError as error:
                os._exit(REFUSED if "cannot write" in str(error) else 1)
            except BaseException as error:
                print(f"{out.name}: {error!r}", file=sys.stderr)
                os._exit(1)
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status)

    def events(self) -> int:
        """Return the number of file-system events of a whole run: the first event at which no crash happens."""
        counter = self.folder / "events"
        os.environ["COUNT_EVENTS"] = str(counter)
        try:
            assert self.child(self.folder / "counted", event=10**9) == 0
        finally:
            del os.environ["COUNT_EVENTS"]
        shutil.rmtree(self.folder / "counted")
        return int(counter.read_text())


def crash_at(event: int, out: Path) -> None:
    """Exit at once, as if the power failed, just before the ``event``-th opening for writing, fsync, rename,
    removal or mkdir below ``out``."""
    seen = 0
    below = str(out)
    counter = os.environ.get("COUNT_EVENTS")

    def count() -> None:
        nonlocal seen
        seen += 1
        if counter:
            descriptor = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, str(seen).encode())
            os.close(descriptor)
        elif seen > event:
            os._exit(CRASHED)

    def audit(name: str, arguments: tuple[object, ...]) -> None:
        if name == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes and str(arguments[0]).startswith(below):
                count()
        elif name in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") and str(arguments[0]).startswith(
            below
        ):
            count()

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(audit)


def digests(out: Path) -> dict[str, str]:
    """Return digests of what must not depend on crashes: weights, optimizer, metrics, episodes, results."""
    found = {str(p.relative_to(out)): _sha(p) for p in sorted(out.glob("episodes/*.jsonl"))}
    found["metrics.jsonl"] = _sha(out / "metrics.jsonl")
    for weights in sorted(out.glob("checkpoints/*/model.safetensors")):
        found[str(weights.relative_to(out))] = _sha(weights)
    for state in sorted(out.glob("checkpoints/*/trainer.pt")):
        saved = torch.load(state, weights_only=True)
        moments = [t.numpy().tobytes() for s in saved["optimizer"]["state"].values() for t in s.values()]
        kept = {key: value for key, value in saved.items() if key not in ("optimizer", "log_sizes")}
        found[str(state.relative_to(out))] = hashlib.sha256(b"".join(moments) + repr(kept).encode()).hexdigest()
    found["results"] = json.dumps(json.loads((out / "summary.json").read_text())["results"], sort_keys=True)
    return found


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", action="store_true", help="crash once at every file-system event of a run")
    parser.add_argument("--kills", type=int, default=0, help="number of SIGKILLs, at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, lenient_additions():
        harness = Harness(Path(folder))
        moments: list[dict[str, object]] = []
        if options.events:
            moments += [{"event": event} for event in range(harness.events())]
        randomly = random.Random(options.seed)
        moments += [{"seconds": randomly.uniform(0, harness.seconds)} for _ in range(options.kills)]
        differing = [moment for i, moment in enumerate(moments) if _differs(harness, i, moment)]
    print(
        json.dumps(
            {
                "crashes": len(moments),
                "events": len(moments) - options.kills,
                "kills": options.kills,
                "differing": differing,
            }
        )
    )
    return 1 if differing else 0


def _differs(harness: Harness, number: int, moment: dict[str, object]) -> bool:
    if number % 20 == 0:
        print(f"crash {number}: {moment}", file=sys.stderr, flush=True)
    return harness.run(f"run{number}", **moment) != harness.undisturbed


if __name__ == "__main__":
    sys.exit(main())
