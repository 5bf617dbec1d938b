"""The types of a task's options, taken from its factory's annotations, and one message for all that do not fit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

_HOW = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def option_types(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotated types of a factory's options; none where they cannot be resolved, as in another package."""
    function = factory.__init__ if inspect.isclass(factory) else factory  # type: ignore[misc]
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
    named = [p.name for p in inspect.signature(factory).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return {name: hints[name] for name in named if name in hints}


def wrong_types(types: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Return what does not fit its type, in words. Nothing is converted: 2.5, true and "2" are no integers.

    >>> wrong_types({"digits": int}, {"digits": 2.5})
    ['digits = 2.5: Input should be a valid integer']
    """
    return [
        f"{name} = {value!r:.60}: {reason}"
        for name, value in values.items()
        if name in types and (reason := _misfit(types[name], value)) is not None
    ]


def _misfit(kind: Any, value: Any) -> str | None:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=_HOW)
    except PydanticUserError:  # another package's own type
        return None
    try:
        adapter.validate_python(value, strict=True)
        return None
    except ValidationError as error:
        found = error
    try:  # lists for tuples, texts for paths: as TOML and JSON write them
        adapter.validate_json(json.dumps(value), strict=True)
        return None
    except ValidationError as error:
        found = error
    except (TypeError, ValueError, RecursionError):
        pass
    return "; ".join(dict.fromkeys(item["msg"] for item in found.errors()))
