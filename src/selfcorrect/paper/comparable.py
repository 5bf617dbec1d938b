"""A row's configuration, checked to be comparable with SCoRe: the same problems, base and evaluation, and one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.paper.budget import completions_of_stage, spent
from selfcorrect.paper.rows import Budget, MethodRow
from selfcorrect.storage.evaluation_dir import flat

SHARED = (
    "seed",
    "task.name",
    "task.options",
    "task.data_seed",
    "task.dev_problems",
    "model.source",
    "model.seed",
    "eval.",
)
"""Settings, or groups of them, that all rows share; `eval.turns` alone may be larger."""


def row_config(row: MethodRow, config: Config, overrides: Sequence[str] = ()) -> Config:
    """Return a row's configuration, made from SCoRe's with ``key.path=value`` overrides.

    Raises:
        ConfigError: the configuration is not SCoRe's, the row cannot be built from it, answers other problems than SCoRe,
            or spends more or less in training without saying so (`MethodRow.budget`).
    """
    recipe, made = row.configured(config, overrides)
    _check_shared(row, recipe.config, made)
    if made.stages and row.budget is not Budget.OWN:
        _check_budget(row, recipe.config, made)
    return made


def _check_budget(row: MethodRow, score: Config, made: Config) -> None:
    here, there = spent(made), spent(score)
    fewer = row.budget is Budget.AT_MOST and here.completions <= there.completions
    if here.updates == there.updates and (fewer or here.completions == there.completions):
        return
    stages = [
        f"{name!r}: {stage.steps} steps of {completions_of_stage(made, stage) / stage.steps:.10g}"
        for name, stage in made.stages.items()
    ]
    raise ConfigError(
        f"row {row.key!r} samples {here.completions:,} completions and takes {here.updates:,} updates in training, SCoRe "
        f"{there.completions:,} and {there.updates:,}: all rows of a comparison have one budget. Change the steps or the batch "
        f"size of its stages ({', '.join(stages)} completions), or say that it has a budget of its own, which the report "
        "then shows: budget = 'own'."
    )


def _check_shared(row: MethodRow, score: Config, made: Config) -> None:
    theirs, own = _shared(score), _shared(made)
    differing = [
        f"{key} = {own.get(key, 'unset')} instead of {theirs.get(key, 'unset')}"
        for key in {**theirs, **own}
        if own.get(key) != theirs.get(key)
    ]
    if made.turns < score.turns:
        differing.append(f"eval.turns = {made.turns} instead of {score.turns} or more")
    if differing:
        raise ConfigError(
            f"row {row.key!r} has {', '.join(differing)}: all rows of a comparison start from one base, answer the same problems "
            "and are evaluated alike. Leave this to the comparison's configuration, where --set changes it for all rows."
        )


def _shared(config: Config) -> dict[str, Any]:
    settings = flat(config.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if key.startswith(SHARED) and key != "eval.turns"}
