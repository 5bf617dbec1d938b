"""The base of all settings, and the ranges and names that several groups share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from selfcorrect.config.engine_names import ENGINES
from selfcorrect.config.tracker_names import TRACKERS
from selfcorrect.documents import MAX_DEPTH, MAX_INTEGER

# Every number has a range; a test walks the schema. Upper bounds are far above what is useful, and below what would fill the
# memory or run for years before anything fails.
MAX_SEED = 2**63 - 1
MAX_PROBLEMS = 10_000_000
MAX_EPISODES = 10_000_000
"""Maximum episodes of one evaluation, problems times samples: their requests alone take gigabytes."""
MAX_TOKENS = 1_000_000
MAX_BATCH = 1_000_000
MAX_STEPS = 999_999
"""Maximum steps of a stage: checkpoints have six digits for them."""
MAX_RATE = 100.0
LARGE = 1e9
"""An upper bound of what is only compared with, or scales something."""
MAX_NAME = 50
"""Maximum characters of a stage's name, which is part of file names."""


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return free-form options unchanged, if every number in them is finite and has at most 64 bits.

    Raises:
        ValueError: a number is out of range; the message names it.
    """
    level: list[tuple[str, Any]] = list(options.items())
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} = {value} is not a finite number")
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise ValueError(f"{name} is an integer of {value.bit_length()} bits, which is out of range")
            if isinstance(value, Mapping):
                below += [(f"{name}.{key}", item) for key, item in value.items()]
            elif isinstance(value, (list, tuple)):
                below += [(name, item) for item in value]
        if not below:
            return options
        level = below
    raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep")


def checked_stage_name(name: str) -> str:
    """Return a stage's name unchanged, if files and checkpoints can bear it.

    Raises:
        ValueError: they cannot; the message has the rule.
    """
    plain = name.replace("_", "").replace("-", "").isalnum() and name[0].isalnum() and len(name) <= MAX_NAME
    if name in ("base", "previous") or not plain or "-0" in name or re.search(r"-\d{6}$", name):
        raise ValueError(
            f"a stage's name consists of at most {MAX_NAME} letters, digits, _ and -, and begins with a letter or digit. It is "
            "not 'base' or 'previous', contains no -0 and does not end in - and six digits, which would look like a checkpoint"
        )
    return name


class Settings(BaseModel):
    """The base of all settings: frozen, with unknown names as errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


EngineName = Annotated[str, AfterValidator(ENGINES.checked)]
TrackerName = Annotated[str, AfterValidator(TRACKERS.checked)]

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
StopTexts = tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...]
Options = Annotated[dict[str, Any], AfterValidator(checked_options)]
Weight = Annotated[float, Field(ge=-LARGE, le=LARGE)]
Coefficient = Annotated[float, Field(ge=0, le=LARGE)]
Decay = Annotated[float, Field(ge=0, lt=1)]
StageName = Annotated[str, AfterValidator(checked_stage_name)]
