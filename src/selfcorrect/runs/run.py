"""A whole run in its directory: base, stages, checkpoints, evaluations, summary; and its exact resumption."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stage_labels import stage_label
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage, StageConfig, SupervisedStage
from selfcorrect.config.toml import apply_override, as_stored, load_config, make_config, timeout_of, to_toml
from selfcorrect.distributed.exporting import save_from_shards
from selfcorrect.distributed.loading import in_shards, load_placed
from selfcorrect.distributed.world import World, given_or_joined
from selfcorrect.engines import EnginePool, EngineSettings, check_engine
from selfcorrect.errors import InterruptedRun
from selfcorrect.evaluation.advice import IN_RUN, REHEARSAL
from selfcorrect.evaluation.against_base import below_base
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.evaluation.evaluator import Evaluator
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.extras import require
from selfcorrect.models.card import ModelCard
from selfcorrect.models.language_model import LanguageModel, modes_kept
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.checkpoints import BestCheckpoint, Checkpoints, TrainingState, longer
from selfcorrect.runs.checks import RunProblems, check_run, check_sampling, checked_base
from selfcorrect.runs.health import HealthMonitor
from selfcorrect.runs.loggers import MetricLogger
from selfcorrect.runs.looks import Looks
from selfcorrect.runs.shared_directory import SharedRunDirectory
from selfcorrect.runtime import CoreShare
from selfcorrect.storage.consent import code_of_config, flags, names_of_config, require_consent
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.storage.evaluation_dir import flat
from selfcorrect.storage.files import json_page, nothing_left, read_jsonl
from selfcorrect.storage.provenance import data_digest, provenance
from selfcorrect.storage.run_dir import check_free, read_metrics, spent_in
from selfcorrect.storage.seal import check_seal, read_summary, sealed
from selfcorrect.tasks import Task, get_task
from selfcorrect.tasks.base import draft_request_of, origin_of, script_of
from selfcorrect.tasks.verifier import Verifier, default_workers
from selfcorrect.training.ahead_trainer import AheadTrainer
from selfcorrect.training.alternating_trainer import AlternatingTrainer
from selfcorrect.training.demonstration_trainer import DemonstrationTrainer
from selfcorrect.training.distilling_trainer import DistillingTrainer
from selfcorrect.training.sft_trainer import SFTTrainer
from selfcorrect.training.stage_trainer import StageTrainer, StepRecord
from selfcorrect.training.trainer import Trainer
from selfcorrect.zoo.resolve import LIVE, loading, settled

SUMMARY_SCHEMA = 1
log = logging.getLogger("selfcorrect")


@dataclass(frozen=True, eq=False)
class Summary:
    """The results of a finished run.

    Attributes:
        path: the run's directory.
        evaluations: by name: ``base`` and the stages.
        json: ``summary.json`` as written.
        curves: where each tracker has the run's curves: an address, or the command that shows them.
    """

    path: Path
    evaluations: Mapping[str, Evaluation]
    json: Mapping[str, Any]
    curves: tuple[str, ...] = ()

    def to_pandas(self) -> Any:
        """Return the paper's table: a row for the base and one for each stage."""
        pandas = require("pandas", extra="data", why="Summary.to_pandas()")
        return pandas.concat([e.to_pandas() for e in self.evaluations.values()], keys=list(self.evaluations)).droplevel(
            1
        )


def train(
    config: Config | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    model: Any = None,
    tokenizer: Any = None,
    task: Task | None = None,
    callbacks: Callbacks | None = None,
    world: World | None = None,
) -> Summary:
    """Train and evaluate as configured, into the new directory ``out``.

    Processes that a launcher such as torchrun started all call it. They share the work, and the first one writes.

    Args:
        config: settings, the name of a built-in config, a TOML file or nested settings.
        model: a loaded Hugging Face model to start from instead of ``config.model.source``; it is not changed.
        tokenizer: its tokenizer.
        task: a `Task` object to use instead of ``config.task.name``.
        world: the processes that share the work; unset = those that a launcher started, else this one alone.

    Raises:
        SelfCorrectError: an input is invalid; all inputs are checked before any work.
    """
    if not isinstance(config, Config):
        config = make_config(config) if isinstance(config, Mapping) else load_config(config)
    given, callbacks = as_stored(config), callbacks or Callbacks()
    with ExitStack() as stack:
        world = stack.enter_context(given_or_joined(world, timeout_s=given.distributed.timeout_s))
        if world.first:
            stack.enter_context(nothing_left(Path(out)))
        config = world.from_first(lambda: settled(given))
        with world.together():
            check_engine(EngineSettings.of(config), processes=world.size)
        world.from_first(lambda: check_free(Path(out)))
        with world.together():
            task = task or get_task(config.task.name, config.task.options)
            problems = RunProblems.of(config, task)
        if model is not None:
            with modes_kept(model):
                base = LanguageModel(model, tokenizer, cpu_kernels=False).frozen_copy(
                    cpu_kernels=config.model.cpu_kernels
                )
            longest = check_run(config, task, ModelCard.of(base), problems)
            config = config.model_copy(update={"model": config.model.model_copy(update={"source": LIVE})})
        else:
            base, longest = checked_base(config, task, problems, callbacks.on_progress, world)
        with world.together():
            check_sampling(config, base)
        directory = SharedRunDirectory.create(Path(out), to_toml(config), world)
        stack.callback(directory.close)
        saved = save_base(directory, base)
        if model is not None:  # with the dtype and on the device of the settings, as in a resumed run
            base = load_placed(saved, world, shards=in_shards(config, world), **loading(config.model))
        return _Run(directory, config, task, base, problems, longest, callbacks, stack, world).go()


def resume(
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    task: Task | None = None,
    callbacks: Callbacks | None = None,
    allow_code: Collection[str] = (),
    world: World | None = None,
) -> Summary:
    """Resume a run from its last checkpoint; finished parts are not repeated.

    ``overrides`` may only make the last stage longer (``stages.NAME.steps=N``), or repeat a setting. Code that the run's
    settings name (a verifier, a method) is imported only if ``allow_code`` lists it, ``overrides`` repeat the setting, or
    ``task`` replaces it; and only after the digests were compared. On a CPU, a run that was killed and
    resumed ends with the same bits in weights, optimizer, metrics and episodes as one that was not.
    """
    path, callbacks = Path(out), callbacks or Callbacks()
    with ExitStack() as stack:
        world = stack.enter_context(given_or_joined(world, timeout_s=timeout_of(path / "config.toml")))
        directory = SharedRunDirectory.open(path, world)
        stack.callback(directory.close)
        with world.together():
            config = load_config(path / "config.toml")
            check_seal(path)
            _require_consent(path, config, overrides, task, allow_code)
        if directory.has_checkpoint("base"):
            directory.verify_checkpoint("base")
        with world.together():
            changed = load_config(path / "config.toml", overrides)
            longest_run = config if changed == config else longer(config, changed)
        if longest_run != config:
            config = longest_run
            directory.forget_stage(list(config.stages)[-1])
            directory.write("config.toml", to_toml(config))
        with world.together():
            check_engine(EngineSettings.of(config), processes=world.size)
            task = task or get_task(config.task.name, config.task.options)
            problems = RunProblems.of(config, task)
        if directory.has_checkpoint("base"):
            saved = directory.verify_checkpoint("base")
            base = load_placed(saved, world, shards=in_shards(config, world), **loading(config.model))
            longest = check_run(config, task, ModelCard.of(base), problems)
        else:  # killed before anything was saved
            base, longest = checked_base(config, task, problems, callbacks.on_progress, world)
            save_base(directory, base)
        return _Run(directory, config, task, base, problems, longest, callbacks, stack, world).go()


def save_base(directory: SharedRunDirectory, base: LanguageModel) -> Path:
    """Save the model that the run starts from."""
    if base.placement.sharded:
        return directory.save_together("base", lambda folder, world: save_from_shards(base, folder, world))
    return directory.save_checkpoint("base", base.save)


def _require_consent(
    path: Path, config: Config, overrides: Sequence[str], task: Task | None, allow_code: Collection[str]
) -> None:
    given: dict[str, Any] = {}
    for override in overrides:
        apply_override(given, override)
    repeated = flat(given)  # `longer` makes sure that they are the stored ones
    named = [code for code in code_of_config(config) if code[0] not in repeated]
    require_consent(path, [code for code in named if task is None or not code[0].startswith("task.")], allow_code)


class _Run:
    """A run in progress and all its parts."""

    def __init__(
        self,
        directory: SharedRunDirectory,
        config: Config,
        task: Task,
        base: LanguageModel,
        problems: RunProblems,
        longest: int,
        callbacks: Callbacks,
        stack: ExitStack,
        world: World,
    ) -> None:
        self.directory, self.config, self.task, self.base = directory, config, task, base
        self.problems, self.world = problems, world
        self.callbacks = callbacks if world.first else Callbacks(should_stop=callbacks.should_stop)
        self.engines = EnginePool(EngineSettings.of(config, max_length=longest))
        stack.callback(self.engines.close)
        self.base.model.requires_grad_(False)
        self.base.source = str(directory.checkpoint_path("base").resolve())
        self.script = script_of(config, task)
        settings = config.task
        self.verifier = stack.enter_context(
            Verifier(
                task,
                time_limit_s=settings.time_limit_s,
                failure_limit=settings.failure_limit,
                workers=default_workers(world.local_size),
            )
        )
        self.checkpoints = Checkpoints(directory, config, base)
        stack.callback(self.checkpoints.close)
        self.seconds: dict[str, float] = {}
        self.health = HealthMonitor(config)
        self.cores = CoreShare.of(base.device.type if world.first else "")
        self.looks = Looks(config, problems.dev, base, self.script, self.verifier, self.engines, world)
        self.logger = MetricLogger.open(directory.path, config, active=world.first)
        stack.callback(self.logger.close)

    def go(self) -> Summary:
        """Evaluate the base, train and evaluate every stage from where it stands, and write the summary."""
        saved = self.checkpoints.latest()
        if saved:
            self.checkpoints.prune(saved)
        self.directory.cut_logs(saved.log_sizes if saved else {})
        taken = [*read_metrics(self.directory.path / "metrics.jsonl")]
        self.logger.start(taken)
        self.health.look_back(taken)
        evaluations = {"base": self.evaluate("base", self.base)}
        for name in self.config.stages:
            self.train_stage(name)
            evaluations[name] = self.evaluate(name, self.checkpoints.load(name))
        return self.summarise(evaluations)

    # -- training --------------------------------------------------------------------------------------------------

    def train_stage(self, name: str) -> None:
        """Train the stage to its end and export its kept model, unless that is done already."""
        saved = self.checkpoints.latest()
        names = list(self.config.stages)
        if saved and names.index(saved.stage) > names.index(name):
            return
        stage = self.config.stages[name]
        started = saved if saved and saved.stage == name else None
        if started and started.step == self.last_step(name) and self.directory.has_checkpoint(name):
            return
        self.check_stop()
        self.looks.look_at_base(stage, self.check_stop)
        trainer = self.trainer(name, started)
        kept = started.kept if started else self.kept_at_start(trainer)
        begin = time.perf_counter()
        stop = self.world.any(self.callbacks.should_stop())
        if stop:  # asked for while the stage was prepared
            self.checkpoints.finish()
            self.interrupted(stop)
        while trainer.state.step < self.last_step(name):
            record = trainer.step()
            self.checkpoints.look_after()
            look = self.log_step(trainer, record)
            due = self.checkpoints.due(trainer)
            if due:
                kept = self.checkpoints.save(trainer, kept, look)
            stop = self.world.any(self.callbacks.should_stop())
            if stop:
                if not due:
                    self.checkpoints.save(trainer, kept)
                self.checkpoints.finish()
                self.interrupted(stop)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        assert kept is not None
        if self.world.first:
            self.health.end(name)
        if name in self.health.stopped:
            log.warning(
                f"{self.stop_text(name)}: kept is {kept.checkpoint}. The run continues with the stage's evaluation"
            )
        self.checkpoints.export(name, kept.checkpoint)

    def last_step(self, name: str) -> int:
        """Return the stage's last step: the configured one, or that at which it was found worse than the base."""
        return self.health.stopped.get(name, self.config.stages[name].length)

    def stop_text(self, name: str) -> str:
        step, steps = self.health.stopped[name], self.config.stages[name].length
        return f"log.stop_if_worse ended {name} at step {step} of {steps}, worse than the base"

    def kept_at_start(self, trainer: StageTrainer) -> BestCheckpoint | None:
        """Save and return the model that the stage begins with, if it is kept when all looks are worse."""
        if not self.config.log.stop_if_worse:
            return None
        return self.checkpoints.save(trainer, None, self.looks.development(trainer))

    def trainer(self, name: str, saved: TrainingState | None) -> StageTrainer:
        """Return a trainer at the start of a stage, or in the state of a checkpoint."""
        stage = self.config.stages[name]
        start = saved.checkpoint if saved else self.start_of(name, stage)
        trainer = self.new_trainer(name, stage, self.policy(start))
        if saved:
            self.checkpoints.restore(saved, trainer)
        return trainer

    def new_trainer(self, name: str, stage: StageConfig, policy: LanguageModel) -> StageTrainer:
        """Return a trainer at the start of a stage, for a policy that has its weights."""
        options = self.config.model.chat_template_kwargs
        asked = draft_request_of(self.config, self.task)
        chat = ChatFormat(policy.tokenizer, self.script.with_turns(stage.turns), options, asked)
        if isinstance(stage, DemonstrationStage):
            return DemonstrationTrainer(
                self.config,
                name,
                policy=policy,
                demonstrations=self.problems.demonstrations[name],
                chat=chat,
                engine=self.engines.engine(policy),
                world=self.world,
            )
        references = {"base": self.base}
        for anchor in {*stage.references} - {"base"}:
            references[anchor] = self.checkpoints.load(anchor)
            if self.config.model.lora is None:
                references[anchor].model.requires_grad_(False)
        return self.kind_of_trainer(stage)(
            self.config,
            name,
            policy=policy,
            references=references,
            problems=self.problems.train,
            chat=chat,
            verifier=self.verifier,
            engine=self.engines.engine(policy),
            world=self.world,
        )

    def kind_of_trainer(self, stage: SupervisedStage | ReinforcementStage) -> type[SFTTrainer | Trainer]:
        """Return the class of a stage's trainer."""
        if isinstance(stage, SupervisedStage):
            return SFTTrainer
        if stage.alternates:
            return AlternatingTrainer
        if stage.distills:
            return DistillingTrainer
        return AheadTrainer if self.config.rollout.ahead else Trainer

    def start_of(self, name: str, stage: StageConfig) -> str:
        names = ["base", *self.config.stages]
        return names[names.index(name) - 1] if stage.init == "previous" else stage.init

    def policy(self, start: str) -> LanguageModel:
        """Return the model to train, with the weights of the checkpoint ``start``."""
        lora = self.config.model.lora
        if lora is not None and start == "base":
            policy = self.base.with_adapter("policy", lora, seed=self.config.seed)
        else:
            policy = self.checkpoints.load(start, adapter="policy", trained=True)
        if self.config.model.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        return policy

    def log_step(self, trainer: StageTrainer, record: StepRecord) -> dict[str, Any] | None:
        """Log a step's metrics and timings, and at intervals its episodes; return the look at development problems, if any."""
        metrics, step = dict(record.metrics), trainer.state.step
        settings = self.config.log
        if self.config.looks_after(trainer.stage, step):
            metrics["dev"] = self.looks.development(trainer)
        self.health.look(metrics, aloud=self.world.first)
        self.cores.warn()
        self.directory.append("metrics.jsonl", [metrics])
        timing = {"stage": trainer.name, "step": step, **record.seconds, "tokens_per_second": record.tokens_per_second}
        self.directory.append("timings.jsonl", [timing])
        if settings.episodes_every and step % settings.episodes_every == 0:
            records = [
                StoredEpisode.of(e, stage=trainer.name, step=step).to_json()
                for e in record.episodes[: settings.episodes]
            ]
            self.directory.append(f"episodes/train-{trainer.name}.jsonl", records)
        self.logger.add(metrics)
        if self.callbacks.on_step:
            self.callbacks.on_step(replace(record, metrics=metrics))
        return metrics.get("dev")

    # -- evaluation and summary ------------------------------------------------------------------------------------

    def evaluate(self, name: str, model: LanguageModel) -> Evaluation:
        """Evaluate a model on the test problems; its episodes are kept under ``episodes/``."""
        begin = time.perf_counter()
        evaluator = Evaluator(
            self.looks.rollouter(self.engines.engine(model)),
            self.script,
            self.verifier,
            self.problems.evaluated,
            EvalPlan.of_run(self.config),
            name=f"eval-{name}",
            stage=name,
            title=f"eval-{stage_label(self.config, name)}",
            step=0 if name == "base" else self.last_step(name),
            folder=self.directory.path / "episodes",
            progress=self.callbacks.on_progress,
            left=self.callbacks.on_left,
            stop=self.check_stop,
            world=self.world,
            warns_as=IN_RUN if name == "base" and len(self.problems.evaluated) >= REHEARSAL else None,
            supply=self.problems.supply,
        )
        with self.engines.whole(model):
            evaluation = evaluator.run()
        self.cores.warn()
        self.seconds[f"evaluate {name}"] = time.perf_counter() - begin
        if self.callbacks.on_eval:
            self.callbacks.on_eval(name, evaluation)
        return evaluation

    def check_stop(self) -> None:
        self.cores.warn()
        stop = self.world.any(self.callbacks.should_stop())
        if stop:
            self.interrupted(stop)

    def interrupted(self, stop: int) -> None:
        path = self.directory.path
        raise InterruptedRun(
            f"stopped; everything is saved. Resume with: selfcorrect train --resume {quote(str(path))}"
            + flags(names_of_config(self.config)),
            signal=int(stop),
        )

    def summarise(self, evaluations: Mapping[str, Evaluation]) -> Summary:
        """Write ``summary.json``; a finished run keeps its own, which records where and how it was made."""
        if self.directory.has("summary.json"):
            return Summary(self.directory.path, evaluations, read_summary(self.directory.path), self.logger.curves)
        digests = {name: self.checkpoints.load(name).digest() for name in evaluations}
        log = self.directory.path / "timings.jsonl"
        timings = [_seconds(line) for line in read_jsonl(log)] if log.exists() else []
        phases = {phase for line in timings for phase in line}
        below, stopped = below_base(evaluations), self.health.stopped
        tokens = spent_in(read_metrics(self.directory.path / "metrics.jsonl"), "sampled_tokens")
        summary = {
            **({"below_base": below} if below else {}),
            **({"stopped": {name: self.stop_text(name) for name in stopped}} if stopped else {}),
            "schema": SUMMARY_SCHEMA,
            "provenance": provenance(
                task={"name": self.task.name, "version": self.task.version, "options": self.config.task.options},
                data_digest=data_digest(self.problems.evaluated),
                **origin_of(self.task),
                model_digests=digests,
                seed=self.config.seed,
            ),
            "seconds": {
                **{name: round(seconds, 3) for name, seconds in self.seconds.items()},
                "steps": {phase: round(sum(line.get(phase, 0.0) for line in timings), 3) for phase in sorted(phases)},
            },
            "results": {name: evaluation.to_json() for name, evaluation in evaluations.items()},
            "script": self.script.to_json(),
            "train_problems": len(self.problems.train),
            **({} if tokens is None else {"sampled_tokens": tokens}),
        }
        summary = self.world.from_first(lambda: sealed(self.directory.path, summary))
        self.directory.write("summary.json", json_page(summary))
        return Summary(self.directory.path, evaluations, summary, self.logger.curves)


def _seconds(timing: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in timing.items() if isinstance(value, float) and name != "tokens_per_second"}
