"""Rows of one's own, defined outside the package.

A row is one of these:

- a TOML file: the table ``[row]`` describes the row, ``[stages]`` holds its stages written out, and any other setting
  replaces SCoRe's;
- a function ``module:function`` that receives a `Recipe` and returns a `Config`, as the built-in rows do, or a `MethodRow`
  in a module;
- the name of either, under which an installed package offers it::

    [project.entry-points."selfcorrect.rows"]
    mine = "my_package.my_rows:mine"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from selfcorrect.config import aliases
from selfcorrect.config.plugins import Plugins
from selfcorrect.config.schema import Config
from selfcorrect.config.settings import MAX_RATE, Settings
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import apply_override, make_config, read_table, validated, with_overrides
from selfcorrect.documents import is_there
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, Budget, MethodRow, Table

OFFERED = Plugins("row", "selfcorrect.rows", {})
KEY = re.compile(r"[a-z0-9][a-z0-9+_.-]{0,49}")
TAKEN = ("further", "trials.json", "report.html", "again.sh")
"""Other names in a comparison's directory."""
BUILT_IN = {row.key: row for row in ROWS}


class RowTable(Settings):
    """The table ``[row]`` of a row's file."""

    key: str | None = None
    """Names the row's directory, and the row in `--only`; unset = the file's name."""
    title: str | None = Field(None, min_length=1, max_length=200)
    """Label in the report; unset = the key."""
    description: str = Field("", max_length=1000)
    """What the row is, for `--list`."""
    table: Table = Table.VARIANTS
    """The report's table that shows the row: `methods`, `ablations` or `variants`."""
    judged_by: Literal["acc_t1", "acc_t2"] = "acc_t2"
    """The development accuracy by which `--tune` chooses the row's settings."""
    anchors: tuple[Annotated[float, Field(gt=0, le=MAX_RATE)], ...] = Field((1.0,), min_length=1, max_length=100)
    """`--tune` also tries these multiples of the last stage's KL coefficient of `base` on the first attempt."""
    budget: Budget = Budget.EQUAL
    """`equal`: as many completions and updates as SCoRe; `at_most`: at most as many completions; `own`: other numbers, which the
    report marks."""


@dataclass(frozen=True, slots=True)
class FileRow(MethodRow):
    """A row whose stages are written out in a file. A sweep's overrides of ``stages`` change its own stages, not SCoRe's."""

    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def configured(self, config: Config, overrides: Sequence[str] = ()) -> tuple[Recipe, Config]:
        common = [override for override in overrides if not override.startswith("stages.")]
        recipe = Recipe.of(with_overrides(config, common))
        table = recipe.config.model_dump()
        for name, value in deepcopy(dict(self.settings)).items():
            merges = name != "stages" and isinstance(value, Mapping) and isinstance(table.get(name), Mapping)
            table[name] = {**table[name], **value} if merges else value
        for override in overrides:
            name = override.removeprefix("stages.").partition(".")[0]
            if override in common or name in table["stages"]:
                apply_override(table, override)
        try:
            made = make_config(table)
            return recipe, with_overrides(made, [f"eval.turns={max(made.turns, made.turns_trained)}"])
        except ConfigError as error:
            raise ConfigError(f"row {self.key!r}, {self.source}: {error}") from None

    def anchored_stage(self, config: Config) -> tuple[str, ReinforcementStage]:
        stages = self.configured(config)[1].stages
        for name, stage in reversed(stages.items()):
            if isinstance(stage, ReinforcementStage) and stage.kl_coefs[0].get("base"):
                return name, stage
        raise ConfigError(
            f"row {self.key!r}, {self.source}: anchors = {list(self.anchors)} multiply the KL coefficient of `base` on a stage's "
            "first attempt, and no stage has one above 0: leave anchors out, or give kl_coefs such a coefficient."
        )


def own_rows(given: Sequence[str], only: Sequence[str] = ()) -> list[MethodRow]:
    """Return the rows that ``given`` leads to, and those of installed packages whose keys stand in ``only``.

    Raises:
        ConfigError: a row cannot be read, or two rows have one key or one title.
    """
    found = [read_row(text) for text in given]
    offered = OFFERED.offered()
    there = {*BUILT_IN, *(row.key for row in found)}
    found += [read_row(key) for key in dict.fromkeys(only) if key in offered and key not in there]
    for name in ("key", "title"):
        values = [getattr(row, name).casefold() for row in (*ROWS, *found)]
        twice = next((row for row, value in zip((*ROWS, *found), values, strict=True) if values.count(value) > 1), None)
        if twice:
            same = [row for row in found if getattr(row, name).casefold() == getattr(twice, name).casefold()]
            raise ConfigError(
                f"two rows have the {name} {getattr(twice, name)!r} ({', '.join(row.source or row.key for row in same)}"
                f"{'' if twice.source else ' and a built-in row'}): give one another {name}."
            )
    return found


def offered_rows() -> list[tuple[str, MethodRow | str]]:
    """Return every row that an installed package offers, by name; where it cannot be read, why."""
    found: list[tuple[str, MethodRow | str]] = []
    for name in sorted(OFFERED.offered()):
        try:
            found.append((name, read_row(name)))
        except SelfCorrectError as error:  # one broken package must not hide the other rows
            found.append((name, str(error)))
    return found


def read_row(text: str) -> MethodRow:
    """Return the row that a TOML file, ``module:function`` or an installed package's name leads to.

    Raises:
        ConfigError: it leads to no row, or the row's key is a built-in row's.
    """
    path = Path(text)
    if path.suffix == ".toml" or is_there(path):
        return _row_of_file(path)
    name = None if ":" in text else text
    if name and name not in OFFERED.offered():
        known = ", ".join(sorted(OFFERED.offered())) or "none"
        raise ConfigError(
            f"row {text!r} is no TOML file here, no module:function, and no row of an installed package; of those there are: "
            f"{known}."
        )
    found = OFFERED.load(text)
    if isinstance(found, MethodRow):
        about = {key: getattr(found, key) for key in RowTable.model_fields}
        return _described({**about, "key": name or found.key}, text, found.make)
    if not callable(found):
        raise ConfigError(
            f"row {text!r} is a {type(found).__name__}: it must be a function that receives a Recipe and returns a Config, or a "
            "MethodRow (selfcorrect.paper.rows)."
        )
    key = name or str(getattr(found, "__name__", text.rpartition(":")[2])).replace("_", "-").lower()
    described = (getattr(found, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")
    return _described({"key": key, "description": described}, text, found)


def _described(about: Mapping[str, Any], source: str, function: Callable[[Recipe], Config]) -> MethodRow:
    """Return a row that a function makes."""
    given = validated(RowTable, about, f"row {source}")
    return MethodRow(make=partial(_made_by, function, source), **_arguments(given, str(given.key), source))


def _row_of_file(path: Path) -> MethodRow:
    settings = aliases.current(read_table(path, "row"))
    about = settings.pop("row", {})
    if not isinstance(about, Mapping):
        raise ConfigError(f"row {path}: row = {about!r} must be a table, [row], with a title for instance.")
    given = validated(RowTable, about, f"the table [row] of {path}")
    if not isinstance(settings.get("stages"), Mapping):
        raise ConfigError(
            f"row {path} has no stages: write them out as [stages.NAME], or stages = {{}} for a row that is only evaluated."
        )
    arguments = _arguments(given, given.key or path.stem, path.name)
    return FileRow(make=_only_configured, settings=settings, **arguments)


def _only_configured(recipe: Recipe) -> Config:
    raise AssertionError("`FileRow.configured` makes a file's row")


def _arguments(given: RowTable, key: str, source: str) -> dict[str, Any]:
    """Return the arguments of a `MethodRow` but for what makes its configuration."""
    return {**dict(given), "key": _checked_key(key, source), "title": given.title or key, "source": source}


def _checked_key(key: str, source: str) -> str:
    if key in BUILT_IN:
        raise ConfigError(
            f"row {source}: {key!r} is the key of the built-in row {BUILT_IN[key].title!r}. Choose another key."
        )
    if not KEY.fullmatch(key) or key.endswith(".") or key in TAKEN:
        raise ConfigError(
            f"row {source}: the key {key!r} cannot name the row's directory. A key has at most 50 lower-case letters, digits, "
            f"+, -, _ and dots, begins with a letter or digit, does not end in a dot and is none of {', '.join(TAKEN)}."
        )
    return key


def _made_by(function: Callable[[Recipe], Config], source: str, recipe: Recipe) -> Config:
    """Return the configuration that someone's function makes.

    Raises:
        ConfigError: the function fails, or returns something else.
    """
    try:
        made = function(recipe)
    except SelfCorrectError as error:
        raise ConfigError(f"row {source}: {error}") from error
    except Exception as error:  # the boundary to other people's code
        raise ConfigError(
            f"row {source} cannot be made from this configuration ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(made, Config):
        raise ConfigError(
            f"row {source} returned a {type(made).__name__}: it must return a Config, such as recipe.changed(...)."
        )
    return made
