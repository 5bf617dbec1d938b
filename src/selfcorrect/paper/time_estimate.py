"""How long a comparison will take, from the seconds of steps and evaluations that were measured."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.config.schema import Config, StageConfig, SupervisedStage
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import TrainingError
from selfcorrect.paper.extra_evaluations import ExtraEvaluation
from selfcorrect.paper.plan import RunSpec
from selfcorrect.paper.worker_pool import finish, pool
from selfcorrect.storage.files import read_jsonl

PROBE_STEPS, PROBE_PROBLEMS = 3, 200
Planned = RunSpec | ExtraEvaluation


@dataclass(frozen=True, slots=True)
class Throughput:
    """Seconds for each text of a batch, of a worker by itself: to sample it, to learn from it in reinforcement learning
    (scores of the references included) or in a supervised update, and to sample it in an evaluation."""

    sample: float
    learn: float
    fit: float
    evaluate: float

    def of(self, cell: Planned) -> float:
        """Seconds that are left to do in a cell, or in a further evaluation."""
        if cell.finished:
            return 0.0
        if isinstance(cell, ExtraEvaluation):
            return cell.texts * self.evaluate
        training = sum(self.step(cell.config, cell.config.stages[name]) for name in cell.stages)
        return (cell.steps - cell.done) * training + evaluated_texts(cell.config) * self.evaluate

    def step(self, config: Config, stage: StageConfig) -> float:
        """Seconds of a step; in a supervised stage on average over those that sample and those that update."""
        texts = config.batch_size(stage) * stage.turns
        return texts * (
            (self.sample + self.fit) / 2 if isinstance(stage, SupervisedStage) else self.sample + self.learn
        )


def evaluated_texts(config: Config) -> float:
    """Texts of the final evaluation of one model."""
    passes = 1.0 + config.eval.sampled * config.eval.samples
    controls = 1.5 if config.eval.controls and config.turns > 1 else 0.0
    return config.eval.problems * (passes * config.turns + controls)


def measured(runs: Iterable[Path]) -> Throughput | None:
    """The prices that finished runs have paid; None if not all of them can be told.

    Of the two ways to learn, the one that no run has gone costs as much as the other.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    texts: defaultdict[str, int] = defaultdict(int)
    for run in runs:
        if (run / "summary.json").is_file():
            config = load_config(run / "config.toml")
            for kind, count, took in [*_paid_for_steps(run, config), _paid_for_evaluation(run, config)]:
                texts[kind] += count
                seconds[kind] += took
    price = {kind: seconds[kind] / count for kind, count in texts.items() if count}
    learning = price.get("learn", price.get("fit"))
    if learning is None or not {"sample", "evaluate"} <= set(price):
        return None
    return Throughput(price["sample"], learning, price.get("fit", learning), price["evaluate"])


def _paid_for_steps(run: Path, config: Config) -> Iterator[tuple[str, int, float]]:
    """What was done in each step, to how many texts, and its seconds."""
    logs = [run / "metrics.jsonl", run / "timings.jsonl"]
    if not all(log.is_file() for log in logs):
        return
    for metrics, phases in zip(*map(read_jsonl, logs), strict=True):
        stage = config.stages[metrics["stage"]]
        texts = config.batch_size(stage) * stage.turns
        if metrics["completions"]:
            yield "sample", texts, phases["generate"]
        if metrics["updates"]:
            took = sum(phases.get(phase, 0.0) for phase in ("reference", "learn", "update"))
            yield "fit" if isinstance(stage, SupervisedStage) else "learn", texts, took


def _paid_for_evaluation(run: Path, config: Config) -> tuple[str, int, float]:
    """That of the last model: the others may have been read from the cell before."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return "evaluate", round(evaluated_texts(config)), summary["seconds"][f"evaluate {list(summary['results'])[-1]}"]


def probed(config: Config) -> Throughput:
    """The prices of a few steps of this configuration, made and thrown away."""
    settings = config.model_dump()
    for stage in settings["stages"].values():
        stage["steps"] = PROBE_STEPS
    settings["eval"] |= {"problems": min(PROBE_PROBLEMS, config.eval.problems), "dev_every": 0}
    settings["optimizer"] |= {"warmup_steps": 0}
    with tempfile.TemporaryDirectory() as folder, pool(1) as (executor, _):
        cell = RunSpec("probe", make_config(settings), Path(folder) / "probe", None)
        done = executor.submit(finish, cell).result()
        found = measured([cell.path])
    if found is None:
        raise TrainingError(f"a few steps of this configuration, made to measure their time, failed: {done.error}")
    return found


def seconds_left(cells: Sequence[Planned], prices: Throughput, workers: int) -> float:
    """Seconds until all cells are finished, if the workers always have something to do."""
    return sum(prices.of(cell) for cell in cells) / workers
