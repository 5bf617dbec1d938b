"""One side of a comparison: a finished evaluation in its directory, or the final evaluation of a run's stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from selfcorrect.config.engine_names import HF
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config
from selfcorrect.errors import DataError
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.storage.episode_log import StoredEpisode, episodes_file, read_episodes
from selfcorrect.storage.evaluation_dir import flat, plain, read_finished_identity
from selfcorrect.storage.seal import SUMMARY, WAY_OUT, check_seal, read_results, read_summary
from selfcorrect.types import TOKENS, Part
from selfcorrect.zoo.resolve import named_run

NAMES = "other_models"
"""The other names under which a server answered, in its results."""


@dataclass(frozen=True, eq=False)
class Side:
    """A finished evaluation to compare.

    Attributes:
        settings: what tells two evaluations apart, by dotted key.
        stage: of a run, the stage whose model was evaluated; None for an evaluation of its own directory.
        sealed: whether the files have a seal, by which changes would have been noticed.
    """

    path: Path
    stage: str | None
    settings: Mapping[str, Any]
    sealed: bool

    @classmethod
    def of(cls, place: str | Path) -> Side:
        """Read a directory of `selfcorrect eval`, a run (its last stage), or ``RUN:STAGE``.

        Raises:
            RunDirectoryError: there is none.
            DataError: it is not finished, is damaged, or a run has no such stage.
        """
        run, stage = named_run(place)
        if run is None:
            path = Path(place)
            identity = read_finished_identity(path)
            names = read_results(path)["model"].get(NAMES)
            return cls(path, None, {**flat(identity), **({NAMES: names} if names else {})}, check_seal(path))
        if not (run / SUMMARY).exists():
            raise DataError(f"the run in {run} is not finished: selfcorrect train --resume {quote(str(run))}")
        is_sealed = check_seal(run)
        config = load_config(run / "config.toml")
        stage = stage or ["base", *config.stages][-1]
        if stage not in ("base", *config.stages):
            raise DataError(f"run {run} has no stage {stage!r}; there are {', '.join(['base', *config.stages])}.")
        return cls(run, stage, flat(_settings_of(run, config)), is_sealed)

    @property
    def results(self) -> dict[str, Any]:
        """Return the stored metrics of the evaluated model."""
        name = self.stage or "model"
        return read_results(self.path, [name])[name]

    def episodes(self, part: Part) -> Iterator[StoredEpisode]:
        """Yield the stored episodes of a part."""
        return read_episodes(episodes_file(self.path, stage=self.stage, part=part))


def _settings_of(run: Path, config: Config) -> dict[str, Any]:
    """Return a run's evaluation in the form of an evaluation's identity, as far as the run records it."""
    recorded = read_summary(run).get("provenance", {})
    try:
        task = {"name": recorded["task"]["name"], "version": recorded["task"]["version"]}
        problems = {"digest": recorded["data_digest"], "split": config.eval.split, "data_seed": config.task.data_seed}
    except (KeyError, TypeError):
        raise DataError(f"{run / SUMMARY} does not say which problems were evaluated. {WAY_OUT}") from None
    name = config.rollout.engine
    engine = {} if name == HF else {"engine": {"name": name}}
    return {
        "task": task,
        "problems": problems,
        "context_mode": TOKENS,
        "dtype": config.model.dtype,
        "plan": plain({**asdict(EvalPlan.of_run(config)), **engine}),
    }
