"""What lies in run and evaluation directories, read without a model, and without being strict about old settings.

The settings stay plain nested values: a report of runs made by another version must not be refused because a
setting has come or gone.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcorrect.config import aliases
from selfcorrect.errors import DataError
from selfcorrect.evaluation.evaluator import COMPARED
from selfcorrect.storage.comparison_dir import read_card
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes, stored_lines
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.types import TOKENS, Part

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: its settings, its steps, and its results once it is finished (``results`` is empty before).

    ``card`` is what the directory above says of the method: key, title, table and place; empty where it says nothing.
    """

    path: Path
    settings: Mapping[str, Any]
    toml: str
    steps: Sequence[Record]
    results: Mapping[str, Record]
    digests: Mapping[str, str]
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def stages(self) -> list[str]:
        return list(self.settings.get("stages", {}))

    @property
    def models(self) -> list[str]:
        """What was evaluated: ``base`` and the stages, in order."""
        return list(self.results)

    @property
    def final(self) -> str:
        """The last stage's name: the model that the run is for."""
        return self.stages[-1] if self.stages else "base"

    def spent(self, what: str) -> int | None:
        """The sum of ``completions`` or ``updates`` over all steps; None where the steps do not say."""
        if any(what not in line for line in self.steps):
            return None
        return sum(int(line[what]) for line in self.steps)

    def episodes(self, model: str, part: Part = Part.ATTEMPTS, limit: int | None = None) -> Iterator[StoredEpisode]:
        """Stored episodes of a model's evaluation, or with `Part.TRAIN` those of a stage's training."""
        name = f"train-{model}" if part is Part.TRAIN else f"eval-{model}-{part}"
        return read_episodes(self.path / "episodes" / f"{name}.jsonl", limit)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One finished evaluation outside a run; ``identity`` is what was evaluated, as its ``eval.json`` says."""

    path: Path
    identity: Mapping[str, Any]
    results: Record

    @property
    def plan(self) -> Mapping[str, Any]:
        plan: Mapping[str, Any] = self.identity["plan"]
        return plan

    @property
    def digest(self) -> str:
        """Of the weights; of a served model they are unknown, and what it is called stands for them."""
        return str(self.identity["model"]["digest"] or self.model)

    @property
    def context_mode(self) -> str:
        return str(self.identity.get("context_mode", TOKENS))

    @property
    def model(self) -> str:
        """What the model was called on the command line."""
        return str(self.identity["model"]["source"])

    def episodes(self, part: Part = Part.ATTEMPTS, limit: int | None = None) -> Iterator[StoredEpisode]:
        return read_episodes(self.path / "episodes" / f"eval-{part}.jsonl", limit)


def read_sources(paths: Sequence[Path]) -> tuple[list[Run], list[Evaluated]]:
    """All runs and evaluations at or below the given directories, each once, in the order of the paths.

    Raises:
        DataError: a path is missing, there is none below it, or a file in one is damaged.
    """
    runs: dict[Path, Run] = {}
    evaluations: dict[Path, Evaluated] = {}
    for path in paths:
        folders = list(found_directories(path))
        if not folders:
            raise DataError(
                f"{path} holds no run (config.toml) and no evaluation (eval.json), nor does a directory below it: "
                "give the DIR of `selfcorrect train --out DIR` or `selfcorrect eval --out DIR`, or one that holds some."
            )
        for folder in folders:
            place = folder.resolve()
            if (folder / "config.toml").is_file():
                runs.setdefault(place, read_run(folder))
            elif (folder / "summary.json").is_file():  # an unfinished evaluation has nothing to report yet
                evaluations.setdefault(place, read_evaluation(folder))
    if not runs and not evaluations:
        raise DataError(f"{', '.join(map(str, paths))}: only unfinished evaluations; let one finish first.")
    return list(runs.values()), list(evaluations.values())


def found_directories(path: Path) -> Iterator[Path]:
    """Directories of runs and evaluations at or below ``path``, sorted; nothing is looked for inside them."""
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give directories of runs or of evaluations.")
    for folder, below, files in os.walk(path):
        if "config.toml" in files or "eval.json" in files:
            below.clear()
            yield Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_run(path: Path) -> Run:
    """A run, finished or not."""
    toml = (path / "config.toml").read_text(encoding="utf-8")
    try:
        settings = aliases.current(tomllib.loads(toml))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path / 'config.toml'} is not valid TOML: {error}") from None
    summary = _json(path / "summary.json") if (path / "summary.json").is_file() else {}
    digests = summary.get("provenance", {}).get("model_digests", {})
    results = summary.get("results", {})
    check_identity(path, results)
    steps = list(map(aliases.metrics, stored_lines(path / "metrics.jsonl")))
    return Run(path, settings, toml, steps, results, digests, read_card(path.parent))


def read_evaluation(path: Path) -> Evaluated:
    """A finished evaluation."""
    results = _json(path / "summary.json")["results"]
    check_identity(path, results)
    return Evaluated(path, read_identity(path), results["model"])


def check_identity(path: Path, results: Mapping[str, Record]) -> None:
    """Make sure that delta = (i->c) - (c->i) = Acc@t2 - Acc@t1 on every figure that is shown.

    Raises:
        DataError: it does not hold: the summary was changed by hand.
    """
    for name, found in results.items():
        controls = [
            {**r, "delta": r["difference"], "acc_t1": r[COMPARED[control][0]], "acc_t2": r[COMPARED[control][1]]}
            for control, r in found.get("controls", {}).items()
        ]
        for r in (found, found.get("sampled", {}), *aliases.by_rule(found).values(), *controls):
            if r.get("delta") is None:
                continue
            by_flips, by_accuracy = r["i_to_c"] - r["c_to_i"], r["acc_t2"] - r["acc_t1"]
            for words, found_so in (("i->c - c->i", by_flips), ("Acc@t2 - Acc@t1", by_accuracy)):
                if abs(r["delta"] - found_so) > 1e-9:
                    raise DataError(
                        f"{path / 'summary.json'}: {name} has delta = {r['delta']}, but {words} = {found_so}: the file was "
                        "changed; evaluate again."
                    )


def _json(path: Path) -> Record:
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    return found
