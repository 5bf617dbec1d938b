"""What a run needs of the trainer of a stage, and what every trainer leaves behind after a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from selfcorrect.config.schema import ReinforcementStage, SupervisedStage
from selfcorrect.engines import Engine
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.learner import Learner
from selfcorrect.types import Episode


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step leaves behind: its metrics, its seconds by phase, sampled tokens a second, and its episodes."""

    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    tokens_per_second: float
    episodes: Sequence[Episode]


@dataclass
class StageState:
    """What changes from step to step of a stage, in addition to what the learner owns; saved with every checkpoint."""

    step: int = 0
    rewards: list[float] = field(default_factory=list)
    adaptive: float | None = None


class StageTrainer(Protocol):
    """Trains one stage of a policy, step by step."""

    name: str
    policy: LanguageModel
    learner: Learner
    state: StageState

    @property
    def stage(self) -> ReinforcementStage | SupervisedStage: ...

    @property
    def engine(self) -> Engine: ...

    def step(self) -> StepRecord:
        """Take the next step."""
        ...

    def selection_metric(self) -> float:
        """Return what decides which checkpoint of the stage is kept: the highest is."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step in addition to the learner's state, as plain values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        ...


def completions(episodes: Sequence[Episode]) -> int:
    """Count the completions of some episodes: attempts, feedback, and first attempts of the base."""
    return sum(len(episode.turns) for episode in episodes)


def sampled_tokens(episodes: Sequence[Episode]) -> int:
    """Count the tokens that were sampled for some episodes."""
    return sum(turn.sampled for episode in episodes for turn in episode.turns)
