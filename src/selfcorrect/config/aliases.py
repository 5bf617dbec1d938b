"""Former names of settings, metrics and rules, so that files of earlier versions and finished runs stay readable."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
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
"""The current name of each renamed setting, by group; the entries of "stages" apply to every stage."""

METRICS: Mapping[str, str] = {"engine_gap": "max_logprob_diff", "right_pairs": "correct_pairs"}
"""The current name of each renamed metric."""

REINFORCEMENT_DEFAULTS: Mapping[str, Any] = {
    "reward_weights": [],
    "bonus": 0.0,
    "discount": 0.0,
    "anchors": [],
    "baseline": "rloo",
    "offline_share": 0.0,
    "offline_apart": False,
}
"""Settings without effect that supervised stages used to store."""


def current(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under their current names.

    >>> current({"stages": {"s": {"steps": 2, "reward_weights": [], "supervised": {"method": "star"}}}})
    {'stages': {'s': {'steps': 2, 'method': 'star'}}}
    """
    found = {name: _renamed(group, SETTINGS.get(name, {})) for name, group in table.items()}
    if "log" in found:
        found["log"] = _log(found["log"])
    stages = found.get("stages")
    if isinstance(stages, Mapping):
        found["stages"] = {name: _renamed(_stage(stage), SETTINGS["stages"]) for name, stage in stages.items()}
    return found


def metrics(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of ``metrics.jsonl`` under the metrics' current names."""
    return {METRICS.get(name, name): value for name, value in line.items()}


def by_rule(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored per extraction rule, under the rules' current names.

    >>> by_rule({"readings": {"lenient": "right"}})
    {'flexible': 'right'}
    """
    found = stored.get("by_rule", stored.get("readings", {}))
    return {extraction(name): value for name, value in found.items()}


def extraction(rule: str) -> str:
    """Return the current name of an extraction rule."""
    return "flexible" if rule == "lenient" else rule


def _renamed(group: Any, names: Mapping[str, str]) -> Any:
    """Rename settings. A former name wins over the current one, because only a fresh ``--set`` can have put it next to it."""
    if not isinstance(group, Mapping) or not names.keys() & group.keys():
        return group
    old = {names[name]: value for name, value in group.items() if name in names}
    return {**{name: value for name, value in group.items() if name not in names}, **old}


def _stage(stage: Any) -> Any:
    """Flatten a stored supervised stage, which used to be a reinforcement stage with the group ``supervised``."""
    if not isinstance(stage, Mapping) or "supervised" not in stage:
        return stage
    rest = {key: value for key, value in stage.items() if key != "supervised"}
    group = stage["supervised"]
    if group is None:
        return rest
    kept = {key: value for key, value in rest.items() if REINFORCEMENT_DEFAULTS.get(key, ...) != value}
    return {**kept, **group} if isinstance(group, Mapping) else stage


def _log(group: Any) -> Any:
    """Name the trackers that ``tensorboard = true`` and ``wandb = "project"`` used to switch on.

    >>> _log({"tensorboard": False, "wandb": "sums"})
    {'trackers': ['wandb'], 'project': 'sums'}
    """
    if not isinstance(group, Mapping) or not {"tensorboard", "wandb"} & group.keys():
        return group
    named = group.get("trackers", ["tensorboard"])
    if not isinstance(named, (list, tuple)):
        return group
    found, trackers = {**group, "trackers": named}, [*named]
    if isinstance(group.get("tensorboard"), bool):
        others = [name for name in trackers if name != "tensorboard"]
        trackers = ["tensorboard", *others] if found.pop("tensorboard") else others
    if isinstance(group.get("wandb", ""), (str, NoneType)):
        project = found.pop("wandb", None)
        if project:
            trackers = [*(name for name in trackers if name != "wandb"), "wandb"]
            found["project"] = project
    return {**found, "trackers": trackers}
