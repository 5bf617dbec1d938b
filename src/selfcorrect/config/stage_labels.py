"""What stages are called where a user reads: their own names, unless a name promises attempts that the stage does not train.

The comparison's row of single-turn RL is Stage II with one attempt, and keeps its name ``score`` in settings, directories
and digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DRAFTS, ReinforcementStage
from selfcorrect.config.toml import load_config
from selfcorrect.errors import SelfCorrectError

Value = TypeVar("Value")


def stage_label(config: Config, name: str) -> str:
    """Return what a model is called: ``single-turn (score)`` for a reinforcement stage of one attempt alone, else its name."""
    stage = config.stages.get(name)
    single = isinstance(stage, ReinforcementStage) and stage.turns == 1 and not stage.verifies_drafts
    return f"single-turn ({name})" if single else name


def label_of_settings(settings: Mapping[str, Any], name: str) -> str:
    """Return the label of a model of a run whose settings are plain values, of this version or an earlier one.

    >>> label_of_settings({"stages": {"score": {"reward_weights": [1.0]}}}, "score"), label_of_settings({}, "base")
    ('single-turn (score)', 'base')
    """
    stage = settings.get("stages", {}).get(name)
    weights = stage.get("reward_weights", ()) if isinstance(stage, Mapping) else ()  # a copy may leave settings out
    single = len(weights) == 1 and stage.get("method") != DRAFTS
    return f"single-turn ({name})" if single else name


def labelled(config: Config, by_name: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is known of models by their labels."""
    return {stage_label(config, name): value for name, value in by_name.items()}


def label_in(path: Path, name: str) -> str:
    """Return the label of a model of the run in ``path``; its name in an evaluation, or where settings cannot be read."""
    try:
        return stage_label(load_config(path / "config.toml"), name) if (path / "config.toml").is_file() else name
    except SelfCorrectError:
        return name
