"""Configurations from TOML and back, with `key.path=value` changes; everything wrong with one is said at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from selfcorrect.config import aliases
from selfcorrect.config.schema import STAGE_KINDS, SUPERVISED, Config
from selfcorrect.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or a configuration shipped with the package by its name; then apply ``key.path=value``.

    ``configs/NAME.toml``, where there is no such file, is the shipped one too.

    Raises:
        ConfigError: no such file or name, bad TOML, or settings that are wrong; all of them in one message.
    """
    table = _read_table(source)
    for override in overrides:
        apply_override(table, override)
    return make_config(table)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with ``key.path=value`` applied, as `load_config` does."""
    table = config.model_dump()
    for override in overrides:
        apply_override(table, override)
    return make_config(table)


def make_config(table: Mapping[str, Any]) -> Config:
    """A configuration from nested settings, or one ConfigError that lists everything wrong with them."""
    return validated(Config, aliases.current(table), "the configuration")


def validated(model: type[M], table: Mapping[str, Any], what: str) -> M:
    """Return settings from nested values.

    Raises:
        ConfigError: one list of everything that is wrong with ``what``.
    """
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = [_explain(item, model, what) + _stage_hint(item, table) for item in error.errors()]
        raise ConfigError(f"{what} is refused:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def shipped_configs() -> list[str]:
    """Names of the configurations inside the package."""
    folder = resources.files("selfcorrect.config") / "builtin"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def to_toml(config: Config) -> str:
    """The resolved configuration; unset settings are left out, since TOML has no null."""
    import tomli_w

    return tomli_w.dumps(_without_nulls(config.model_dump(mode="json")))


def as_stored(config: Config) -> Config:
    """The configuration as its own TOML file gives it back: free-form options lose their nulls and their order.

    What a run records and what it is compared with when it goes on are then the same.
    """
    return make_config(tomllib.loads(to_toml(config)))


def _without_nulls(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def _read_table(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    shipped = path.stem if path.parts == ("configs", f"{path.stem}.toml") else str(source)
    if path.is_file():
        name = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"configuration {name} cannot be read: {error}.") from None
    elif shipped in shipped_configs():
        text = (resources.files("selfcorrect.config") / "builtin" / f"{shipped}.toml").read_text(encoding="utf-8")
        name = f"shipped configuration {shipped!r}"
    else:
        close = difflib.get_close_matches(str(source), shipped_configs(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"configuration {str(source)!r} is neither a file nor one of {', '.join(shipped_configs())}.{hint}"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from None


def apply_override(table: dict[str, Any], override: str) -> None:
    """Change nested settings in place by ``key.path=value``; the value is TOML or else text.

    Raises:
        ConfigError: it is not of that form, or a group on the way is a value.
    """
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: write key.path=value, for instance --set optimizer.learning_rate=1e-4")
    *parents, last = path.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a group of settings")
    try:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = value.strip()


def _explain(item: Mapping[str, Any], model: type[BaseModel], what: str) -> str:
    path = [str(part) for part in item["loc"]]
    if len(path) > 2 and path[0] == "stages":
        path.pop(2)  # the kind of stage, which nobody writes
    where = ".".join(path) or what.removeprefix("the ")
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, [str(part) for part in item["loc"]][:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        return f"{where}: no such setting; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = (
        "" if isinstance(given, (dict, BaseModel)) or item["type"] in ("missing", "value_error") else f" = {given!r}"
    )
    return f"{where}{shown}: {message}"


def _stage_hint(item: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """A stage that lacks its settings is most likely another stage's name, misspelt in ``--set``."""
    if item["type"] != "missing" or len(item["loc"]) < 2 or item["loc"][0] != "stages":
        return ""
    name = str(item["loc"][1])
    method = table["stages"][name].get("method", "score")
    if method != "score":
        return f" by reinforcement learning with method {method!r}; supervised methods are {', '.join(SUPERVISED)}"
    close = difflib.get_close_matches(name, [str(stage) for stage in table["stages"] if stage != name], n=1)
    return f"; did you mean the stage {close[0]!r}?" if close else ""


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = model
    if len(path) > 2 and path[0] == "stages":
        current, path = STAGE_KINDS[path[2]], path[3:]
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        annotation = field.annotation if field else current
        # A group of settings, or an optional one.
        options = [annotation, *get_args(annotation)]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))
