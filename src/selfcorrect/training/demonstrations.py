"""Demonstrations: written responses to training problems, from the task's own solutions or from a file, and transcripts.

A *response* belongs to a training problem, and the task's script asks for it. A *transcript* (`selfcorrect.training.transcripts`)
brings its own questions, so a file of transcripts can teach a skill that the task does not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from selfcorrect.config.sampling import RolloutConfig
from selfcorrect.config.stages import DemonstrationStage
from selfcorrect.errors import ConfigError, ContextError, DataError
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.rows import refuse
from selfcorrect.tasks.sources import read_lines
from selfcorrect.training.sample import Segment, TrainingSample
from selfcorrect.training.transcripts import Transcript, transcript_of, written_text
from selfcorrect.types import Problem


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response that the model is to write to a training problem."""

    problem: Problem
    response: str

    @property
    def where(self) -> str:
        """Return a name for messages."""
        return f"the demonstration of problem {self.problem.id!r}"

    @property
    def trained(self) -> list[str]:
        """Return the texts that the model is to write."""
        return [self.response]

    def sample(self, chat: ChatFormat) -> TrainingSample:
        """Return a conversation of one trained turn, with the token that ends it."""
        prompt = chat.prompt(self.problem.prompt)
        return TrainingSample.of_segments([Segment(prompt, chat.given_ids(self.response), turn=0)])


AnyDemonstration = Demonstration | Transcript
"""What a stage with ``method = "sft"`` trains on."""


def demonstrations_of(
    name: str, stage: DemonstrationStage, task: Task, problems: Sequence[Problem]
) -> list[AnyDemonstration]:
    """Return the demonstrations of the stage called ``name``; ``problems`` are the run's training problems.

    Raises:
        ConfigError: the task has no solutions, and the stage names no file.
        DataError: the file cannot be read, or lines are malformed, or a response belongs to no training problem.
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


def _of_file(path: Path, problems: Sequence[Problem]) -> list[AnyDemonstration]:
    errors: list[str] = []
    rows = read_lines(path, path.name, errors).rows
    by_id, by_prompt = {p.id: p for p in problems}, {p.prompt: p for p in problems}
    found: list[AnyDemonstration] = []
    for where, row in rows:
        try:
            found.append(_shown(row, by_id, by_prompt))
        except ValueError as error:
            errors.append(f"{where}: {error}")
    if not rows and not errors:
        errors.append(f"{path.name}: there is no line; at least one demonstration is needed")
    refuse(str(path), errors, what="demonstrations in")
    return found


def _shown(row: Mapping[str, Any], by_id: Mapping[str, Problem], by_prompt: Mapping[str, Problem]) -> AnyDemonstration:
    if "messages" in row:
        return transcript_of(row["messages"])
    return Demonstration(_problem(row, by_id, by_prompt), written_text(row.get("response"), "response"))


def _problem(row: Mapping[str, Any], by_id: Mapping[str, Problem], by_prompt: Mapping[str, Problem]) -> Problem:
    key, known = ("id", by_id) if "id" in row else ("prompt", by_prompt)
    if key not in row:
        raise ValueError(
            f"neither 'id' nor 'prompt' among {', '.join(map(repr, row)) or 'no fields'}: name the problem, or give 'messages'"
        )
    problem = known.get(written_text(row[key], key))
    if problem is None:
        raise ValueError(
            f"{key} = {row[key]!r:.80} is none of the run's {len(by_id):,} training problems: leave it out, or raise "
            "task.train_problems"
        )
    return problem


def check_demonstrations(
    name: str, demonstrations: Iterable[AnyDemonstration], chat: ChatFormat, rollout: RolloutConfig, context_limit: int
) -> None:
    """Reject demonstrations that the model could never write, because sampling would end before they do.

    Raises:
        ConfigError: a reply is longer than ``rollout.max_tokens``, or a stop text ends it early.
        ContextError: a transcript is longer than the model's context, ``context_limit`` tokens.
    """
    for each in demonstrations:
        where = f"stage {name!r}: {each.where}"
        for text in each.trained:
            _check_reply(where, text, len(chat.given_ids(text)), rollout)
        if isinstance(each, Transcript) and (tokens := len(each.sample(chat))) > context_limit:
            raise ContextError(
                f"{where} has {tokens} tokens, but the model's context is {context_limit}: leave it out, or split it."
            )


def _check_reply(where: str, text: str, tokens: int, rollout: RolloutConfig) -> None:
    if tokens > rollout.max_tokens:
        raise ConfigError(
            f"{where} has {tokens} tokens with the end of the turn, and a turn at most rollout.max_tokens = "
            f"{rollout.max_tokens}: raise it, or leave out long demonstrations."
        )
    for stop in rollout.stop:
        if stop in text and text.index(stop) + len(stop) < len(text.rstrip()):
            raise ConfigError(
                f"{where} has text behind {stop!r}, which ends a turn (rollout.stop): unset it, or change the demonstration."
            )


def check_unseen(
    name: str, demonstrations: Iterable[AnyDemonstration], measured: Mapping[str, Sequence[Problem]], script: Script
) -> None:
    """Reject transcripts that show a problem on which the model is measured.

    Args:
        name: the stage's name.
        demonstrations: what it trains on.
        measured: the problems that measure the model, by what they are.
        script: how the task asks for the first attempt.

    Raises:
        DataError: a user's message is such a problem, plain or as the script asks for it.
    """
    transcripts = [each for each in demonstrations if isinstance(each, Transcript)]
    if not transcripts:
        return
    first = script.with_turns(1)
    asked = {
        text: what
        for what, problems in measured.items()
        for p in problems
        for text in (p.prompt, first.user_turns(p.prompt)[0].text)
    }
    for each in transcripts:
        for text in each.users:
            if text in asked:
                raise DataError(
                    f"stage {name!r}: {each.where} asks {text!r:.80}, which is one of the run's {asked[text]} problems: leave "
                    "it out, or the model would be measured on what it was shown."
                )


def digest_of(demonstrations: Iterable[AnyDemonstration]) -> str:
    """Return a digest of the demonstrations in their order."""
    digest = blake2b(digest_size=16)
    for each in demonstrations:
        digest.update(repr(_content(each)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _content(each: AnyDemonstration) -> tuple[Any, ...]:
    """Return what a demonstration holds, as plain values: names of fields may change, digests may not."""
    if isinstance(each, Transcript):
        return each.system, each.users, tuple((reply.text, reply.trained) for reply in each.replies)
    return each.problem.id, each.problem.prompt, each.response
