"""How long a comparison will take, from the seconds of steps and evaluations that were measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfcorrect.config import Config, StageConfig, load_config, make_config
from selfcorrect.errors import TrainingError
from selfcorrect.paper.plan import Cell
from selfcorrect.paper.work import finish, pool
from selfcorrect.rundir import read_jsonl

PROBE_STEPS, PROBE_PROBLEMS = 3, 200


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of one sampled text, of one learnt text, and of one text of an evaluation; of a worker by itself."""

    sample: float
    learn: float
    evaluate: float

    def of(self, cell: Cell) -> float:
        """Seconds that are left to do in a cell."""
        if cell.finished:
            return 0.0
        training = sum(self.step(cell.config, cell.config.stages[name]) for name in cell.stages)
        return (cell.steps - cell.done) * training + evaluated_texts(cell.config) * self.evaluate

    def step(self, config: Config, stage: StageConfig) -> float:
        """Seconds of a step, on average over those that sample and those that update."""
        texts = config.batch_size(stage) * stage.turns
        both = texts * (self.sample + self.learn)
        return both / 2 if stage.supervised else both


def evaluated_texts(config: Config) -> float:
    """Texts of the final evaluation of one model."""
    passes = 1.0 + config.eval.sampled * config.eval.samples
    controls = 1.5 if config.eval.controls and config.turns > 1 else 0.0
    return config.eval.problems * (passes * config.turns + controls)


def measured(runs: Iterable[Path]) -> Prices | None:
    """The prices that finished runs of reinforcement learning have paid; None if there is none."""
    sampled = learnt = evaluated = sampling = learning = evaluating = 0.0
    for run in runs:
        if not (run / "summary.json").is_file() or not (run / "timings.jsonl").is_file():
            continue
        for metrics, seconds in zip(read_jsonl(run / "metrics.jsonl"), read_jsonl(run / "timings.jsonl"), strict=True):
            if metrics["updates"] and metrics["completions"]:
                sampled += metrics["completions"]
                learnt += metrics["completions"]
                sampling += seconds["generate"]
                learning += sum(seconds.get(phase, 0.0) for phase in ("reference", "learn", "update"))
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        last = list(summary["results"])[-1]  # the others may have been read from the cell before
        evaluated += evaluated_texts(load_config(run / "config.toml"))
        evaluating += summary["seconds"][f"evaluate {last}"]
    if not sampled or not evaluated:
        return None
    return Prices(sampling / sampled, learning / learnt, evaluating / evaluated)


def probed(config: Config) -> Prices:
    """The prices of a few steps of this configuration, made and thrown away."""
    settings = config.model_dump()
    for stage in settings["stages"].values():
        stage["steps"] = PROBE_STEPS
    settings["eval"] |= {"problems": min(PROBE_PROBLEMS, config.eval.problems), "dev_every": 0}
    settings["optimizer"] |= {"warmup_steps": 0}
    with tempfile.TemporaryDirectory() as folder, pool(1) as (executor, _):
        cell = Cell("probe", make_config(settings), Path(folder) / "probe", None)
        done = executor.submit(finish, cell).result()
        found = measured([cell.path])
    if found is None:
        raise TrainingError(f"a few steps of this configuration, made to measure their time, failed: {done.error}")
    return found


def seconds_left(cells: Sequence[Cell], prices: Prices, workers: int) -> float:
    """Seconds until all cells are finished, if the workers always have something to do."""
    return sum(prices.of(cell) for cell in cells) / workers
