"""Checkpoints of training: what one holds, which one of a stage is kept, and how training resumes from one.

    checkpoints/STAGE-000120/   a training state: a plain model directory and, in ``trainer.pt``, all that a resumed run needs;
                                of a model in shards, ``state/`` holds the shards in place of its weights
    checkpoints/STAGE/          the stage's kept model alone, once the stage is finished

`RunDirectory` makes sure that a checkpoint is complete or absent.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from selfcorrect.config.differences import differences
from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage, SupervisedStage
from selfcorrect.config.toml import make_config
from selfcorrect.distributed.background import Background
from selfcorrect.distributed.exporting import copy_settings, save_from_state
from selfcorrect.distributed.loading import WEIGHTS, in_shards, load_placed, weights_of
from selfcorrect.distributed.shard_files import STATE, read_shards, staged, write_shards
from selfcorrect.distributed.state_tree import joined_again, note, parted
from selfcorrect.distributed.world import World
from selfcorrect.errors import CheckpointError, ConfigError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.runs.shared_directory import SharedRunDirectory
from selfcorrect.storage.run_dir import MANIFEST, WAY_OUT, is_log
from selfcorrect.training.stage_trainer import StageTrainer
from selfcorrect.zoo.resolve import loading

STEP_DIGITS = 6
TRAINER_STATE = "trainer.pt"


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """The best checkpoint of a stage so far, and what made it so: mean training reward, or accuracy at a look."""

    checkpoint: str
    reward: float


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """All of a checkpoint but its weights. ``log_sizes`` are the bytes of every log when it was written."""

    config: str
    stage: str
    checkpoint: str
    kept: BestCheckpoint | None
    state: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    masters: list[Any]
    log_sizes: Mapping[str, int]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def write(self, file: Path | io.BytesIO) -> None:
        kept = None if self.kept is None else asdict(self.kept)
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        torch.save({**plain, "kept": kept}, file)

    def content(self) -> bytes:
        """Return the bytes of the file, which later steps do not change; for a state whose tensors lie elsewhere."""
        file = io.BytesIO()
        self.write(file)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> TrainingState:
        """Read a checkpoint's state; only tensors and plain values are loaded, never code.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            plain: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            kept = None if plain["kept"] is None else BestCheckpoint(**plain["kept"])
            state = cls(**{**plain, "kept": kept})
            _check_state(state)
        except Exception as error:  # the boundary to torch and pickle, whose errors have no common root
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}). {WAY_OUT}") from error
        return state

    def restore(self, trainer: StageTrainer, folder: Path) -> None:
        """Load the saved state into a new trainer whose policy has the checkpoint's weights; ``folder`` is the checkpoint."""
        try:
            parts = {"optimizer": self.optimizer, "masters": self.masters, "state": self.state}
            whole, missing = joined_again(parts, trainer.policy.placement.empty)
            if missing:
                read_shards(missing, folder / STATE)
            trainer.learner.load_state_dict(whole)
            trainer.load_state_dict(whole["state"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the state of checkpoint {self.checkpoint!r} does not fit its run ({type(error).__name__}: {error}). {WAY_OUT}"
            ) from error


class Checkpoints:
    """The checkpoints of one run, which started from ``base``."""

    def __init__(self, directory: SharedRunDirectory, config: Config, base: LanguageModel) -> None:
        self.directory, self.config, self.base = directory, config, base
        self.world = directory.world
        settings = config.distributed
        apart = settings.async_save and in_shards(config, self.world) and config.model.lora is None
        self.background = Background(self.world, timeout_s=settings.timeout_s) if apart else None
        self._being_saved: TrainingState | None = None

    def load(self, name: str, *, adapter: str | None = None, trained: bool = False) -> LanguageModel:
        """Load the model of a checkpoint onto the configured device, as shards if the run is configured so.

        With LoRA it is an adapter over the base's weights, which is named ``adapter`` and trainable if that is given. A full
        model is to be ``trained``, or frozen.
        """
        path = self.directory.verify_checkpoint(name)
        if self.config.model.lora is None:
            shards, how = in_shards(self.config, self.world), loading(self.config.model)
            return load_placed(path, self.world, shards=shards, trained=trained, **how)
        if name == "base":
            return self.base
        return self.base.with_adapter(adapter or f"kept-{name}", path, trainable=adapter is not None)

    def due(self, trainer: StageTrainer) -> bool:
        """Return whether the schedule asks for a checkpoint after the step just taken."""
        step, stage = trainer.state.step, trainer.stage
        looked = self.config.log.stop_if_worse and self.config.looks_after(stage, step)
        return looked or step % self.config.log.save_every == 0 or step == stage.length

    def save(
        self, trainer: StageTrainer, kept: BestCheckpoint | None, look: Mapping[str, Any] | None = None
    ) -> BestCheckpoint | None:
        """Write a checkpoint, remove those no longer needed, and return which one is kept now.

        Only a scheduled checkpoint can be kept: one written at an interruption must not change the outcome. ``look`` are the
        results on the development problems, which decide with ``log.stop_if_worse``.
        """
        checkpoint = f"{trainer.name}-{trainer.state.step:0{STEP_DIGITS}d}"
        value = self._value(trainer, look)
        if value is not None and (kept is None or value > kept.reward):
            kept = BestCheckpoint(checkpoint, value)
        self.finish()
        state = TrainingState(
            config=config_digest(self.config),
            stage=trainer.name,
            checkpoint=checkpoint,
            kept=kept,
            state=trainer.state_dict(),
            **trainer.learner.state_dict(),
            log_sizes=self.directory.log_sizes(),
        )
        if trainer.policy.placement.sharded and trainer.policy.adapter is None:
            self._save_shards(trainer, state)
            return kept

        def fill(folder: Path) -> None:
            trainer.policy.save(folder)
            state.write(folder / TRAINER_STATE)

        self.directory.save_checkpoint(checkpoint, fill)
        self.prune(state)
        return kept

    def _save_shards(self, trainer: StageTrainer, whole: TrainingState) -> None:
        """Write a checkpoint of which every process has its shards, at once or in the background."""
        state, shards = parted({"state": whole.state, "optimizer": whole.optimizer}, "trainer")
        weights = weights_of(trainer.policy)
        # Float32 shards of weights in bfloat16 are the masters, so they are stored once.
        masters = trainer.learner.master_weights
        names = {id(weight): name for name, weight in trainer.policy.model.named_parameters()}
        notes = [note(WEIGHTS + names[id(weight)], weight) for weight in masters.weights] if masters.wider else []
        rest = replace(whole, **state, masters=notes)
        tensors, content = weights | shards, rest.content()
        settings = self.directory.checkpoint_path("base")
        if self.background is not None:
            tensors = staged(tensors)

        def fill(folder: Path, world: World) -> list[Path]:
            written = write_shards(tensors, folder / STATE, world)
            with world.together():
                if world.first:
                    copy_settings(settings, folder)
                    (folder / TRAINER_STATE).write_bytes(content)
            return written

        def write(world: World) -> None:
            self.directory.save_together(rest.checkpoint, fill, world)

        if self.background is None:
            write(self.world)
            self.prune(rest)
        else:
            self._being_saved = rest
            self.background.start(write)

    # -- saving in the background ----------------------------------------------------------------------------------

    @property
    def saving(self) -> bool:
        """Return whether a save in the background has not been waited for."""
        return self._being_saved is not None

    def look_after(self) -> None:
        """Raise the error of a save in the background if it has ended by now; after one that succeeded, remove older states."""
        if self.background is not None and self.background.ended():
            self.finish()

    def finish(self) -> None:
        """Wait for the save in the background, if there is one, and raise its error."""
        if self.background is None or self._being_saved is None:
            return
        saved, self._being_saved = self._being_saved, None
        with self.world.together():
            self.background.wait()
        self.prune(saved)

    def close(self) -> None:
        """Let a save in the background come to its end. Until then, the state before it is there."""
        if self.background is not None:
            self.background.close()

    def _value(self, trainer: StageTrainer, look: Mapping[str, Any] | None) -> float | None:
        """Return the value of the current weights, of which the highest is kept; None if they are no candidate."""
        if not self.config.log.stop_if_worse:
            return trainer.selection_metric() if self.due(trainer) else None
        if look is None:
            return None
        return float(look["acc_t1"] if look["acc_t2"] is None else look["acc_t2"])

    def prune(self, state: TrainingState) -> None:
        """Remove every training state but the given one and the kept one.

        A resumed run calls it too: a crash may have come between writing the last state and removing its predecessor.
        """
        needed = {state.checkpoint} if state.kept is None else {state.checkpoint, state.kept.checkpoint}
        for old in self._training_states():
            if old not in needed:
                self.directory.remove_checkpoint(old)

    def export(self, stage: str, checkpoint: str) -> None:
        """Write the model of the stage's kept checkpoint to the stage's name, without the trainer's state."""
        self.finish()
        source = self.directory.verify_checkpoint(checkpoint)
        if (source / STATE).is_dir():
            how: dict[str, Any] = {
                "dtype": self.config.model.dtype,
                "trust_remote_code": self.config.model.trust_remote_code,
            }
            self.directory.save_together(stage, lambda folder, world: save_from_state(source, folder, world, **how))
            return

        def fill(folder: Path) -> None:
            for file in source.iterdir():
                if file.name not in (TRAINER_STATE, MANIFEST):
                    shutil.copy2(file, folder / file.name)

        self.directory.save_checkpoint(stage, fill)

    def restore(self, saved: TrainingState, trainer: StageTrainer) -> None:
        """Load a saved state into a new trainer whose policy has the checkpoint's weights."""
        with self.world.together():
            saved.restore(trainer, self.directory.checkpoint_path(saved.checkpoint))

    def latest(self) -> TrainingState | None:
        """Return the state of the last training checkpoint, or None before the first.

        Raises:
            CheckpointError: it was written under other settings, or is damaged.
        """
        order = list(self.config.stages)
        strange = [name for name in self._training_states() if name.rpartition("-")[0] not in order]
        if strange:
            raise CheckpointError(
                f"{self.directory.checkpoint_path(strange[0])} belongs to no stage of the run ({', '.join(order) or 'none'}): "
                "remove it, or restore config.toml."
            )
        states = self._training_states()
        if not states:
            return None
        newest = max(states, key=lambda name: (order.index(name.rpartition("-")[0]), int(name.rpartition("-")[2])))
        path = self.directory.verify_checkpoint(newest)
        saved = TrainingState.read(path / TRAINER_STATE)
        if saved.config != config_digest(self.config):
            raise CheckpointError(
                f"checkpoint {path} was written under other settings than {self.directory.path / 'config.toml'} now has: "
                "restore that file, or start a new run."
            )
        return saved

    def _training_states(self) -> list[str]:
        return [name for name in self.directory.checkpoints() if is_training_state(name)]


def _check_state(state: TrainingState) -> None:
    """Check the types of what is read before a trainer reads the rest.

    Raises:
        ValueError: one is wrong.
    """
    step, sizes = state.state["step"], state.log_sizes
    texts = [state.config, state.stage, state.checkpoint, *([state.kept.checkpoint] if state.kept else [])]
    if not all(isinstance(text, str) and "/" not in text for text in texts) or not isinstance(step, int) or step < 0:
        raise ValueError(f"stage {state.stage!r}, checkpoint {state.checkpoint!r}, step {step!r} cannot be right")
    if not all(isinstance(size, int) and size >= 0 and is_log(log) for log, size in sizes.items()):
        raise ValueError(f"log_sizes = {dict(sizes)!r:.200} cannot be right")


def is_training_state(checkpoint: str) -> bool:
    """Return whether a checkpoint's name is STAGE-STEP (a training state) rather than STAGE (a kept model)."""
    step = checkpoint.rpartition("-")[2]
    return step.isdigit() and len(step) == STEP_DIGITS


def longer(old: Config, new: Config) -> Config:
    """Return the new settings of a resumed run.

    Raises:
        ConfigError: they differ from the old ones by more than additional steps of the last stage.
    """
    if not old.stages:
        raise ConfigError("--resume can only lengthen the last stage, and this run has no stages.")
    last = list(old.stages)[-1]
    expected = old.model_dump()
    expected["stages"][last]["steps"] = new.stages[last].steps if last in new.stages else 0
    if last not in new.stages or make_config(expected) != new or new.stages[last].steps < old.stages[last].steps:
        raise ConfigError(
            f"--resume can only lengthen the last stage: --set stages.{last}.steps=N with N >= {old.stages[last].steps}. These "
            f"settings differ: {differences(old, new)}. A resumed run is the undisturbed run, bit for bit, and even settings of "
            "speed and memory change the order of sums. For other settings, start a new run."
        )
    if new.stages[last].steps == old.stages[last].steps:
        return new
    if old.log.stop_if_worse:
        raise ConfigError(
            f"log.stop_if_worse = true takes a look at the last step of stage {last!r} and keeps the best checkpoint of the "
            "looks, so a longer run would not continue this one: start a new run."
        )
    if old.rollout.ahead and isinstance(old.stages[last], ReinforcementStage):
        raise ConfigError(
            f"rollout.ahead = 1, so the last of the {old.stages[last].steps} steps of stage {last!r} sampled nothing: a longer "
            "run would have sampled the next step's episodes there, with weights that are gone. Start a new run."
        )
    if isinstance(old.stages[last], SupervisedStage):
        raise ConfigError(
            f"the rounds of the supervised stage {last!r} depend on its number of steps, so a longer run would not continue "
            "this one: start a new run."
        )
    if old.stages[last].steps % old.log.save_every:
        raise ConfigError(
            f"stage {last!r} ended after {old.stages[last].steps} steps, which is not a multiple of log.save_every = "
            f"{old.log.save_every}: a longer run would not have written, and perhaps kept, that checkpoint. Start a new run."
        )
    if old.optimizer.schedule != "constant":
        raise ConfigError(
            f"optimizer.schedule = {old.optimizer.schedule!r} depends on the number of steps, so a longer run would not "
            "continue this one: start a new run, or use schedule = 'constant'."
        )
    return new
