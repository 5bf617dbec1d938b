"""The digest of a configuration: what two runs must share so that one resumes the other, whichever version wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from selfcorrect.config.schema import Config

LATER: Sequence[tuple[str, str, Any]] = (
    ("task", "draft_request", None),
    ("model", "chat_template_kwargs", {}),
    ("rollout", "ahead", 0),
    ("optimizer", "kl_stop", None),
    ("optimizer", "kl_control", None),
    ("eval", "dev_limit", None),
    ("eval", "dev_sampled", True),
    ("log", "stop_if_worse", False),
)
"""Settings that came later, with their defaults: with these, older runs keep their digest."""
LATER_OF_STAGES: Mapping[str, Any] = {
    "revisions": 1,
    "max_gen_batches": 1,
    "distill_weight": 1.0,
    "verification": None,
    "replay": None,
}
"""The same, of every stage."""


def config_digest(config: Config) -> str:
    """Return a digest of the settings by `lasting_settings`, but for the last stage's length (see `longer`)."""
    settings = lasting_settings(config)
    for last in list(config.stages)[-1:]:
        settings["stages"][last].pop("steps")
    return hashlib.sha256(json.dumps(settings, sort_keys=False).encode()).hexdigest()


def lasting_settings(config: Config) -> dict[str, Any]:
    """Return all settings but ``[distributed]``, in a form that settings of later versions leave as it is.

    Two configurations that train the same thus have the same form, whichever version wrote them.
    """
    settings = config.model_dump(mode="json")
    settings["log"] = _log_of_earlier_versions(settings["log"])
    settings.pop("distributed")  # how the processes work together; their number is no setting either
    if settings["vllm"]["enforce_eager"] is None:
        settings["vllm"]["enforce_eager"] = True  # the default of earlier versions
    for group, name, default in LATER:
        if settings[group][name] == default:
            settings[group].pop(name)
    for stage, (name, default) in product(settings["stages"].values(), LATER_OF_STAGES.items()):
        if name in stage and stage[name] == default:
            stage.pop(name)
    return settings


def _log_of_earlier_versions(log: Mapping[str, Any]) -> dict[str, Any]:
    """Return the group as it was when it named two trackers, so that runs begun then keep their digest."""
    rest = {name: value for name, value in log.items() if name not in ("trackers", "project")}
    project = log["project"] if "wandb" in log["trackers"] else None
    return {**rest, "tensorboard": "tensorboard" in log["trackers"], "wandb": project}
