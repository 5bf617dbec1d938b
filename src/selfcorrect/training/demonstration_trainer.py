"""A supervised stage on demonstrations as a stage of a run: a cold start, with one update per step and no rollouts.

The last model is kept, because there is no training reward to select by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Engine, EngineSettings, open_engine
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.training.demonstrations import AnyDemonstration, digest_of
from selfcorrect.training.learner import Learner
from selfcorrect.training.sft import supervised_gradient
from selfcorrect.training.stage_trainer import StageState, StepRecord
from selfcorrect.training.timing import Clock


class DemonstrationTrainer:
    """A trainer of one supervised stage on demonstrations, step by step.

    Args:
        config: the whole run's settings.
        name: the stage's name in ``config.stages``.
        policy: the model to train, in place.
        demonstrations: what the stage trains on; a pass over them has a new order each time.
        chat: the conversation of one turn, and the chat template of transcripts.
        engine: gets the new weights after every step, for looks at the development problems.
        world: the processes that share the demonstrations of a step.
    """

    stage: DemonstrationStage

    def __init__(
        self,
        config: Config,
        name: str,
        *,
        policy: LanguageModel,
        demonstrations: Sequence[AnyDemonstration],
        chat: ChatFormat,
        engine: Engine | None = None,
        world: World = ALONE,
    ) -> None:
        stage = config.stages[name]
        assert isinstance(stage, DemonstrationStage)
        self.config, self.name, self.stage, self.policy = config, name, stage, policy
        self.demonstrations, self.chat, self.world = demonstrations, chat, world
        self._engine = engine or open_engine(EngineSettings.of(config), policy)
        self.learner = Learner(policy, config.optimizer, learning_rate=stage.learning_rate, world=world)
        self.state = StageState()
        self.digest = digest_of(demonstrations)

    @property
    def engine(self) -> Engine:
        """Return the engine that samples the policy's turns."""
        return self._engine

    def step(self) -> StepRecord:
        """Take one update on a batch of demonstrations."""
        clock, rate = Clock(self.policy.device), self.learning_rate()
        with clock("learn"):
            chosen = self.batch()
            own = self.world.share(len(chosen))
            samples = [each.sample(self.chat) for each in chosen[own.start : own.stop]]
            fit = supervised_gradient(self.learner, samples, rows=len(chosen))
        with clock("update"):
            norm = self.learner.update(rate, f"stage {self.name!r}, step {self.state.step + 1}")
        self.engine.load_weights(self.policy)
        self.state.step += 1
        metrics = {
            "stage": self.name,
            "step": self.state.step,
            "loss": fit.loss,
            "known": fit.known,
            "demonstrations": len(self.demonstrations),
            "gradient_norm": norm,
            "learning_rate": rate,
            "completions": 0,
            "sampled_tokens": 0,
            "updates": 1,
        }
        return StepRecord(metrics, clock.seconds, 0.0, [])

    def batch(self) -> list[AnyDemonstration]:
        """Return this step's slice of an endless stream that shuffles the demonstrations again for every pass."""
        size, step = self.config.batch_size(self.stage), self.state.step
        places = range(step * size, (step + 1) * size)
        order = shuffled(places, len(self.demonstrations), self.config.seed, "demonstrations", self.name)
        return [self.demonstrations[i] for i in order]

    def learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        return self.learner.learning_rate(self.state.step, self.stage.steps)

    def selection_metric(self) -> float:
        """Return the step, so that the last model is kept."""
        return float(self.state.step)

    def state_dict(self) -> dict[str, Any]:
        return {"state": asdict(self.state), "step": self.state.step, "demonstrations": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it belongs to other demonstrations.
        """
        if state["demonstrations"] != self.digest:
            raise ValueError(
                f"the demonstrations of stage {self.name!r} have changed since it was written: restore their file"
            )
        self.state = StageState(**state["state"])
