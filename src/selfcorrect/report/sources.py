"""Read run and evaluation directories without loading a model or validating old settings.

The settings stay plain nested values: a report on runs of another version must not fail because a setting was added or
removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcorrect.config import aliases
from selfcorrect.config.stage_labels import label_of_settings
from selfcorrect.config.toml import MAX_CONFIG
from selfcorrect.documents import parsed_toml, read_regular
from selfcorrect.errors import DataError
from selfcorrect.evaluation.decomposition import broken_identity
from selfcorrect.evaluation.evaluation import COMPARED
from selfcorrect.evaluation.truncated_drafts import broken_split
from selfcorrect.report.terminal import outcome
from selfcorrect.storage.comparison_dir import read_card
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.storage.run_dir import read_metrics, spent_in
from selfcorrect.storage.seal import SUMMARY, WAY_OUT, check_seal, read_results, read_summary
from selfcorrect.storage.shapes import SETTINGS_SHAPE, check_shape
from selfcorrect.types import TOKENS, Part

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run: its settings, its steps, and its results, which are empty until it is finished.

    ``card`` is the method's card in the directory above (key, title, table and place); empty if there is none. ``data_digest``
    is that of the evaluated problems; empty if the run does not record it.
    """

    path: Path
    settings: Mapping[str, Any]
    toml: str
    steps: Sequence[Record]
    results: Mapping[str, Record]
    digests: Mapping[str, str]
    card: Mapping[str, Any] = field(default_factory=dict)
    sealed: bool = False
    outcome: Sequence[str] = ()
    data_digest: str = ""

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def stages(self) -> list[str]:
        return list(self.settings.get("stages", {}))

    @property
    def models(self) -> list[str]:
        """Return the evaluated models, ``base`` and the stages, in order."""
        return list(self.results)

    @property
    def final(self) -> str:
        """Return the name of the last stage, whose model is the run's result."""
        return self.stages[-1] if self.stages else "base"

    def label(self, model: str) -> str:
        """Return what a model of the run is called (`config.stage_labels`)."""
        return label_of_settings(self.settings, model)

    def spent(self, what: str) -> int | None:
        """Return the sum of ``completions``, ``sampled_tokens`` or ``updates`` over all steps (`spent_in`)."""
        return spent_in(self.steps, what)

    def episodes(self, model: str, part: Part = Part.ATTEMPTS, limit: int | None = None) -> Iterator[StoredEpisode]:
        """Yield the stored episodes of a model's evaluation or, with `Part.TRAIN`, of a stage's training."""
        name = f"train-{model}" if part is Part.TRAIN else f"eval-{model}-{part}"
        return read_episodes(self.path / "episodes" / f"{name}.jsonl", limit)


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One finished evaluation outside a run; ``identity`` is the content of its ``eval.json``."""

    path: Path
    identity: Mapping[str, Any]
    results: Record
    sealed: bool = False

    @property
    def plan(self) -> Mapping[str, Any]:
        plan: Mapping[str, Any] = self.identity["plan"]
        return plan

    @property
    def digest(self) -> str:
        """Return the digest of the weights; for a served model, whose weights are unknown, its name."""
        return str(self.identity["model"]["digest"] or self.model)

    @property
    def data_digest(self) -> str:
        """Return the digest of the problems."""
        return str(self.identity["problems"]["digest"])

    @property
    def context_mode(self) -> str:
        return str(self.identity.get("context_mode", TOKENS))

    @property
    def other_models(self) -> Sequence[str]:
        """Return the names under which a server answered in place of the requested one."""
        found: Sequence[str] = self.results.get("other_models", ())
        return found

    @property
    def model(self) -> str:
        """Return the model's name on the command line."""
        return str(self.identity["model"]["source"])

    def episodes(self, part: Part = Part.ATTEMPTS, limit: int | None = None) -> Iterator[StoredEpisode]:
        return read_episodes(self.path / "episodes" / f"eval-{part}.jsonl", limit)


def read_sources(paths: Sequence[Path]) -> tuple[list[Run], list[Evaluated]]:
    """Read all runs and evaluations at or below the given directories, each once, in the order of the paths.

    Raises:
        DataError: a path is missing or contains no run and no evaluation, or a file is damaged.
    """
    runs: dict[Path, Run] = {}
    evaluations: dict[Path, Evaluated] = {}
    for path in paths:
        folders = list(found_directories(path))
        if not folders:
            raise DataError(
                f"{path} contains no run (config.toml) and no evaluation (eval.json), at any depth: "
                "give the DIR of `selfcorrect train --out DIR` or `selfcorrect eval --out DIR`, or a directory above it."
            )
        for folder in folders:
            place = folder.resolve()
            if (folder / "config.toml").is_file():
                runs.setdefault(place, read_run(folder))
            elif (folder / SUMMARY).exists():  # an unfinished evaluation has no results yet
                evaluations.setdefault(place, read_evaluation(folder))
    if not runs and not evaluations:
        raise DataError(
            f"{', '.join(map(str, paths))}: only unfinished evaluations; the same `selfcorrect eval` "
            "command finishes one."
        )
    return list(runs.values()), list(evaluations.values())


def unfinished_evaluations(paths: Sequence[Path]) -> list[Path]:
    """Return the evaluations at or below the given directories that have no results yet, each once."""
    found: dict[Path, Path] = {}
    for folder in (folder for path in paths for folder in found_directories(path)):
        if not ((folder / "config.toml").is_file() or (folder / SUMMARY).exists()):
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def found_directories(path: Path) -> Iterator[Path]:
    """Yield the directories of runs and evaluations at or below ``path``, sorted; they are not searched themselves."""
    if not path.is_dir():
        raise DataError(f"{path} is not a directory: give directories of runs or of evaluations.")
    for folder, below, files in os.walk(path):
        if "config.toml" in files or "eval.json" in files:
            below.clear()
            yield Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_run(path: Path) -> Run:
    """Read a run, finished or not."""
    toml, settings = _settings(path / "config.toml")
    sealed, finished = check_seal(path), (path / SUMMARY).exists()
    results = read_results(path, ()) if finished else {}  # it also checks the provenance
    summary = read_summary(path) if finished else {}
    provenance: Mapping[str, Any] = summary.get("provenance", {})
    digests, data = provenance.get("model_digests", {}), str(provenance.get("data_digest") or "")
    check_identity(path, results)
    steps = [*map(aliases.metrics, read_metrics(path / "metrics.jsonl"))]
    return Run(path, settings, toml, steps, results, digests, read_card(path.parent), sealed, outcome(summary), data)


def read_evaluation(path: Path) -> Evaluated:
    """Read a finished evaluation."""
    sealed = check_seal(path)
    results = read_results(path)
    check_identity(path, results)
    return Evaluated(path, read_identity(path), results["model"], sealed)


def _settings(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        toml = read_regular(file, MAX_CONFIG).decode("utf-8")
        settings = aliases.current(parsed_toml(toml))
        check_shape(settings, SETTINGS_SHAPE)
    except ValueError as error:
        raise DataError(f"{file} is damaged, or not valid TOML: {error}. {WAY_OUT}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    return toml, settings


def check_identity(path: Path, results: Mapping[str, Record]) -> None:
    """Check that delta = (i->c) - (c->i) = Acc@t2 - Acc@t1 in all results, and that what delta is made of adds up to it.

    Raises:
        DataError: an equation fails, so the summary was edited.
    """
    for name, found in results.items():
        wrong = broken_identity(found) or broken_split(found) or broken_split(found.get("sampled", {}))
        if wrong:
            raise DataError(f"{path / 'summary.json'}: {name} has {wrong}. The file was edited; evaluate again.")
        controls = [
            {**r, "delta": r["difference"], "acc_t1": r[COMPARED[control][0]], "acc_t2": r[COMPARED[control][1]]}
            for control, r in found.get("controls", {}).items()
        ]
        for r in (found, found.get("sampled", {}), *aliases.by_rule(found).values(), *controls):
            if r.get("delta") is None or any(r.get(name) is None for name in ("i_to_c", "c_to_i", "acc_t1", "acc_t2")):
                continue
            by_flips, by_accuracy = r["i_to_c"] - r["c_to_i"], r["acc_t2"] - r["acc_t1"]
            for words, found_so in (("i->c - c->i", by_flips), ("Acc@t2 - Acc@t1", by_accuracy)):
                if abs(r["delta"] - found_so) > 1e-9:
                    raise DataError(
                        f"{path / 'summary.json'}: {name} has delta = {r['delta']}, but {words} = {found_so}. The file was "
                        "edited; evaluate again."
                    )
