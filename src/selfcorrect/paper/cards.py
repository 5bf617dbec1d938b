"""The cards of a comparison's rows, ``DIR/ROW/method.json``: what the report reads, and what a row of one's own was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import as_stored
from selfcorrect.errors import ConfigError
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, Budget, MethodRow
from selfcorrect.report.methods import different
from selfcorrect.storage.comparison_dir import METHOD_CARD, read_card, write_card
from selfcorrect.storage.evaluation_dir import flat

SHOWN = 5
"""Maximum differences in a message."""


def write_cards(rows: Sequence[MethodRow], config: Config, out: Path) -> None:
    """Write each row's card next to its runs."""
    for row in rows:
        write_card(out / row.key, _card(row, config))


def check_cards(rows: Sequence[MethodRow], config: Config, out: Path) -> None:
    """Check that rows of one's own are what they were when the directory's runs were made.

    Raises:
        ConfigError: a row has changed.
    """
    for row in rows:
        before = read_card(out / row.key).get("definition") if row.source else None
        if before is None:
            continue
        now = definition(row, config)
        if now != before:
            changes = different(now, before)
            raise ConfigError(
                f"row {row.key!r} ({row.source}) is not the one that {out / row.key / METHOD_CARD} records: "
                f"{'; '.join(changes[:SHOWN])}{' ...' if changes[SHOWN:] else ''}. Give the changed row another key, choose "
                f"another --out, or remove {out / row.key} and {out / '.trials' / row.key}."
            )


def definition(row: MethodRow, config: Config) -> dict[str, Any]:
    """Return what a row is: its stages, and its other settings that differ from SCoRe's, with their full names.

    Values that are defaults are left out of the stages, so that a later version's new setting changes no definition.
    """
    made, score = as_stored(row_config(row, config)), as_stored(Recipe.of(config).config)
    stages = {name: stage.model_dump(mode="json", exclude_defaults=True) for name, stage in made.stages.items()}
    theirs = flat(score.model_dump(mode="json", exclude={"stages"}))
    own = flat(made.model_dump(mode="json", exclude={"stages"}))
    others = {key: own.get(key) for key in {**theirs, **own} if own.get(key) != theirs.get(key)}
    return {**flat(stages, "stages."), **others}


def _card(row: MethodRow, config: Config) -> dict[str, Any]:
    """Return what the report reads: key, title, table and the row's position. Rows of one's own come last, by key."""
    keys = [known.key for known in ROWS]
    card: dict[str, Any] = {
        "key": row.key,
        "title": row.title,
        "table": row.table,
        "what": row.description,
        "judged_by": row.judged_by,
        "anchors": row.anchors,
        "place": keys.index(row.key) if row.key in keys else len(keys),
    }
    if row.source is None:
        return card
    about = {"source": row.source, "definition": definition(row, config)}
    return {**card, **about, **({"budget": row.budget} if row.budget is Budget.OWN else {})}
