"""What is to be run: a run for every row and seed, and the beginnings that several of them share, each trained once.

DIR/ROW/seed-S/       the run of a row; `selfcorrect report DIR` groups them by ROW
DIR/ROW/method.json   the row's title and table, for the report
DIR/.shared/DIGEST/   a beginning (no stage at all, or Stage I), named by the digest of its settings and seed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfcorrect.config import Config, load_config, make_config, to_toml
from selfcorrect.errors import ConfigError
from selfcorrect.extension import beginning
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import ROWS, Row
from selfcorrect.rundir import METHOD_CARD, read_jsonl, refusals, write_atomically

SHARED = ".shared"


@dataclass(frozen=True, slots=True)
class Cell:
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


def plan(config: Config, rows: Sequence[Row], seeds: Sequence[int], out: Path) -> list[Cell]:
    """All cells, each after the one it goes on from.

    Raises:
        ConfigError: the configuration is not SCoRe's, or a row cannot be made from it.
    """
    wanted = {(row.key, seed): row.make(Recipe.of(_with_seed(config, seed))) for seed in seeds for row in rows}
    places = {digest(made): out / key / f"seed-{seed}" for (key, seed), made in wanted.items()}
    cells: dict[Path, Cell] = {}
    for (key, seed), made in wanted.items():
        parent = None
        for count in range(len(made.stages) + 1):
            part = beginning(made, count)
            last = count == len(made.stages)
            path = out / key / f"seed-{seed}" if last else places.get(digest(part), out / SHARED / digest(part))
            done = list(part.stages)[-1:]
            name = f"{key}, seed {seed}" if last else f"{' '.join(done) or 'base'} of {key}, seed {seed}"
            cells.setdefault(path, Cell(name, made if last else part, path, parent))
            parent = path
    return list(cells.values())


def digest(config: Config) -> str:
    """Of all settings and the seed."""
    return hashlib.sha256(to_toml(beginning(config, len(config.stages))).encode()).hexdigest()[:16]


def check_cells(cells: Sequence[Cell]) -> None:
    """Make sure that what is there already are these cells.

    Raises:
        ConfigError: a directory holds a run with other settings.
    """
    for cell in cells:
        if cell.started and load_config(cell.path / "config.toml") != cell.config:
            raise ConfigError(
                f"{cell.path} holds a run with other settings than this comparison gives it: "
                "choose another --out, or remove that directory."
            )


def write_cards(rows: Sequence[Row], out: Path) -> None:
    """Leave beside each row's runs what the report calls it."""
    for row in rows:
        with refusals(out):
            (out / row.key).mkdir(parents=True, exist_ok=True)
            write_atomically(out / row.key / METHOD_CARD, json.dumps(_card(row), indent=1, ensure_ascii=False) + "\n")


def _card(row: Row) -> dict[str, Any]:
    """What the page reads: key, title, table, and the row's place among all."""
    found = {name: value for name, value in asdict(row).items() if name != "make"}
    return {**found, "place": [known.key for known in ROWS].index(row.key)}


def _with_seed(config: Config, seed: int) -> Config:
    return make_config({**config.model_dump(), "seed": seed})
