"""The commands that make the runs and evaluations of a page again, each in a directory of its own below ``again``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from selfcorrect.report.figures import Figure
from selfcorrect.report.methods import Method
from selfcorrect.report.rows import Row
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.report.tables import seeds_in_words

AGAIN = "again"


class Commands:
    """Of all runs and evaluations together, since what has one name in two directories needs two places."""

    def __init__(self, methods: Sequence[Method], evaluations: Sequence[Evaluated]) -> None:
        runs = [run for method in methods for run in method.runs]
        self._methods = methods
        paths = [*(run.path for run in runs), *(evaluation.path for evaluation in evaluations)]
        parents = {path.resolve().parent for path in paths}
        self._root = os.path.commonpath(parents) if parents else ""
        self._trained = {run.digests[run.final]: run for run in reversed(runs) if run.final in run.digests}

    def of_run(self, run: Run) -> str:
        """Trains it, from the settings that it recorded."""
        return shlex.join(["selfcorrect", "train", str(run.path / "config.toml"), "--out", self._again(run)])

    def of_evaluation(self, evaluation: Evaluated) -> str:
        """Evaluates what it recorded; a model that a run of the page made is taken from where that run is made again."""
        plan, problems = evaluation.plan, evaluation.identity["problems"]
        server, run = evaluation.identity.get("endpoint"), self._trained.get(evaluation.digest)
        model = self._again(run) if run else evaluation.model
        where = ["--base-url", server["base_url"], "--model", server["model"]] if server else ["--model", model]
        words = ["selfcorrect", "eval", *where, "--task", evaluation.identity["task"]["name"]]
        words += ["--split", problems["split"], "--data-seed", problems["data_seed"], "--limit", problems["count"]]
        words += ["--turns", plan["turns"], "--max-tokens", plan["max_tokens"], "--seed", plan["seed"]]
        words += ["--temperature", plan["temperature"], "--samples", plan["samples"]]
        words += ["--sampled"] if plan["sampled_temperature"] is not None else ["--no-sampled"]
        words += ["--controls"] if plan["controls"] else []
        words += [] if server else ["--dtype", evaluation.identity["dtype"]]
        words += ["--out", self._again(evaluation)]
        return shlex.join(map(str, words))

    def of_figure(self, figure: Figure) -> list[tuple[str, str, list[str]]]:
        """For every row of a figure its name, its seeds, and the commands of its runs and evaluations."""
        if not figure.origins:  # the training curves are those of all runs
            return [
                (m.name, f"seeds {', '.join(map(str, m.seeds))}", [self.of_run(run) for run in m.runs])
                for m in self._methods
            ]
        return [(row.label, seeds_in_words(row), self._of_row(row)) for row in figure.origins]

    def _of_row(self, row: Row) -> list[str]:
        found: list[str] = []
        for source in (m.source for m in row.measured):
            if isinstance(source, Run):
                found.append(self.of_run(source))
            else:
                run = self._trained.get(source.digest)
                found += [self.of_run(run)] if run else []
                found.append(self.of_evaluation(source))
        return found

    def _again(self, source: Run | Evaluated) -> str:
        return str(Path(AGAIN) / source.path.resolve().relative_to(self._root))
