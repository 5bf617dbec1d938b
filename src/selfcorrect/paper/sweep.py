"""The same trials for every trained row: a grid of settings, one seed apart, judged on development problems.

DIR/.trials/ROW/NUMBER/   a trial's run; its final evaluation is on the development problems
DIR/trials.json           the grid, every trial with its result, and which one each row is trained with
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import with_overrides
from selfcorrect.errors import ConfigError
from selfcorrect.paper.plan import RunSpec, digest, with_beginnings
from selfcorrect.paper.recipe import Recipe
from selfcorrect.paper.rows import MethodRow
from selfcorrect.storage.comparison_dir import TRIALS, read_trials, write_trials

CRITERION = "acc_t2"
FIGURES = ("acc_t1", "acc_t2", "delta")


@dataclass(frozen=True, slots=True)
class Grid:
    """Which settings are tried: values of each, all combined; with which seed, and on how many problems."""

    values: Mapping[str, Sequence[str]]
    seed: int
    problems: int

    @classmethod
    def of(cls, texts: Sequence[str], *, seed: int, problems: int) -> Grid:
        """A grid from ``KEY=VALUE,VALUE,...``.

        Raises:
            ConfigError: a text is something else.
        """
        found = {}
        for text in texts:
            key, equals, values = text.partition("=")
            if not (key and equals and all(value.strip() for value in values.split(","))):
                raise ConfigError(f"--tune {text!r}: write KEY=VALUE,VALUE, such as optimizer.learning_rate=4e-4,8e-4")
            found[key.strip()] = [value.strip() for value in values.split(",")]
        return cls(found, seed, problems)

    @property
    def points(self) -> list[list[str]]:
        """Every combination, as overrides."""
        return [
            [f"{key}={value}" for key, value in zip(self.values, values, strict=True)]
            for values in itertools.product(*self.values.values())
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """One row with one point of the grid."""

    row: MethodRow
    point: Sequence[str]
    cell: RunSpec


def trials(config: Config, rows: Sequence[MethodRow], grid: Grid, out: Path) -> list[Trial]:
    """Every point for every row that is trained.

    Raises:
        ConfigError: a point of the grid is no valid setting.
    """
    apart = [f"seed={grid.seed}", "eval.split=dev", f"eval.problems={grid.problems}"]
    found = []
    for row in rows:
        for number, point in enumerate(grid.points):
            made = row.make(
                Recipe.of(with_overrides(config, [*point, *apart, "eval.sampled=false", "eval.controls=false"]))
            )
            cell = RunSpec(f"trial {' '.join(point)} of {row.key}", made, out / ".trials" / row.key / str(number), None)
            if made.stages:
                found.append(Trial(row, point, cell))
    return found


def check_trials(grid: Grid, out: Path) -> None:
    """Make sure that trials that are there already were made as these will be: they share a file, which says how.

    Raises:
        ConfigError: they have another seed or other problems.
    """
    before, now = read_trials(out), _conditions(grid)
    differing = [
        f"{name} = {before[name]} instead of {now[name]}" for name in now if before and before[name] != now[name]
    ]
    if differing:
        raise ConfigError(
            f"{out / TRIALS} holds trials with {', '.join(differing)}: give --tune-seed and --tune-problems as they were, or "
            "choose another --out."
        )


def _conditions(grid: Grid) -> dict[str, Any]:
    return {"seed": grid.seed, "problems": grid.problems, "criterion": CRITERION}


def trial_cells(found: Sequence[Trial], out: Path) -> list[RunSpec]:
    """The trials' cells and those that they share."""
    return with_beginnings([trial.cell for trial in found], out)


def settle(found: Sequence[Trial], grid: Grid, out: Path) -> dict[str, Sequence[str]]:
    """Choose each row's point, the one with the highest Acc@t2, and write ``trials.json``; ties go to the first point.

    A row whose trials have all failed stays with the configuration as it is.
    """
    settled: dict[str, Sequence[str]] = {}
    told: dict[str, list[dict[str, Any]]] = {}
    for row in dict.fromkeys(trial.row for trial in found):
        own = [(trial, _result(trial.cell)) for trial in found if trial.row == row]
        done = [(trial, result) for trial, result in own if result]
        best = max(done, key=lambda pair: pair[1][CRITERION])[0] if done else None
        if best:
            settled[row.key] = best.point
        told[row.key] = [
            {"settings": trial.point, "digest": digest(trial.cell.config), **result, "chosen": trial is best}
            for trial, result in own
        ]
    titles = {trial.row.key: trial.row.title for trial in found}
    before = read_trials(out)  # other rows' trials stay
    record = {
        **_conditions(grid),
        "titles": {**before.get("titles", {}), **titles},
        "rows": {**before.get("rows", {}), **told},
    }
    write_trials(out, record)
    return settled


def already_tried(found: Sequence[Trial], out: Path) -> bool:
    """Whether ``trials.json`` has a result of each of these trials, and of no others of their rows.

    A machine that got the file from another need not try again then. Trials are the same if all their settings are.
    """
    told = read_trials(out).get("rows")
    return told is not None and all(
        {digest(trial.cell.config) for trial in found if trial.row == row}
        == {trial.get("digest") for trial in told.get(row.key, []) if CRITERION in trial}
        for row in {trial.row for trial in found}
    )


def settled_before(out: Path) -> dict[str, Sequence[str]]:
    """What `settle` chose when it was last asked; nothing before."""
    told = read_trials(out).get("rows", {})
    return {key: trial["settings"] for key, tried in told.items() for trial in tried if trial["chosen"]}


def _result(cell: RunSpec) -> dict[str, Any]:
    """The figures of a finished trial and the digest of its base; of one that failed none."""
    if not cell.finished:
        return {}
    summary = json.loads((cell.path / "summary.json").read_text(encoding="utf-8"))
    last = list(summary["results"].values())[-1]
    figures = {name: last[name] for figure in FIGURES for name in (figure, f"{figure}_ci95")}
    return {**figures, "base": summary.get("provenance", {}).get("model_digests", {}).get("base")}
