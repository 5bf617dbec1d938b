"""Alternate the steps of two sides; compute medians, paired ratios and the fraction of the machine's limits reached."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.step.flops import Counts
from benchmarks.step.process import Side, check_trl, machine_command, our_command, trl_command
from benchmarks.step.workloads import Workload
from selfcorrect.errors import TrainingError

PHASES = ("generate", "reward", "reference", "learn", "rest")


@dataclass(frozen=True, slots=True)
class Rival:
    """The system to compare with: TRL with its own settings, or ourselves, unchanged or with a planted slowdown.

    Attributes:
        python: the interpreter of TRL's environment; None for ourselves.
        settings: TRL's settings, see `trl_score`.
    """

    name: str
    python: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    slowdown: float = 0.0

    def command(self, folder: Path) -> list[str]:
        if self.python is None:
            return our_command(folder, self.slowdown)
        return trl_command(folder, self.python, dict(self.settings))


@dataclass(frozen=True, slots=True)
class SideResult:
    """The steps of one side.

    Attributes:
        steps: per counted step: seconds, seconds by phase, CPU seconds (of all threads; more reliable than the clock on
            a shared machine), sampled tokens.
        peak_mib: peak memory minus what the process held when the model was loaded.
    """

    name: str
    settings: Mapping[str, Any]
    ready: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    peak_mib: float

    @property
    def seconds(self) -> float:
        return float(median(step["seconds"] for step in self.steps))

    @property
    def cpu_seconds(self) -> float:
        return float(median(step["cpu_seconds"] for step in self.steps))

    def phase(self, name: str) -> float:
        return float(median(step["phases"][name] for step in self.steps))


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The measurements of one workload.

    Attributes:
        device: `CPU`, or the GPU's name.
        machine: rates before and after the steps; the higher ones count as the limits.
        counts: bytes that a step must read and operations that it must do.
        load: the system's load average at the start; above the number of threads, other programs were running too.
    """

    workload: Mapping[str, Any]
    threads: int
    device: str
    load: float
    machine: Sequence[Mapping[str, float]]
    counts: Mapping[str, Any]
    ours: SideResult
    rival: SideResult | None = None

    @property
    def ratios(self) -> list[float]:
        """Return the rival's seconds over ours, one ratio per pair of neighbouring steps."""
        if self.rival is None:
            return []
        return [b["seconds"] / a["seconds"] for a, b in zip(self.ours.steps, self.rival.steps, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        """Return the same ratios for CPU seconds."""
        if self.rival is None:
            return []
        return [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(self.ours.steps, self.rival.steps, strict=True)]

    @property
    def bandwidth(self) -> float:
        return max(measured["bandwidth"] for measured in self.machine)

    @property
    def rate(self) -> float:
        return max(measured["rate"] for measured in self.machine)

    def count(self, phase: str) -> Counts:
        """Return the counts of ``decoding`` or ``learning``."""
        return Counts(**self.counts[phase])

    def reached(self, phase: str) -> float:
        """Return the fraction of the limit that our ``decoding`` or ``learning`` reaches: minimum over measured seconds."""
        spent = self.ours.phase({"decoding": "generate", "learning": "learn"}[phase])
        return self.count(phase).limit(self.bandwidth, self.rate) / spent

    def to_json(self) -> dict[str, Any]:
        found = asdict(self) | {
            "ratios": self.ratios,
            "reached": {p: self.reached(p) for p in ("decoding", "learning")},
        }
        if self.rival is not None:
            found["ratio"] = median(self.ratios)
            found["cpu_ratio"] = median(self.cpu_ratios)
            found["peak_ratio"] = self.ours.peak_mib / self.rival.peak_mib
        return found


def run_bench(
    workload: Workload,
    *,
    rival: Rival | None = None,
    repeats: int = 5,
    threads: int | None = None,
    on_step: Callable[[str, int, float], None] = lambda side, step, seconds: None,
) -> BenchResult:
    """Measure a workload: start both sides, take a warm-up step each, then alternate ``repeats`` counted steps.

    Raises:
        ConfigError: the rival cannot run, or the workload does not fit the model.
        TrainingError: a side failed, or did different work from what it was given.
    """
    if rival is not None and rival.python is not None:
        check_trl(rival.python)
    from benchmarks.step.inputs import write_work

    threads = threads or len(os.sched_getaffinity(0))
    with TemporaryDirectory(prefix="selfcorrect-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        work = write_work(workload, folder)
        tokens = sum(length for problem in work.lengths for sample in problem for length in sample)
        load = os.getloadavg()[0]
        sides = [stack.enter_context(Side("ours", our_command(folder), threads=threads))]
        if rival is not None:
            sides.append(stack.enter_context(Side(rival.name, rival.command(folder), threads=threads)))
        limits = stack.enter_context(Side("machine", machine_command(workload.dtype), threads=threads))
        machine = [limits.ask("machine")]
        steps = _alternate(sides, repeats, tokens, on_step)
        machine.append(limits.ask("machine"))
        counts = sides[0].ask("counts")
        settings = [{}, dict(rival.settings) if rival else {}]
        results = [
            SideResult(side.name, chosen, side.ready, taken, max(step["peak_mib"] for step in taken))
            for side, chosen, taken in zip(sides, settings, steps, strict=False)
        ]
        return BenchResult(asdict(workload), threads, limits.ready["device"], load, machine, counts, *results)


def _alternate(
    sides: Sequence[Side], repeats: int, tokens: int, on_step: Callable[[str, int, float], None]
) -> list[list[dict[str, Any]]]:
    steps: list[list[dict[str, Any]]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        # The order changes from pair to pair, so a drift of the machine favours neither side.
        order = range(len(sides)) if repeat % 2 else reversed(range(len(sides)))
        for i in order:
            done = sides[i].ask("step")
            if done["tokens"] != tokens:
                raise TrainingError(
                    f"the side {sides[i].name!r} sampled {done['tokens']} tokens in a step; the work has {tokens}. "
                    "Both sides must do the same work."
                )
            on_step(sides[i].name, repeat, done["seconds"])
            if repeat:
                steps[i].append(done)
    return steps
