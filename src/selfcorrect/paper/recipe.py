"""SCoRe's configuration, taken apart so that the comparison's other rows can be built from the parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import WITHOUT_REPLAY, ReinforcementStage
from selfcorrect.config.toml import make_config
from selfcorrect.errors import ConfigError
from selfcorrect.paper.budget import spent
from selfcorrect.tasks.base import model_turns


@dataclass(frozen=True, slots=True)
class Recipe:
    """A configuration of SCoRe: Stage I, Stage II and their common settings."""

    config: Config
    first: str
    second: str

    @classmethod
    def of(cls, config: Config) -> Recipe:
        """Check that a configuration is SCoRe's, and wrap it.

        Raises:
            ConfigError: its stages differ from SCoRe's.
        """
        names, stages = list(config.stages), list(config.stages.values())
        if len(stages) != 2 or not all(isinstance(stage, ReinforcementStage) and stage.turns == 2 for stage in stages):
            raise ConfigError(
                f"the comparison starts from a SCoRe configuration, which has two stages of two turns; this one has "
                f"{', '.join(f'{name} ({stage.turns} turns)' for name, stage in config.stages.items()) or 'none'}."
            )
        one, two = cls(config, *names)._both
        if one.reward_weights[0] or one.bonus or not two.bonus or not all(two.reward_weights):
            raise ConfigError(
                f"stages {names[0]!r} and {names[1]!r} are not SCoRe's: the first must reward the second attempt alone "
                "(reward_weights = [0, 1]), the second must reward both, with a bonus above 0."
            )
        if any("base" not in turn for stage in (one, two) for turn in stage.kl_coefs):
            raise ConfigError(
                "every turn of both stages needs the anchor `base`: the comparison's rows reuse its KL coefficient."
            )
        sizes = {name: config.batch_size(stage) for name, stage in config.stages.items()}
        if len({config.rollout.batch_size, *sizes.values()}) > 1 or config.optimizer.num_iterations > 1:
            raise ConfigError(
                f"all rows of the comparison sample the same number of completions and take the same number of updates, so all "
                f"batches must have one size: here rollout.batch_size = {config.rollout.batch_size}, the stages have {sizes}, "
                f"and optimizer.num_iterations = {config.optimizer.num_iterations}. Set one size and 1 update."
            )
        dynamic = [name for name, stage in config.stages.items() if getattr(stage, "max_gen_batches", 1) > 1]
        if dynamic:
            raise ConfigError(
                f"stages.{dynamic[0]}.max_gen_batches is above 1, so SCoRe itself would sample a number of completions that "
                "nobody knows before: leave it out here, and compare dynamic sampling as a row of your own (--row)."
            )
        settings = config.model_dump()
        settings["eval"]["turns"] = config.turns
        return cls(make_config(settings), *names)

    @property
    def stage1(self) -> ReinforcementStage:
        return self._both[0]

    @property
    def stage2(self) -> ReinforcementStage:
        return self._both[1]

    @property
    def _both(self) -> tuple[ReinforcementStage, ReinforcementStage]:
        one, two = self.config.stages[self.first], self.config.stages[self.second]
        assert isinstance(one, ReinforcementStage) and isinstance(two, ReinforcementStage)  # `of` rejects others
        return one, two

    @property
    def steps(self) -> int:
        """Return the optimizer steps of every trained row."""
        return self.stage1.steps + self.stage2.steps

    @property
    def completions(self) -> int:
        """Return the completions that every trained row samples in training."""
        return spent(self.config).completions

    def replies(self, attempts: int) -> int:
        """Return the completions of an episode with so many attempts: these, and the feedback that the task's script asks for."""
        return model_turns(self.config, attempts)

    def staged(self, stages: Mapping[str, Mapping[str, Any]], **groups: Mapping[str, Any]) -> Config:
        """Return the configuration with other stages and with some settings of other groups changed."""
        settings = self.config.model_dump()
        for name, changes in groups.items():
            settings[name] = {**settings[name], **changes}
        return make_config({**settings, "stages": stages})

    def changed(self, first: Mapping[str, Any] | None = None, second: Mapping[str, Any] | None = None) -> Config:
        """Return SCoRe with some settings of its stages changed."""
        return self.staged({self.first: altered(self.stage1, first), self.second: altered(self.stage2, second)})

    def alone(self, stage: ReinforcementStage, **changes: Any) -> Config:
        """Return a configuration that spends all steps on one stage, made from one of SCoRe's."""
        return self.staged({self.second: altered(stage, {"steps": self.steps, **changes})})


def altered(stage: ReinforcementStage, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stage's settings with some of them changed, without replay where no stored first attempt could be revised."""
    settings = {**stage.model_dump(), **(changes or {})}
    if len(settings["reward_weights"]) == 1 or settings["offline_share"] or settings["method"] in WITHOUT_REPLAY:
        settings["replay"] = None
    return settings
