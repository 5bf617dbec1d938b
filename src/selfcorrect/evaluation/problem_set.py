"""The problems of an evaluation, and how they are presented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfcorrect.config.evaluation import EvalSettings
from selfcorrect.config.schema import TaskConfig
from selfcorrect.errors import ConfigError
from selfcorrect.script import Instructions, Script
from selfcorrect.storage.evaluation_dir import SCHEMA, plain
from selfcorrect.storage.provenance import data_digest
from selfcorrect.tasks import Task, get_task
from selfcorrect.tasks.rows import RowsTask, VerifierFunction
from selfcorrect.types import Problem, Split
from selfcorrect.zoo.resolve import LIVE


@dataclass(frozen=True, eq=False)
class ProblemSet:
    """The problems, the script that presents them, and their origin."""

    task: Task
    script: Script
    problems: Sequence[Problem]
    data_seed: int
    defaults: TaskConfig
    source: Mapping[str, Any]

    @classmethod
    def of(
        cls, task: Any, verifier: VerifierFunction | None, settings: EvalSettings, defaults: TaskConfig | None
    ) -> ProblemSet:
        defaults = defaults or TaskConfig()
        options = {**defaults.options, **settings.task_options}
        source = {"name": task if isinstance(task, str) else LIVE, "options": plain(options)}
        task = _task(task, verifier, options)
        script = _script(
            task.script, settings.turns, settings.revise or defaults.revise, settings.system or defaults.system
        )
        data_seed = defaults.data_seed if settings.data_seed is None else settings.data_seed
        problems = task.problems(Split(settings.split), seed=data_seed, limit=settings.limit)
        return cls(task, script, problems, data_seed, defaults, source)

    def identity(self, split: str) -> dict[str, Any]:
        """Return the record of the task, the problems and the script."""
        problems = {
            "split": split,
            "data_seed": self.data_seed,
            "count": len(self.problems),
            "digest": data_digest(self.problems),
        }
        task = {"name": self.task.name, "version": self.task.version}
        return {"schema": SCHEMA, "task": task, "problems": problems, "script": self.script.to_json()}


def _task(task: Any, verifier: VerifierFunction | None, options: Mapping[str, Any]) -> Task:
    if isinstance(task, str):
        return get_task(task, options)
    if isinstance(task, Task):
        return task
    if verifier is None:
        raise ConfigError("rows need a verifier: pass verifier=function(text, reference, row).")
    return RowsTask(None, verifier, test_rows=task)


def _script(own: Script, turns: int, revise: Instructions | None, system: str | None) -> Script:
    return replace(own, turns=turns, revise=revise or own.revise, system=system or own.system)
