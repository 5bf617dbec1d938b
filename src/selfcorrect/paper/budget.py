"""What the training of a configuration spends: completions and updates."""

from __future__ import annotations

from dataclasses import dataclass

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage, StageConfig
from selfcorrect.tasks.base import model_turns


@dataclass(frozen=True, slots=True)
class Spent:
    """The completions that training samples, and the updates that it takes."""

    completions: int
    updates: int


def spent(config: Config) -> Spent:
    """Return what the training of a configuration spends, as its ``metrics.jsonl`` will count it.

    With dynamic sampling (`max_gen_batches`), attempts under a condition, and replay, the completions are the most that it may
    sample.
    With `optimizer.kl_stop`, the updates are the most that it may take.
    """
    stages = config.stages.values()
    repeats = [config.optimizer.num_iterations if isinstance(stage, ReinforcementStage) else 1 for stage in stages]
    return Spent(
        sum(completions_of_stage(config, stage) for stage in stages),
        sum(stage.steps * count for stage, count in zip(stages, repeats, strict=True)),
    )


def completions_of_stage(config: Config, stage: StageConfig) -> int:
    """Return the completions of all steps of a stage: adjacent revisions share one first attempt; feedback counts, and so do
    verifications of drafts.

    A supervised stage spends a step's completions in its sampling steps alone, half of its trainer's steps. One that alternates
    samples first attempts in every other step, and what follows them in the steps between. A pool of the base's attempts is
    sampled once.
    """
    if isinstance(stage, DemonstrationStage):
        return 0
    episodes = config.batch_size(stage)
    later = model_turns(config, stage.turns, told=stage.told) - 1
    if not isinstance(stage, ReinforcementStage):
        return stage.steps * (episodes + episodes * later)
    if stage.alternates:
        return episodes * (-(-stage.steps // 2) + stage.steps // 2 * later)
    stored = 2 * stage.replay.size if stage.replay is not None and stage.replay.pool == "base" else 0
    first, others = episodes // stage.revisions, episodes * (later + stage.verifies_drafts)
    return stored + stage.steps * stage.max_gen_batches * (first + others)
