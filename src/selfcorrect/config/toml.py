"""Reading and writing configurations as TOML, with `key.path=value` changes. One error lists every problem."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from selfcorrect.config import aliases
from selfcorrect.config.schema import Config, DistributedConfig
from selfcorrect.config.stages import STAGE_KINDS, SUPERVISED
from selfcorrect.documents import MAX_DEPTH, is_there, is_unicode, parsed_toml, read_regular
from selfcorrect.errors import ConfigError, DataError, SelfCorrectError

MAX_CONFIG = 2**20
"""Maximum bytes of a configuration file."""

M = TypeVar("M", bound=BaseModel)


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file, or a built-in config by its name, then apply ``key.path=value`` overrides.

    ``configs/NAME.toml`` also means the built-in config NAME if there is no such file.

    Raises:
        ConfigError: unknown file or name, invalid TOML, a file without any setting, or invalid settings, all of which one
            message lists.
    """
    table = _read_table(source)
    for override in overrides:
        apply_override(table, override)
    return make_config(table)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with ``key.path=value`` overrides applied, as `load_config` does."""
    table = config.model_dump()
    for override in overrides:
        apply_override(table, override)
    return make_config(table)


def make_config(table: Mapping[str, Any]) -> Config:
    """Return a configuration from nested settings, or raise one ConfigError that lists every problem."""
    return validated(Config, aliases.current(table), "the configuration")


def validated(model: type[M], table: Mapping[str, Any], what: str) -> M:
    """Return settings from nested values.

    Raises:
        ConfigError: one message that lists every problem of ``what``.
    """
    unwritable = list(_not_unicode("", table))
    if unwritable:
        raise ConfigError(f"{what} is rejected:\n" + "\n".join(f"  - {line}" for line in unwritable))
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = [_explain(item, model, what) + _stage_hint(item, table) for item in error.errors()]
        raise ConfigError(f"{what} is rejected:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _not_unicode(name: str, value: Any) -> Iterator[str]:
    """Yield a line for each text that no file of settings can hold; what is nested too deeply is rejected elsewhere."""
    level: list[tuple[str, Any]] = [(name, value)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, item in level:
            if isinstance(item, str) and not is_unicode(item):
                yield (
                    f"{path} = {item!r} is not Unicode text, so no file can hold it: write it in UTF-8, and rename a file or a "
                    "directory whose name is not"
                )
            elif isinstance(item, Mapping):
                below += [(f"{path}.{key}".removeprefix("."), inner) for key, inner in item.items()]
            elif isinstance(item, list | tuple):
                below += [(path, inner) for inner in item]
        level = below


def timeout_of(source: str | Path, overrides: Sequence[str] = ()) -> int:
    """Return ``distributed.timeout_s`` of a configuration; the default where it cannot be read.

    Processes need it to find each other, before they can reject a configuration together.
    """
    try:
        return load_config(source, overrides).distributed.timeout_s
    except (SelfCorrectError, OSError):
        return DistributedConfig().timeout_s


def builtin_configs() -> list[str]:
    """Return the names of the built-in configs."""
    folder = resources.files("selfcorrect.config") / "builtin"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def to_toml(config: Config) -> str:
    """Return the resolved configuration as TOML, without unset settings, because TOML has no null."""
    import tomli_w

    return tomli_w.dumps(_without_nulls(config.model_dump(mode="json")))


def as_stored(config: Config) -> Config:
    """Return the configuration after a round trip through TOML, which drops nulls and the order of free-form options.

    A resumed run compares its configuration with the recorded one, so both must have this form.
    """
    return make_config(tomllib.loads(to_toml(config)))


def _without_nulls(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
        if value is not None
    }


def _read_table(source: str | Path) -> dict[str, Any]:
    """Return the settings of a configuration; one without any is more likely a mistake than the wish for all defaults."""
    text, name = read_text(source)
    table = _parsed(text, name)
    if not _sets_anything(table):
        what = "has only tables without settings" if table else "has only comments" if text.strip() else "is empty"
        raise ConfigError(
            f"configuration {name} sets nothing: it {what}, and what is not set would silently be a default. "
            "Write the settings into it, or begin with a built-in config: selfcorrect config demo > mine.toml"
        )
    return table


def _sets_anything(table: Mapping[str, Any]) -> bool:
    return any(_sets_anything(value) if isinstance(value, Mapping) else True for value in table.values())


def read_text(source: str | Path) -> tuple[str, str]:
    """Return the text of a TOML file or a built-in config, and what to call it.

    Raises:
        ConfigError: there is no such file or name, or it cannot be read.
    """
    path = Path(source)
    name = path.stem if path.parts == ("configs", f"{path.stem}.toml") else str(source)
    if is_there(path) and not (str(source) in builtin_configs() and not path.is_file()):
        return _read_file(path, "configuration"), str(path)
    if name in builtin_configs():
        text = (resources.files("selfcorrect.config") / "builtin" / f"{name}.toml").read_text(encoding="utf-8")
        return text, f"built-in config {name!r}"
    close = difflib.get_close_matches(str(source), builtin_configs(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"configuration {str(source)!r} is neither a file nor one of {', '.join(builtin_configs())}.{hint}"
    )


def read_table(path: Path, what: str) -> dict[str, Any]:
    """Return the content of a TOML file; ``what`` it is begins the messages.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    return _parsed(_read_file(path, what), str(path))


def _read_file(path: Path, what: str) -> str:
    try:
        return read_regular(path, MAX_CONFIG).decode("utf-8")
    except DataError as error:
        raise ConfigError(f"{what} {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {error}.") from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        return parsed_toml(text)
    except ValueError as error:
        json = " It looks like JSON: write it as TOML." if text.lstrip().startswith("{") else ""
        raise ConfigError(f"{name} is not valid TOML: {error}.{json}") from None


def apply_override(table: dict[str, Any], override: str) -> None:
    """Change nested settings in place by ``key.path=value``; `given_value` reads the value.

    Raises:
        ConfigError: the override has another form, or its path leads through a value.
    """
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: write key.path=value, for example --set optimizer.learning_rate=1e-4")
    *parents, last = path.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a group of settings")
    table[last] = given_value(last, value)


def given_value(name: str, text: str) -> Any:
    """Return the value of the setting or option ``name`` given on the command line; one that is not TOML is text.

    Text is `unescaped`, unless the name ends in ``pattern``: a regular expression reads its own escapes.

    Raises:
        ConfigError: it is TOML, but out of range.
    """
    try:
        return parsed_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip() if name.endswith("pattern") else unescaped(text.strip())
    except ValueError as error:
        raise ConfigError(f"the value {text[:60]!r}{'...' if len(text) > 60 else ''} is rejected: {error}.") from None


def unescaped(text: str) -> str:
    r"""Return a text with ``\n``, ``\t`` and ``\\`` replaced by what they stand for; other backslashes stay.

    >>> unescaped(r"\nQ:") == "\nQ:", unescaped(r"\boxed"), unescaped(r"\\nabla")
    (True, '\\boxed', '\\nabla')
    """
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)


def _explain(item: Mapping[str, Any], model: type[BaseModel], what: str) -> str:
    path = [str(part) for part in item["loc"]]
    if len(path) > 2 and path[0] == "stages":
        path.pop(2)  # the kind of stage, which no file contains
    if path[:2] == ["task", "revise"]:
        path = path[:2] + [part for part in path[2:] if part != "str" and "[" not in part]  # the types that it may have
    where = ".".join(path) or what.removeprefix("the ")
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, [str(part) for part in item["loc"]][:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        return f"{where}: no such setting; {hint}"
    message = _in_toml(item["type"], where) or item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = (
        ""
        if isinstance(given, (dict, BaseModel)) or item["type"] in ("missing", "value_error")
        else f" = {_shown(given)}"
    )
    return f"{where}{shown}: {message}"


def _in_toml(kind: str, where: str) -> str | None:
    """Return a message in TOML's words, where pydantic's has Python's."""
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"it must be a table: [{where}{'.NAME' if where == 'stages' else ''}]"
    if kind in ("list_type", "tuple_type"):
        return "it must be a list, in square brackets"
    return None


def _shown(given: object) -> str:
    try:
        text = repr(given)
    except ValueError:  # an integer of thousands of digits
        return "a number"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _stage_hint(item: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Suggest a fix for a stage that lacks settings, most likely a stage's name misspelt in ``--set``."""
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
