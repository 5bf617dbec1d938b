"""What may be tuned on TRL's side; `search` tries it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.step.workloads import Workload
from selfcorrect.errors import ConfigError

CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "mixed", "bfloat16"),
    "attention": ("sdpa", "eager"),
    "continued": (True, False),
    "kept_memory": (False, True),
}
"""``dtype``: of weights and optimizer; ``mixed`` has them in float32 and learns with products in bfloat16. ``continued``: the
second attempt goes on from the first one's cache where all rows are equally long. ``kept_memory``: what is freed stays in the
process, as our command line has it. ``rows``, any number that divides the episodes, is
the size of the learner's micro-batches (`per_device_train_batch_size`)."""


def default(workload: Workload) -> dict[str, Any]:
    """The workload's rows and number format, and the first value of all others."""
    rows = min(workload.rows, workload.episodes)
    return {**{name: values[0] for name, values in CHOICES.items()}, "dtype": workload.dtype, "rows": rows}


def parse(changes: Sequence[str], workload: Workload) -> dict[str, Any]:
    """Settings from ``key=value``.

    Raises:
        ConfigError: an unknown key or a value that it cannot have.
    """
    settings = default(workload)
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name == "rows":
            if not isinstance(value, int) or value < 1 or workload.episodes % value:
                raise ConfigError(f"--trl-set {change!r}: rows is a number that divides {workload.episodes} episodes.")
        elif value not in CHOICES.get(name, ()):
            raise ConfigError(f"--trl-set {change!r}: there are rows=NUMBER, {_listed()}.")
        settings[name] = value
    return settings


def _listed() -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, values in CHOICES.items() for value in values)
