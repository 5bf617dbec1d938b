"""How a run measures its models: evaluations as it samples, and looks at the development problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import StageConfig
from selfcorrect.distributed.world import World
from selfcorrect.engines import Engine, EnginePool
from selfcorrect.evaluation.against_base import against_base
from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.evaluation.evaluator import Evaluator
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.rollouter import CHUNK, TokenRollouter
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.training.stage_trainer import StageTrainer
from selfcorrect.types import Problem

SHOWN = ("n", "acc_t1", "acc_t2", "delta", "i_to_c", "c_to_i", "answer_change_rate")
"""The metrics of a look that a step's metrics hold."""


class Looks:
    """A run's looks at its development problems, the base's among them, and what its final evaluations have in common."""

    def __init__(
        self,
        config: Config,
        problems: Sequence[Problem],
        base: LanguageModel,
        script: Script,
        verifier: Verifier,
        engines: EnginePool,
        world: World,
    ) -> None:
        self.config, self.base, self.script, self.verifier = config, base, script, verifier
        self.problems = problems[: config.eval.dev_limit]
        self.engines, self.world = engines, world
        self.of_base: Sequence[StoredEpisode] = ()

    def rollouter(self, engine: Engine) -> TokenRollouter:
        """Return a rollouter for evaluations on an engine; its chunks are as large as a batch may be."""
        chunk, options = min(CHUNK, self.config.rollout.max_num_seqs), self.config.model.chat_template_kwargs
        return TokenRollouter(engine, self.base.tokenizer, chunk=chunk, options=options, world=self.world)

    def look(
        self,
        engine: Engine,
        model: LanguageModel,
        turns: int,
        *,
        sampled: bool,
        stop: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Evaluate a model on the development problems; ``stop`` is called before every batch and may raise."""
        plan = EvalPlan.of_look(self.config, turns, sampled=sampled)
        evaluator = Evaluator(
            self.rollouter(engine), self.script, self.verifier, self.problems, plan, name="dev", stop=stop
        )
        with self.engines.whole(model):
            return evaluator.run()

    def look_at_base(self, stage: StageConfig, stop: Callable[[], None]) -> None:
        """Evaluate the base's attempts, once, if the stage has looks to compare with them; ``stop`` may raise."""
        if not self.of_base and self.config.looks_in(stage):
            turns = min(2, self.config.turns_trained)
            self.of_base = self.look(
                self.engines.engine(self.base), self.base, turns, sampled=False, stop=stop
            ).episodes

    def development(self, trainer: StageTrainer) -> dict[str, Any]:
        """Return greedy metrics of a trainer's policy, also compared with the base's, and sampled ones."""
        sampled = self.config.eval.dev_sampled
        found = self.look(trainer.engine, trainer.policy, trainer.stage.turns, sampled=sampled)
        results = found.to_json()
        parts: dict[str, Any] = {"sampled": {key: results["sampled"][key] for key in SHOWN}} if sampled else {}
        if same := results.get("same_answers"):
            parts["same_answers"] = same
        compared = against_base(found.episodes, self.of_base).to_json()
        return {**{key: results[key] for key in SHOWN}, **verdict_rates(found), **parts, "base": compared}


def verdict_rates(found: Evaluation) -> dict[str, float | None]:
    """Return how often each verification says what is so, and how many second attempts were skipped, as in a step's metrics."""
    if not found.verifications:
        return {}
    skipped = sum(episode.attempts[1].skipped for episode in found.episodes) / len(found.episodes)
    return {f"rv{k}": v.rates["accuracy"].value for k, v in enumerate(found.verifications, 1)} | {"skipped_t2": skipped}
