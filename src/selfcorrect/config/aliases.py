"""Names that settings had in earlier versions: their files, and those of finished runs, stay readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REINFORCEMENT_DEFAULTS: Mapping[str, Any] = {
    "reward_weights": [],
    "bonus": 0.0,
    "discount": 0.0,
    "anchors": [],
    "baseline": "rloo",
    "offline_share": 0.0,
    "offline_apart": False,
}
"""What the stored form of a supervised stage used to hold, without a meaning."""


def current(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under today's names.

    >>> current({"stages": {"s": {"steps": 2, "reward_weights": [], "supervised": {"method": "star"}}}})
    {'stages': {'s': {'steps': 2, 'method': 'star'}}}
    """
    stages = table.get("stages")
    if not isinstance(stages, Mapping):
        return dict(table)
    return {**table, "stages": {name: _stage(stage) for name, stage in stages.items()}}


def _stage(stage: Any) -> Any:
    """A supervised stage was a stage of reinforcement learning with a group of its own."""
    if not isinstance(stage, Mapping) or "supervised" not in stage:
        return stage
    rest = {key: value for key, value in stage.items() if key != "supervised"}
    group = stage["supervised"]
    if group is None:
        return rest
    kept = {key: value for key, value in rest.items() if REINFORCEMENT_DEFAULTS.get(key, ...) != value}
    return {**kept, **group} if isinstance(group, Mapping) else stage
