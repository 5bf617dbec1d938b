"""A sweep: the same grid of settings tried for every trained row, with a seed of its own, on development problems.

Rows with an axis of their own (`MethodRow.anchors`) try the grid at each of its values.

DIR/.trials/ROW/NUMBER/   a trial's run; its final evaluation is on the development problems
DIR/trials.json           the grid, every trial with its result, and each row's chosen trial
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.plan import RunSpec, digest, with_prefixes
from selfcorrect.paper.rows import MethodRow
from selfcorrect.storage.comparison_dir import TRIALS, read_trials, write_trials
from selfcorrect.storage.seal import read_summary

CRITERION = "acc_t2"  # of all rows but those with another `MethodRow.judged_by`
METRICS = ("acc_t1", "acc_t2", "delta")


@dataclass(frozen=True, slots=True)
class Grid:
    """The values of each setting, which are all combined; the seed of the trials; their number of problems."""

    values: Mapping[str, Sequence[str]]
    seed: int
    problems: int

    @classmethod
    def of(cls, texts: Sequence[str], *, seed: int, problems: int) -> Grid:
        """Parse a grid from texts ``KEY=VALUE,VALUE,...``.

        Raises:
            ConfigError: a text has another form.
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
        """Return every combination, as overrides."""
        return [
            [f"{key}={value}" for key, value in zip(self.values, values, strict=True)]
            for values in itertools.product(*self.values.values())
        ]


@dataclass(frozen=True, slots=True)
class Trial:
    """One row with the settings of one point of the grid."""

    row: MethodRow
    point: Sequence[str]
    spec: RunSpec


def trials(config: Config, rows: Sequence[MethodRow], grid: Grid, out: Path) -> list[Trial]:
    """Return a trial for every point of the grid and every trained row; points that a row cannot tell apart are one.

    Raises:
        ConfigError: a point of the grid is not a valid setting.
    """
    apart = [f"seed={grid.seed}", "eval.split=dev", f"eval.problems={grid.problems}"]
    apart += ["eval.sampled=false", "eval.controls=false"]
    found = []
    for row in rows:
        seen = set()
        for number, point in enumerate(_points(config, row, grid)):
            made = row_config(row, config, [*point, *apart])
            spec = RunSpec(f"trial {' '.join(point)} of {row.key}", made, out / ".trials" / row.key / str(number), None)
            if made.stages and digest(made) not in seen:
                found.append(Trial(row, point, spec))
            seen.add(digest(made))
    return found


def _points(config: Config, row: MethodRow, grid: Grid) -> list[list[str]]:
    """Return the grid's points, at the configured anchor and then at each other one of the row's own."""
    if set(row.anchors) == {1}:
        return grid.points
    name, stage = row.anchored_stage(config)
    first, *later = stage.kl_coefs
    points = []
    for multiple in row.anchors:
        weaker = [{**first, "base": float(f"{multiple * first['base']:.6g}")}, *later]
        table = ", ".join(f"{{{', '.join(f'{key} = {value!r}' for key, value in turn.items())}}}" for turn in weaker)
        own = [f"stages.{name}.kl_coefs=[{table}]"] if multiple != 1 else []
        points += [[*point, *own] for point in grid.points]
    return points


def check_trials(grid: Grid, out: Path) -> None:
    """Check that the stored trials share these ones' seed and problems, which their common file records once.

    Raises:
        ConfigError: their seed or their problems differ.
    """
    before, now = read_trials(out), _conditions(grid)
    differing = [
        f"{name} = {before.get(name)} instead of {now[name]}"
        for name in now
        if before and before.get(name) != now[name]
    ]
    if differing:
        raise ConfigError(
            f"{out / TRIALS} holds trials with {', '.join(differing)}: give the same --tune-seed and --tune-problems, or "
            "choose another --out."
        )


def _conditions(grid: Grid) -> dict[str, Any]:
    return {"seed": grid.seed, "problems": grid.problems, "criterion": CRITERION}


def trial_specs(tried: Sequence[Trial], out: Path) -> list[RunSpec]:
    """Return the trials' run specs and the prefixes that they share."""
    return with_prefixes([trial.spec for trial in tried], out)


def settle(tried: Sequence[Trial], grid: Grid, out: Path) -> dict[str, Sequence[str]]:
    """Choose each row's point by its highest accuracy (ties: the first point) and write ``trials.json``.

    The accuracy is that of the attempt that the row is judged by: the second, or the only one that it trains.

    A row whose trials all failed keeps the configuration as it is.
    """
    settled: dict[str, Sequence[str]] = {}
    recorded: dict[str, list[dict[str, Any]]] = {}
    for row in dict.fromkeys(trial.row for trial in tried):
        own = [(trial, _result(trial.spec)) for trial in tried if trial.row == row]
        done = [(trial, result) for trial, result in own if result]
        best = max(done, key=lambda pair: pair[1][row.judged_by])[0] if done else None
        if best:
            settled[row.key] = best.point
        recorded[row.key] = [
            {"settings": trial.point, "digest": digest(trial.spec.config), **result, "chosen": trial is best}
            for trial, result in own
        ]
    titles = {trial.row.key: trial.row.title for trial in tried}
    before = read_trials(out)  # other rows' trials stay
    record = {
        **_conditions(grid),
        "titles": {**before.get("titles", {}), **titles},
        "rows": {**before.get("rows", {}), **recorded},
        "criteria": {**before.get("criteria", {}), **{trial.row.key: trial.row.judged_by for trial in tried}},
    }
    write_trials(out, record)
    return settled


def already_tried(tried: Sequence[Trial], out: Path) -> bool:
    """Return whether ``trials.json`` holds the results of exactly these trials of their rows.

    A machine that got the file from another one then skips the sweep. Trials are the same if all their settings are, and
    the row is judged by the same accuracy.
    """
    before = read_trials(out)
    recorded, criteria = before.get("rows"), before.get("criteria", {})
    return recorded is not None and all(
        criteria.get(row.key, row.judged_by) == row.judged_by
        and {digest(trial.spec.config) for trial in tried if trial.row == row}
        == {trial.get("digest") for trial in recorded.get(row.key, []) if CRITERION in trial}
        for row in {trial.row for trial in tried}
    )


def settled_before(out: Path) -> dict[str, Sequence[str]]:
    """Return the last choice of `settle`; empty before the first."""
    recorded = read_trials(out).get("rows", {})
    return {key: trial["settings"] for key, tried in recorded.items() for trial in tried if trial["chosen"]}


def _result(spec: RunSpec) -> dict[str, Any]:
    """Return the metrics of a finished trial and the digest of its base; empty if the trial failed."""
    if not spec.finished:
        return {}
    summary = read_summary(spec.path)
    last = list(summary["results"].values())[-1]
    metrics = {name: last[name] for metric in METRICS for name in (metric, f"{metric}_ci95")}
    return {**metrics, "base": summary.get("provenance", {}).get("model_digests", {}).get("base")}
