"""Demonstrations: written responses to training problems, from the task's own solutions or from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from selfcorrect.config.sampling import RolloutConfig
from selfcorrect.config.stages import DemonstrationStage
from selfcorrect.documents import is_unicode
from selfcorrect.errors import ConfigError
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.rows import refuse
from selfcorrect.tasks.sources import read_lines
from selfcorrect.types import Problem


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response that the model is to write to a training problem."""

    problem: Problem
    response: str


def demonstrations_of(
    name: str, stage: DemonstrationStage, task: Task, problems: Sequence[Problem]
) -> list[Demonstration]:
    """Return the demonstrations of the stage called ``name``; ``problems`` are the run's training problems.

    Raises:
        ConfigError: the task has no solutions, and the stage names no file.
        DataError: the file cannot be read, or lines are malformed or belong to no training problem.
    """
    if stage.demonstrations is not None:
        return _of_file(Path(stage.demonstrations), problems)
    solution = getattr(task, "solution", None)
    if solution is None:
        raise ConfigError(
            f"stages.{name}.method = 'sft' trains on demonstrations, but task {task.name!r} has no solutions, only answers: set "
            f"stages.{name}.demonstrations to a JSON Lines file of responses (docs/recipes.md), or take a task with solutions, "
            "such as worked_steps."
        )
    return [Demonstration(problem, solution(problem)) for problem in problems]


def _of_file(path: Path, problems: Sequence[Problem]) -> list[Demonstration]:
    errors: list[str] = []
    rows = read_lines(path, path.name, errors).rows
    by_id, by_prompt = {p.id: p for p in problems}, {p.prompt: p for p in problems}
    found = []
    for where, row in rows:
        try:
            found.append(Demonstration(_problem(row, by_id, by_prompt), _text(row, "response")))
        except ValueError as error:
            errors.append(f"{where}: {error}")
    if not rows and not errors:
        errors.append(f"{path.name}: there is no line; at least one demonstration is needed")
    refuse(str(path), errors, what="demonstrations in")
    return found


def _problem(row: Mapping[str, Any], by_id: Mapping[str, Problem], by_prompt: Mapping[str, Problem]) -> Problem:
    key, known = ("id", by_id) if "id" in row else ("prompt", by_prompt)
    if key not in row:
        raise ValueError(
            f"neither 'id' nor 'prompt' among {', '.join(map(repr, row)) or 'no fields'}: name the problem"
        )
    problem = known.get(_text(row, key))
    if problem is None:
        raise ValueError(
            f"{key} = {row[key]!r:.80} is none of the run's {len(by_id):,} training problems: leave it out, or raise "
            "task.train_problems"
        )
    return problem


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise ValueError(f"{key} = {value!r:.60} is no text: write a JSON string that is not blank")
    return value


def check_demonstrations(
    name: str, demonstrations: Iterable[Demonstration], chat: ChatFormat, rollout: RolloutConfig
) -> None:
    """Reject demonstrations that the model could never write, because sampling would end before they do.

    Raises:
        ConfigError: one is longer than ``rollout.max_tokens``, or a stop text ends it early.
    """
    for each in demonstrations:
        tokens, where = (
            len(chat.given_ids(each.response)),
            f"stage {name!r}: the demonstration of problem {each.problem.id!r}",
        )
        if tokens > rollout.max_tokens:
            raise ConfigError(
                f"{where} has {tokens} tokens with the end of the turn, and a turn at most rollout.max_tokens = "
                f"{rollout.max_tokens}: raise it, or leave out long demonstrations."
            )
        for stop in rollout.stop:
            if stop in each.response and each.response.index(stop) + len(stop) < len(each.response.rstrip()):
                raise ConfigError(
                    f"{where} has text behind {stop!r}, which ends a turn (rollout.stop): unset it, or change the demonstration."
                )


def digest_of(demonstrations: Iterable[Demonstration]) -> str:
    """Return a digest of the demonstrations in their order."""
    digest = blake2b(digest_size=16)
    for each in demonstrations:
        digest.update(repr((each.problem.id, each.problem.prompt, each.response)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
