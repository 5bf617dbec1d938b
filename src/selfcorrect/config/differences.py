"""Name the settings in which two configurations differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selfcorrect.config.schema import Config

SHOWN = 8
"""The most differences that a message lists."""
UNSET = "unset"


def differences(old: Config, new: Config) -> str:
    """Return the settings that differ, as ``name: old there, new requested``; at most `SHOWN`, then their number."""
    there, asked = (dict(_leaves("", config.model_dump(mode="json"))) for config in (old, new))
    found = [
        f"{name}: {there.get(name, UNSET)!r} there, {asked.get(name, UNSET)!r} requested"
        for name in {**there, **asked}
        if there.get(name, UNSET) != asked.get(name, UNSET)
    ]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join([*found[:SHOWN], *more])


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}".removeprefix("."), item)
    else:
        yield path, UNSET if value is None else value
