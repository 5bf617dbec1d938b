"""The task ``verifiers:ENV``: an installed single-turn environment of the library `verifiers` (docs/environments.md)."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from selfcorrect.config.settings import MAX_PROBLEMS
from selfcorrect.errors import ConfigError
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.environments.example import Environment, Example
from selfcorrect.tasks.environments.loading import Loaded, Request, load, open_environment
from selfcorrect.tasks.rows import Fields, RowsTask, Source
from selfcorrect.tasks.splits import SHARES
from selfcorrect.types import Outcome, Problem, Split, Verdict

REVISE = (
    "There might be an error in the answer above because of lack of understanding of the question. Please correct the "
    "error, if any, and rewrite the answer in the form that was asked for."
)
TOLERANCE = 1e-9
"""How far a reward may lie below the threshold: weights such as 0.7 + 0.2 + 0.1 do not add up to 1 exactly."""


class VerifiersTask(RowsTask):
    """Problems and verdicts of an environment of the library `verifiers` with one turn and a rubric.

    An answer is correct if its reward, the weighted sum of the rubric's scores, is at least ``threshold``. The rubric gets the
    whole completion, reasoning included, because its parser knows how to read it. It runs in worker processes; what it prints is
    dropped, and an exception in a reward function is a failed verification, not a score of 0.

    An environment's rows for evaluation are the test split, and its other rows are shared by training (90%) and development
    (10%), by the hash of the problem. Without rows for evaluation, all of them are shared, 80 / 10 / 10%; see ``notes``.

    Args:
        variant: the environment's name: that of its installed package.
        threshold: the lowest reward of a correct answer, above 0.
        score: the name of a reward function, whose own score counts in place of the weighted sum.
        evaluation: other arguments with which the environment is made again, for its rows as the test split
            (``{ split = "test" }``).
        arguments: the environment's arguments whose names are also options of this task.
        size: read at most this many rows for training, and as many for evaluation.
        reference_field: the column, or the field of a task's data, that holds the reference.
        form: how a correct answer is written, for `tasks check`: ``{answer}`` stands for the reference. By default what the
            environment's parser reads.
        drop_repeated: keep the first of equal problems (test before dev before train) instead of rejecting the data.
        first, revise, system, turns: the script; see `Script`. The environment's own system message is the default.
        options: the arguments of the environment (of ``load_environment``, or its taskset's settings).

    Raises:
        ConfigError: the environment is not installed, rejects its arguments, has several turns or tools, or needs another model.
        DataError: it fails, its problems are malformed or repeated, or two splits share a problem.
    """

    reads_reasoning = True

    def __init__(
        self,
        variant: str = "",
        *,
        threshold: float = 1.0,
        score: str | None = None,
        evaluation: dict[str, Any] | None = None,
        arguments: dict[str, Any] | None = None,
        size: int | None = None,
        reference_field: str = "answer",
        form: str | None = None,
        drop_repeated: bool = False,
        first: str = "{prompt}",
        revise: Instructions = REVISE,
        system: str | None = None,
        turns: int = 2,
        **options: Any,
    ) -> None:
        if not 0 < threshold < math.inf:
            raise ConfigError(f"threshold = {threshold}: the lowest correct reward must be a number above 0.")
        if size is not None and not 1 <= size <= MAX_PROBLEMS:
            raise ConfigError(f"size = {size}: read 1 to {MAX_PROBLEMS:,} rows.")
        if form is not None and "{answer}" not in form:
            raise ConfigError(f"form = {form!r} lacks {{answer}}: it says where the reference stands in an answer.")
        self._variant, self._arguments = variant, {**options, **(arguments or {})}
        self._threshold, self._score, self._size = threshold, score, size
        self._env: Environment | None = None
        request = Request(variant, self._arguments, evaluation, size, reference_field, score)
        loaded = load(request)
        own, self.notes = _told(loaded)
        self._form = form or loaded.form
        shared = loaded.test is None
        self._set_up(
            _source("train", loaded.train),
            None,
            _source("eval", loaded.test),
            verifier=_nothing,
            fields=Fields(),
            script=Script(first=first, revise=revise, system=own if system is None else system, turns=turns),
            name=f"verifiers:{variant}",
            trusted=False,
            make=partial(_problem, system=own),
            shares=SHARES if shared else {Split.TRAIN: 90, Split.DEV: 10, Split.TEST: 0},
            drop_repeated=drop_repeated,
            errors=loaded.errors,
        )
        settings = json.dumps([self._arguments, evaluation, threshold, score], sort_keys=True, default=repr)
        digest = blake2b(f"{settings}{self.version}".encode(), digest_size=6).hexdigest()
        self.version = f"1+{loaded.code}+{digest}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None, "_problems": {}}

    def more_problems(self, split: Split) -> str:
        """Return what gives a split more problems: the rows that ``size`` left out, or another environment."""
        return "choose an environment that has more" if self._size is None else "raise the task's option size"

    def prepare(self) -> None:
        """Import and make the environment before the clock of any answer runs."""
        self._opened()

    def verify(self, problem: Problem, text: str) -> Verdict:
        if not text.strip():
            return Verdict(Outcome.NO_ANSWER, detail="blank text")
        env = self._opened()
        with _unheard():
            found = env.scores(problem.data, text)
            answer = env.extracted(text) or text.strip()
        if self._score is None:
            reward = found.reward
        elif self._score in found.by_name:
            reward = found.by_name[self._score]
        else:
            raise ValueError(
                f"score = {self._score!r}, but the environment scored {', '.join(found.by_name) or 'nothing'}"
            )
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}, not a number")
        right = reward >= self._threshold - TOLERANCE
        scores = ", ".join(f"{name} {value:.4g}" for name, value in found.by_name.items())
        return Verdict(
            Outcome.CORRECT if right else Outcome.INCORRECT,
            answer,
            "" if right else f"reward {reward:.4g} ({scores})"[:200],
        )

    def answer(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it; "" for a problem without a reference."""
        return self._form.replace("{answer}", problem.reference) if problem.reference else ""

    def corrupt(self, problem: Problem) -> str:
        return self._form.replace("{answer}", corrupt_text(problem.reference))

    def _opened(self) -> Environment:
        if self._env is None:
            with _unheard():
                self._env = open_environment(self._variant, self._arguments)
        return self._env


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Drop what is printed: it may repeat a model's text, which could steer the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _nothing(text: str, reference: str, row: Mapping[str, Any]) -> Verdict:
    """Stand for the verifier of a `RowsTask`, which `VerifiersTask.verify` replaces."""
    raise NotImplementedError


def _source(label: str, examples: Sequence[tuple[str, Example]] | None) -> Source | None:
    return None if examples is None else Source(label, [(where, {"example": example}) for where, example in examples])


def _told(loaded: Loaded) -> tuple[str | None, tuple[str, ...]]:
    """Return the system message that all problems share, and what a user should know about the problems."""
    examples = [example for _, example in [*(loaded.train or ()), *(loaded.test or ())]]
    systems = {_system(example) for example in examples}
    notes = []
    if loaded.test is None:
        notes.append(
            "The environment has no rows for evaluation: its problems are shared by a hash, 80/10/10% to train/dev/test, so "
            "results on test are not those of the environment's own evaluation."
        )
    if loaded.train is None:
        notes.append("The environment has rows for evaluation only: all of them are the test split.")
    if len(systems) > 1:
        notes.append("System messages differ between problems: each stands at the head of its problem.")
    if any(len(_said(example)) > 1 for example in examples):
        notes.append("Prompts of several messages (few-shot examples) are written into one message, with their roles.")
    return next(iter(systems)) if len(systems) == 1 else None, tuple(notes)


def _system(example: Example) -> str | None:
    return "\n\n".join(text for role, text in example.chat if role == "system") or None


def _said(example: Example) -> list[tuple[str, str]]:
    return [(role, text) for role, text in example.chat if role != "system"]


def _problem(where: str, row: Mapping[str, Any], *, system: str | None) -> Problem:
    """Return an example's problem; its system message is part of it unless all problems share it."""
    example: Example = row["example"]
    said = _said(example)
    text = said[0][1] if len(said) == 1 else "\n\n".join(f"{role.title()}: {text}" for role, text in said)
    head = _system(example)
    if system is None and head is not None:
        text = f"{head}\n\n{text}"
    return Problem(where, text, example.reference, None, example.data)
