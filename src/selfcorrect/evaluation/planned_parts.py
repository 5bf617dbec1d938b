"""What to measure: the plan of an evaluation, its parts in the order in which they run, and what they cost.

The blind drafts come before the samples: they answer whether a model corrects itself, and samples at T = 1 are the slowest part.
Every part has its own file and its own seeds, so the order changes no episode, and an evaluation that was begun in another
order resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.types import Part


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """What to measure. ``temperature`` 0 is greedy: one sample per problem, whatever ``samples`` is."""

    turns: int = 2
    seed: int = 0
    max_tokens: int = 64
    temperature: float = 0.0
    samples: int = 1
    sampled_temperature: float | None = None
    controls: bool = False
    stop: tuple[str, ...] = ()

    @classmethod
    def of_look(cls, config: Config, turns: int, *, sampled: bool) -> EvalPlan:
        """Return the plan of a run's greedy look, with the run's limits, also sampled at its temperature if asked."""
        rollout = config.rollout
        return cls(
            turns=turns,
            seed=config.seed,
            max_tokens=rollout.max_tokens,
            stop=rollout.stop,
            sampled_temperature=rollout.temperature if sampled else None,
        )

    @classmethod
    def of_run(cls, config: Config) -> EvalPlan:
        """Return the plan of a run's final evaluation of each model."""
        wanted = config.eval
        look = cls.of_look(config, config.turns, sampled=wanted.sampled)
        return replace(look, samples=wanted.samples, controls=wanted.controls and config.turns > 1)

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= 10:
            raise ConfigError(f"turns = {self.turns}: an evaluation has 1 to 10 attempts.")
        if self.samples < 1 or self.max_tokens < 1:
            raise ConfigError(f"samples = {self.samples}, max_tokens = {self.max_tokens}: both must be at least 1.")
        if self.temperature < 0 or (self.sampled_temperature is not None and self.sampled_temperature <= 0):
            raise ConfigError(
                f"temperature = {self.temperature}: it must be 0 (greedy) or more; for extra samples, above 0."
            )
        if self.controls and self.turns < 2:
            raise ConfigError("the controls compare second attempts: they need turns >= 2.")


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One part: attempts per conversation, samples per problem, and whether the first attempts are given, not sampled."""

    part: Part
    turns: int
    temperature: float
    samples: int
    given: bool = False


RUNS_BLIND = (Part.SWAP,)
"""The blind drafts of a run's own evaluations."""


def planned_parts(plan: EvalPlan, blind: Sequence[Part] = RUNS_BLIND, *, supplied: bool = False) -> list[PlannedPart]:
    """Return the parts of a plan in order; ``supplied``: the task or a pool of drafts supplies the first attempts."""
    samples = plan.samples if plan.temperature > 0 else 1  # greedy samples are all the same
    found = [PlannedPart(Part.ATTEMPTS, plan.turns, plan.temperature, samples, supplied)]
    if plan.controls:
        found += [PlannedPart(part, 2, plan.temperature, samples, given=True) for part in blind]
    if plan.sampled_temperature is not None:
        found.append(PlannedPart(Part.SAMPLED, plan.turns, plan.sampled_temperature, plan.samples, supplied))
        if plan.controls:
            found.append(PlannedPart(Part.RESAMPLE, 1, plan.sampled_temperature, plan.samples))
    return found


def cost_text(parts: Sequence[PlannedPart], replies: Sequence[int], problems: int) -> str:
    """Return what an evaluation costs: ``replies`` are the model's turns for one problem in each part.

    >>> attempts, swap = PlannedPart(Part.ATTEMPTS, 2, 0, 1), PlannedPart(Part.SWAP, 2, 0, 1, True)
    >>> cost_text([attempts, swap], [2, 1], 50)
    '50 problems, 150 replies of the model in 2 parts: attempts 100, swap 50; 1.5 times the attempts alone'
    """
    each = [f"{planned.part} {count * problems:,}" for planned, count in zip(parts, replies, strict=True)]
    factor = sum(replies) / replies[0] if replies[0] else 1.0
    return (
        f"{problems:,} problems, {sum(replies) * problems:,} replies of the model in {len(parts)} parts: {', '.join(each)}; "
        f"{factor:.3g} times the attempts alone"
    )
