"""The commands that repeat the runs and evaluations of a page, each in its own directory below ``again``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfcorrect.errors import SelfCorrectError
from selfcorrect.report.cells import seeds_in_words
from selfcorrect.report.figures import Figure
from selfcorrect.report.methods import Method
from selfcorrect.report.rows import Row
from selfcorrect.report.sources import Evaluated, Run
from selfcorrect.script import Script
from selfcorrect.tasks.base import scripted

AGAIN = "again"


class Commands:
    """The commands for all runs and evaluations of a page; together, because equal names need different directories."""

    def __init__(self, methods: Sequence[Method], evaluations: Sequence[Evaluated]) -> None:
        runs = [run for method in methods for run in method.runs]
        self._methods = methods
        paths = [*(run.path for run in runs), *(evaluation.path for evaluation in evaluations)]
        parents = {path.resolve().parent for path in paths}
        self._root = os.path.commonpath(parents) if parents else ""
        self._trained = {run.digests[run.final]: run for run in reversed(runs) if run.final in run.digests}

    def of_run(self, run: Run) -> str:
        """Return the command that trains a run from its recorded settings."""
        return shlex.join(["selfcorrect", "train", str(run.path / "config.toml"), "--out", self._again(run)])

    def of_evaluation(self, evaluation: Evaluated) -> str:
        """Return the command that repeats an evaluation; a model trained on this page comes from the repeated run."""
        plan, problems = evaluation.plan, evaluation.identity["problems"]
        server, run = evaluation.identity.get("endpoint"), self._trained.get(evaluation.digest)
        model = self._again(run) if run else evaluation.model
        where = _server_options(server) if server else ["--model", model]
        words = ["selfcorrect", "eval", *where, *_task_options(evaluation.identity)]
        words += ["--split", problems["split"], "--data-seed", problems["data_seed"], "--limit", problems["count"]]
        words += ["--turns", plan["turns"], "--max-tokens", plan["max_tokens"], "--seed", plan["seed"]]
        words += ["--temperature", plan["temperature"], "--samples", plan["samples"]]
        words += [word for text in plan.get("stop", ()) for word in ("--stop", _escaped(text))]
        words += ["--sampled"] if plan["sampled_temperature"] is not None else ["--no-sampled"]
        words += ["--controls"] if plan["controls"] else []
        words += ["--dtype", evaluation.identity["dtype"]] if not server and "dtype" in evaluation.identity else []
        words += ["--out", self._again(evaluation)]
        return shlex.join(map(str, words))

    def of_figure(self, figure: Figure) -> list[tuple[str, str, list[str]]]:
        """Return (name, seeds, commands of the runs and evaluations) for every row of a figure."""
        if not figure.origins:  # the training curves show all runs
            return [
                (m.name, f"seeds {', '.join(map(str, m.seeds))}", [self.of_run(run) for run in m.runs])
                for m in self._methods
            ]
        return [(row.label, seeds_in_words(row), self._of_row(row)) for row in figure.origins]

    def _of_row(self, row: Row) -> list[str]:
        commands: list[str] = []
        for source in (m.source for m in row.measured):
            if isinstance(source, Run):
                commands.append(self.of_run(source))
            else:
                run = self._trained.get(source.digest)
                commands += [self.of_run(run)] if run else []
                commands.append(self.of_evaluation(source))
        return commands

    def _again(self, source: Run | Evaluated) -> str:
        return str(Path(AGAIN) / source.path.resolve().relative_to(self._root))


def _task_options(identity: Mapping[str, Any]) -> list[str]:
    """Return the options of an evaluation's task: its name, its own options, and a script that is not the task's."""
    source = identity.get("task_source", {})
    name, options = source.get("name") or identity["task"]["name"], source.get("options", {})
    recorded, own = identity.get("script", {}), _own_script(name, options)
    given = {key: recorded[key] for key in ("revise", "system") if key in recorded and recorded[key] != own[key]}
    words = ["--task", name]
    words += [word for key, value in options.items() for word in ("--task-option", f"{key}={_toml(value)}")]
    return words + [
        word for key, value in given.items() if key not in options for word in ("--set", f"{key}={_toml(value)}")
    ]


def _own_script(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the script of an installed task; of a task with options, which may name files or code, the general one."""
    if name.isidentifier() and not options:
        with suppress(SelfCorrectError):
            return scripted(name).script.to_json()
    return Script().to_json()


def _toml(value: Any) -> str:
    """Return a value in TOML, as the command line takes it.

    >>> _toml({"path": "a.csv", "fields": ["A", "B"], "shares": [8, 1.5], "trusted": True})
    '{ "path" = "a.csv", "fields" = ["A", "B"], "shares" = [8, 1.5], "trusted" = true }'
    """
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Return a text as an option without quotes takes it."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def _server_options(server: Mapping[str, str]) -> list[str]:
    tokens = ["--api", server["api"], "--tokenizer", server["tokenizer"]] if "tokenizer" in server else []
    return ["--base-url", server["base_url"], "--model", server["model"], *tokens]
