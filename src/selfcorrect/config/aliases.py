"""Names that settings had in earlier versions: their files, and those of finished runs, stay readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "model": {"fast": "cpu_kernels", "recompute_layers": "gradient_checkpointing"},
    "rollout": {"max_rows": "max_num_seqs"},
    "optimizer": {
        "token_budget": "micro_batch_tokens",
        "updates_per_rollout": "num_iterations",
        "clip_norm": "max_grad_norm",
        "clip_ratio": "clip_epsilon",
        "importance_cap": "tis_cap",
        "final_share": "min_lr_ratio",
    },
    "stages": {"anchors": "kl_coefs", "right_pairs": "correct_pairs"},
}
"""Today's name of each setting that had another, by its group; those of "stages" belong to every stage."""

METRICS: Mapping[str, str] = {"engine_gap": "max_logprob_diff", "right_pairs": "correct_pairs"}
"""Today's name of each metric that had another."""

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
    found = {name: _renamed(group, SETTINGS.get(name, {})) for name, group in table.items()}
    stages = found.get("stages")
    if isinstance(stages, Mapping):
        found["stages"] = {name: _renamed(_stage(stage), SETTINGS["stages"]) for name, stage in stages.items()}
    return found


def metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of ``metrics.jsonl`` under today's names."""
    return {METRICS.get(name, name): value for name, value in line.items()}


def by_rule(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored by extraction rule, under today's names of the rules.

    >>> by_rule({"readings": {"lenient": "right"}})
    {'flexible': 'right'}
    """
    found = stored.get("by_rule", stored.get("readings", {}))
    return {extraction(name): value for name, value in found.items()}


def extraction(rule: str) -> str:
    """Return today's name of an extraction rule."""
    return "flexible" if rule == "lenient" else rule


def _renamed(group: Any, names: Mapping[str, str]) -> Any:
    """An old name wins over today's: it can only be there because somebody has just set it."""
    if not isinstance(group, Mapping) or not names.keys() & group.keys():
        return group
    old = {names[name]: value for name, value in group.items() if name in names}
    return {**{name: value for name, value in group.items() if name not in names}, **old}


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
