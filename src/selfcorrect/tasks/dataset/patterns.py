"""Regular expressions of settings: how they are read, and how rows are read with them.

A pattern may come with somebody else's settings, and may take exponential time for a short text. Python's `re` has no time
limit and cannot be interrupted from the same process. What is matched therefore runs in a verifier process: answers in those
of the task (`tasks.verifier`), rows in one of their own (`Bounded`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.verifier_pool import WorkerPool, limit_memory
from selfcorrect.types import Outcome, Problem, Verdict

LENGTH_LIMIT = 1_000
"""The longest pattern in characters, because compiling one takes a time that grows with its length."""
TIME_LIMIT_S = 5.0
"""The seconds that a pattern may take for one row."""


def compiled_pattern(pattern: str, option: str) -> re.Pattern[str]:
    """Return the compiled pattern; `re` keeps it.

    Raises:
        ConfigError: it is not a regular expression, or too long.
    """
    if len(pattern) > LENGTH_LIMIT:
        raise ConfigError(
            f"{option} = {pattern!r:.60}... has {len(pattern):,} characters; a pattern has at most {LENGTH_LIMIT:,}."
        )
    try:
        return re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{option} = {pattern!r:.200} is not a regular expression: {error}.") from None


def last_group(pattern: re.Pattern[str], text: str) -> str | None:
    """Return the first group that took part in the last match, or all of a match without groups; None without a match."""
    found = None
    for found in pattern.finditer(text):  # noqa: B007  (the last one is wanted)
        pass
    if found is None:
        return None
    return next((group for group in found.groups() if group is not None), None if found.re.groups else found.group())


class LastMatch:
    """A reader of rows: what a pattern's last match in a text holds, as the ``extracted`` of a verdict."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __call__(self, problem: Problem, text: str) -> Verdict:
        found = last_group(compiled_pattern(self.pattern, "reference_pattern"), text)
        return Verdict(Outcome.NO_ANSWER if found is None else Outcome.CORRECT, found)


class Bounded(AbstractContextManager["Bounded"]):
    """A function of a problem and a text that runs in a process of its own, within limits of time and memory.

    ``option`` and ``pattern`` name the setting in messages.
    """

    def __init__(self, function: Callable[[Problem, str], Verdict], option: str, pattern: str) -> None:
        self._pool = WorkerPool(_Reader(function), time_limit_s=TIME_LIMIT_S, size=1)
        self._setting = f"{option} = {pattern!r:.200}"

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Return the function's verdict.

        Raises:
            ConfigError: it takes too long, or too much memory.
        """
        [verdict] = self._pool.run([(problem, text)])
        if verdict.outcome in (Outcome.TIMED_OUT, Outcome.VERIFIER_FAILED):
            raise ConfigError(
                f"{self._setting} cannot be matched against {text!r:.80} ({problem.id}): {verdict.detail}. A repetition "
                "within a repetition, such as (a+)+, can take exponential time: write it without."
            )
        return verdict

    def __exit__(self, *raised: object) -> None:
        self._pool.close()


class _Reader:
    """What a verifier process needs to know of a function."""

    name = "dataset"
    reads_reasoning = True
    """The text is a row's, or an answer that was written from one."""

    def __init__(self, function: Callable[[Problem, str], Verdict]) -> None:
        self.verify = function

    def prepare(self) -> None:
        limit_memory()
