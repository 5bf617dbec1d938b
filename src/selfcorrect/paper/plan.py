"""What is to be run: a run for every row and seed, and the beginnings that several of them share, each trained once.

DIR/ROW/seed-S/       the run of a row; `selfcorrect report DIR` groups them by ROW
DIR/ROW/method.json   the row's title and table, for the report
DIR/.shared/DIGEST/   a beginning (no stage at all, or Stage I), named by the digest of its settings and seed
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import as_stored, load_config, to_toml, with_overrides
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, MethodRow
from selfcorrect.runs.fork import config_prefix, fork
from selfcorrect.runs.run import resume, train
from selfcorrect.storage.comparison_dir import write_card
from selfcorrect.storage.files import read_jsonl

SHARED = ".shared"


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: its settings, where it lies, and the cell it goes on from (None: it starts from the model)."""

    name: str
    config: Config
    path: Path
    parent: Path | None

    @property
    def started(self) -> bool:
        return (self.path / "config.toml").is_file()

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    @property
    def stages(self) -> list[str]:
        """The stages that are trained here, not in the cell before."""
        return list(self.config.stages)[-1:]

    @property
    def steps(self) -> int:
        """Steps of the trainer in this cell."""
        return sum(self.config.stages[name].length for name in self.stages)

    @property
    def done(self) -> int:
        """Steps taken here so far."""
        log = self.path / "metrics.jsonl"
        return sum(line["stage"] in self.stages for line in read_jsonl(log)) if log.exists() else 0

    def finish(self, callbacks: Callbacks) -> None:
        """Train and evaluate what is left of it."""
        if self.started:
            resume(self.path, callbacks=callbacks)
        elif self.parent is not None:
            fork(self.parent, self.config, self.path, callbacks=callbacks)
        else:
            train(self.config, self.path, callbacks=callbacks)


def plan(
    config: Config,
    rows: Sequence[MethodRow],
    seeds: Sequence[int],
    out: Path,
    settled: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[RunSpec]:
    """All cells, each after the one it goes on from.

    Args:
        settled: settings of some rows that differ from the configuration's, as ``key.path=value``, by the rows' keys.

    Raises:
        ConfigError: the configuration is not SCoRe's, or a row cannot be made from it.
    """
    wanted = [
        RunSpec(
            f"{row.key}, seed {seed}",
            row.make(Recipe.of(with_overrides(config, [f"seed={seed}", *settled.get(row.key, ())]))),
            out / row.key / f"seed-{seed}",
            None,
        )
        for seed in seeds
        for row in rows
    ]
    return with_beginnings(wanted, out)


def with_beginnings(wanted: Sequence[RunSpec], out: Path) -> list[RunSpec]:
    """The same cells, each after the cells of its beginnings; where a wanted cell is such a beginning, it serves as one."""
    places = {digest(cell.config): cell.path for cell in wanted}
    cells: dict[Path, RunSpec] = {}
    for cell in wanted:
        parent = None
        for count in range(len(cell.config.stages)):
            part = config_prefix(cell.config, count)
            path = places.get(digest(part), out / SHARED / digest(part))
            name = f"{' '.join(list(part.stages)[-1:]) or 'base'} of {cell.name}"
            cells.setdefault(path, RunSpec(name, part, path, parent))
            parent = path
        cells.setdefault(cell.path, replace(cell, parent=parent))
    return list(cells.values())


def digest(config: Config) -> str:
    """Of all settings and the seed."""
    return hashlib.sha256(to_toml(config_prefix(config, len(config.stages))).encode()).hexdigest()[:16]


def check_cells(cells: Sequence[RunSpec]) -> None:
    """Make sure that what is there already are these cells.

    Raises:
        ConfigError: a directory holds a run with other settings.
    """
    for cell in cells:
        if cell.started and load_config(cell.path / "config.toml") != as_stored(cell.config):
            raise ConfigError(
                f"{cell.path} holds a run with other settings than this comparison gives it: "
                "choose another --out, or remove that directory."
            )


def write_cards(rows: Sequence[MethodRow], out: Path) -> None:
    """Write next to each row's runs what the report calls it."""
    for row in rows:
        write_card(out / row.key, _card(row))


def _card(row: MethodRow) -> dict[str, Any]:
    """What the page reads: key, title, table, and the row's place among all."""
    found = {name: value for name, value in asdict(row).items() if name != "make"}
    return {**found, "place": [known.key for known in ROWS].index(row.key)}
