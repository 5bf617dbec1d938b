"""Define and parse the settings of TRL's side that `search` tries."""

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
"""``dtype``: dtype of weights and optimizer; ``mixed`` has them in float32 and learns with products in bfloat16.
``continued``: the second attempt continues the first one's cache where all rows have equal lengths. ``kept_memory``: freed
memory stays in the process, as with our command line. ``rows``, any divisor of the number of episodes, is the size of the
learner's micro-batches (`per_device_train_batch_size`)."""


def default(workload: Workload) -> dict[str, Any]:
    """Return the workload's rows and dtype, and the first value of every other setting."""
    rows = min(workload.rows, workload.episodes)
    return {**{name: values[0] for name, values in CHOICES.items()}, "dtype": workload.dtype, "rows": rows}


def parse(changes: Sequence[str], workload: Workload) -> dict[str, Any]:
    """Parse settings from ``key=value``.

    Raises:
        ConfigError: a key is unknown or a value is not allowed.
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
                raise ConfigError(
                    f"--trl-set {change!r}: rows must be a number that divides {workload.episodes} episodes."
                )
        elif value not in CHOICES.get(name, ()):
            raise ConfigError(f"--trl-set {change!r}: the choices are rows=NUMBER, {_listed()}.")
        settings[name] = value
    return settings


def _listed() -> str:
    return ", ".join(f"{name}={json.dumps(value)}" for name, values in CHOICES.items() for value in values)
