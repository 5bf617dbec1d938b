"""The interface between a run and the trainer of a stage: the protocol, the state, and the record of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfcorrect.config.stages import AnyStage
from selfcorrect.engines import Engine
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.learner import Learner
from selfcorrect.types import Episode


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The record of a step: its metrics, seconds by phase, sampled tokens per second, and episodes."""

    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    tokens_per_second: float
    episodes: Sequence[Episode]


@dataclass
class StageState:
    """What changes from step to step in addition to the learner's state; saved with every checkpoint.

    ``lr_factor`` multiplies the learning rate (`optimizer.kl_control`).
    """

    step: int = 0
    rewards: list[float] = field(default_factory=list)
    adaptive: float | None = None
    lr_factor: float = 1.0


class StageTrainer(Protocol):
    """A trainer of one stage of a policy, step by step."""

    name: str
    policy: LanguageModel
    learner: Learner
    state: StageState

    @property
    def stage(self) -> AnyStage: ...

    @property
    def engine(self) -> Engine: ...

    def step(self) -> StepRecord:
        """Take the next step."""
        ...

    def selection_metric(self) -> float:
        """Return the value that selects the stage's checkpoint: the highest wins."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step in addition to the learner's state, as plain values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


def completions(episodes: Sequence[Episode]) -> int:
    """Count the completions sampled for the episodes: turns of every role, and the base's first attempts."""
    return sum(not (turn.copied or turn.skipped) for episode in episodes for turn in episode.turns)


def sampled_tokens(episodes: Sequence[Episode]) -> int:
    """Count the tokens of the `completions`: nobody sampled copied, written and skipped turns."""
    return sum(turn.sampled for episode in episodes for turn in episode.turns)
