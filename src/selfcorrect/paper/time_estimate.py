"""Estimate how long a comparison will take from the measured seconds of steps and evaluations."""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage, StageConfig, SupervisedStage
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import TrainingError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.planned_parts import EvalPlan, planned_parts
from selfcorrect.paper.extra_evaluations import ExtraEvaluation
from selfcorrect.paper.plan import RunSpec
from selfcorrect.paper.worker_pool import finish, pool
from selfcorrect.storage.files import read_jsonl
from selfcorrect.storage.seal import read_summary
from selfcorrect.tasks.base import model_turns

PROBE_STEPS, PROBE_PROBLEMS = 3, 200
Planned = RunSpec | ExtraEvaluation


@dataclass(frozen=True, slots=True)
class Throughput:
    """The seconds that one worker takes per completion.

    Attributes:
        sample: to sample it in training.
        learn: to learn from it in reinforcement learning, scoring by the references included.
        fit: to learn from it in a supervised update.
        evaluate: to sample it in an evaluation.
    """

    sample: float
    learn: float
    fit: float
    evaluate: float

    def of(self, spec: Planned) -> float:
        """Return the seconds left of a run or an extra evaluation."""
        if spec.finished:
            return 0.0
        if isinstance(spec, ExtraEvaluation):
            return spec.completions * self.evaluate
        training = sum(self.step(spec.config, spec.config.stages[name]) for name in spec.stages)
        return (spec.steps - spec.done) * training + evaluated_completions(spec.config) * self.evaluate

    def step(self, config: Config, stage: StageConfig) -> float:
        """Return the seconds of a step; a supervised stage averages its sampling steps and its updates."""
        completions = turns_of_step(config, stage)
        if isinstance(stage, DemonstrationStage):
            return completions * self.fit
        return completions * (
            (self.sample + self.fit) / 2 if isinstance(stage, SupervisedStage) else self.sample + self.learn
        )


def turns_of_step(config: Config, stage: StageConfig) -> int:
    """Return the most turns that the model samples in a step: attempts, feedback and verifications.

    Of two steps that alternate, one samples first attempts and the other what follows; this is their mean.
    """
    turns = config.batch_size(stage) * (model_turns(config, stage.turns, told=stage.told) + stage.verifies_drafts)
    return turns // 2 if isinstance(stage, ReinforcementStage) and stage.alternates else turns


def evaluated_completions(config: Config) -> int:
    """Return the most completions that the final evaluation of one model samples, feedback and verifications included."""
    parts = planned_parts(EvalPlan.of_run(config))
    return config.eval.problems * sum((model_turns(config, part.turns) - part.given) * part.samples for part in parts)


def measured(runs: Iterable[Path]) -> Throughput | None:
    """Return the throughput of the finished runs; None if they do not determine it.

    If no run used one of the two ways to learn, it is assumed to take as long as the other.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    completions: defaultdict[str, int] = defaultdict(int)
    for run in runs:
        if (run / "summary.json").is_file():
            config = load_config(run / "config.toml")
            for kind, count, took in [*_paid_for_steps(run, config), _paid_for_evaluation(run, config)]:
                completions[kind] += count
                seconds[kind] += took
    each = {kind: seconds[kind] / count for kind, count in completions.items() if count}
    learning = each.get("learn", each.get("fit"))
    if learning is None or not {"sample", "evaluate"} <= set(each):
        return None
    return Throughput(each["sample"], learning, each.get("fit", learning), each["evaluate"])


def _paid_for_steps(run: Path, config: Config) -> Iterator[tuple[str, int, float]]:
    """Yield, for each step, its kinds of work, the number of completions and the seconds."""
    logs = [run / "metrics.jsonl", run / "timings.jsonl"]
    if not all(log.is_file() for log in logs):
        return
    for metrics, phases in zip(*map(read_jsonl, logs), strict=True):
        stage = config.stages[metrics["stage"]]
        count = turns_of_step(config, stage)
        if metrics["completions"]:
            yield "sample", count, phases["generate"]
        if metrics["updates"]:
            took = sum(phases.get(phase, 0.0) for phase in ("reference", "learn", "update"))
            supervised = isinstance(stage, SupervisedStage | DemonstrationStage)
            yield "fit" if supervised else "learn", count, took


def _paid_for_evaluation(run: Path, config: Config) -> tuple[str, int, float]:
    """Return the evaluation of the last model; the others may come from the parent run."""
    summary = read_summary(run)
    return (
        "evaluate",
        evaluated_completions(config),
        summary["seconds"][f"evaluate {list(summary['results'])[-1]}"],
    )


class Probe(RunSpec):
    """A run that is thrown away, so what it warns of is no news."""

    def finish(self, callbacks: Callbacks) -> None:
        log = logging.getLogger("selfcorrect")
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            RunSpec.finish(self, callbacks)
        finally:
            log.setLevel(before)


def probed(config: Config, processes: int = 1) -> Throughput:
    """Measure the throughput in a few steps of this configuration, which are thrown away."""
    settings = config.model_dump()
    for stage in settings["stages"].values():
        stage["steps"] = PROBE_STEPS
    settings["eval"] |= {"problems": min(PROBE_PROBLEMS, config.eval.problems), "dev_every": 0}
    settings["log"] |= {"stop_if_worse": False}
    settings["optimizer"] |= {"warmup_steps": 0}
    with tempfile.TemporaryDirectory() as folder, pool(1, processes) as (executor, _):
        spec = Probe("probe", make_config(settings), Path(folder) / "probe", None)
        done = executor.submit(finish, spec).result()
        found = measured([spec.path])
    if found is None:
        raise TrainingError(f"timing a few steps of this configuration failed: {done.error}")
    return found


def seconds_left(specs: Sequence[Planned], throughput: Throughput, workers: int) -> float:
    """Return the seconds until everything is finished, if no worker ever waits."""
    return sum(throughput.of(spec) for spec in specs) / workers
