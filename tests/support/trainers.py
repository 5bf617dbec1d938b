"""Make a trainer of one stage over tiny models, and its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import make_config
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import DRAFT_REQUEST, Script, UserTurn
from selfcorrect.training.ahead_trainer import AheadTrainer
from selfcorrect.training.alternating_trainer import AlternatingTrainer
from selfcorrect.training.distilling_trainer import DistillingTrainer
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Problem
from selfcorrect.zoo.addition import make_tokenizer
from support.episodes import SCRIPT, problem
from support.models import tiny_model
from support.verifiers import FunctionVerifier

STAGE = {"steps": 4, "reward_weights": [1, 1], "kl_coefs": [{"base": 0.1}, {"base": 0.1}]}


def settings(*, stage: Mapping[str, Any] | None = None, earlier: Sequence[str] = (), **groups: Any) -> Config:
    """Return a configuration whose last stage is ``stage``: 8 episodes per step, 2 groups of 4, one big micro-batch."""
    return make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4, **groups.pop("rollout", {})},
            "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1e9, **groups.pop("optimizer", {})},
            "task": {"train_problems": 16, **groups.pop("task", {})},
            "stages": {**dict.fromkeys(earlier, STAGE), "stage": {**STAGE, **(stage or {})}},
            **groups,
        }
    )


def make_trainer(
    config: Config,
    *,
    policy: Any = None,
    base: Any = None,
    earlier: Mapping[str, LanguageModel] | None = None,
    problems: Sequence[Problem] | None = None,
    verifier: Any = None,
    engine: Any = None,
    world: World = ALONE,
    script: Script = SCRIPT,
    asked: UserTurn = DRAFT_REQUEST,
) -> Trainer:
    stage = config.stages["stage"]
    kind = AheadTrainer if config.rollout.ahead else Trainer
    if isinstance(stage, ReinforcementStage) and (stage.alternates or stage.distills):
        kind = AlternatingTrainer if stage.alternates else DistillingTrainer
    return kind(
        config,
        "stage",
        policy=policy or tiny_model(0),
        references={"base": base or tiny_model(1), **(earlier or {})},
        problems=problems or [problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
        chat=ChatFormat(make_tokenizer(), script.with_turns(stage.turns), asked_of_drafts=asked),
        verifier=verifier or FunctionVerifier(lambda problem, text: len(text) % 2 == 1),
        engine=engine,
        world=world,
    )
