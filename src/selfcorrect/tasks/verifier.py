"""Batch verification, safe from verifiers that hang, crash or raise.

"Incorrect", "no answer", "timed out" and "verifier failed" are four different outcomes. The last two say nothing about
the answer. Both are counted, and too many failures stop the run: rewards of 0 from a broken verifier would train on
noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager

from selfcorrect.errors import ConfigError, VerifierError
from selfcorrect.runtime import usable_cores
from selfcorrect.tasks.base import Task
from selfcorrect.tasks.verifier_pool import WorkerPool, judge
from selfcorrect.types import Outcome, Problem, Verdict

MIN_COUNTED = 20
"""The smallest number of answers whose fraction of failures may stop a run."""


class Verifier(AbstractContextManager["Verifier"]):
    """A verifier of batches of answers, by `Task.verify`.

    The verifier of a trusted task runs in this process. Any other runs in at most ``workers`` processes (by default
    the usable CPUs, at most 8). They start with the first batch, and `close` kills them. Each answer may take
    ``time_limit_s`` seconds of wall-clock time; starting and importing do not count. Verdicts do not depend on the
    order of the answers or on ``workers``, except that an answer close to the time limit may or may not make it.

    ``counts`` holds the number of times each outcome occurred so far. Use it from one thread at a time.

    >>> with Verifier(task) as verifier:                                       # doctest: +SKIP
    ...     verdicts = verifier.verify([(problem, "42")])

    Raises:
        ConfigError: an argument is out of range, or the task cannot be pickled.
    """

    def __init__(
        self, task: Task, *, time_limit_s: float = 5.0, workers: int | None = None, failure_limit: float = 0.05
    ) -> None:
        if not 0 < time_limit_s < float("inf"):
            raise ConfigError(f"time_limit_s = {time_limit_s}: a verifier needs a finite limit above 0 seconds.")
        if workers is not None and workers < 1:
            raise ConfigError(f"workers = {workers}: at least 1 verifier process is needed.")
        if not 0 <= failure_limit <= 1:
            raise ConfigError(f"failure_limit = {failure_limit}: give a fraction of the answers, from 0 to 1.")
        self.counts: Counter[Outcome] = Counter()
        self._task = task
        self._failure_limit = failure_limit
        self._pool = (
            None
            if task.trusted_verifier
            else WorkerPool(task, time_limit_s=time_limit_s, size=workers or default_workers())
        )

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker processes. A later `verify` starts new ones."""
        if self._pool is not None:
            self._pool.close()

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Return the verdict of each (problem, answer), in order; equal answers to one problem are judged once.

        Raises:
            VerifierError: more than ``failure_limit`` of these answers, or of all so far, got ``VERIFIER_FAILED``
                (checked from `MIN_COUNTED` answers on), or no verifier process can be started.
        """
        distinct = {(id(problem), text): (problem, text) for problem, text in items}
        if self._pool is None:
            judged = [judge(self._task, problem, text) for problem, text in distinct.values()]
        else:
            judged = self._pool.run(list(distinct.values()))
        by_answer = dict(zip(distinct, judged, strict=True))
        verdicts = [by_answer[id(problem), text] for problem, text in items]
        self.counts.update(verdict.outcome for verdict in verdicts)
        self._refuse_too_many_failures(items, verdicts)
        return verdicts

    def _refuse_too_many_failures(self, items: Sequence[tuple[Problem, str]], verdicts: list[Verdict]) -> None:
        failed = [i for i, verdict in enumerate(verdicts) if verdict.outcome is Outcome.VERIFIER_FAILED]
        shares = (
            (len(failed), len(verdicts), "answers of this batch"),
            (self.counts[Outcome.VERIFIER_FAILED], self.counts.total(), "answers so far"),
        )
        for bad, n, which in shares:
            if failed and n >= MIN_COUNTED and bad > self._failure_limit * n:
                raise VerifierError(
                    f"the verifier of task {self._task.name!r} failed on {bad} of {n} {which}; the first of this batch "
                    f"was problem {items[failed[0]][0].id!r}: {verdicts[failed[0]].detail}. At most "
                    f"{self._failure_limit:.2%} may fail (failure_limit = {self._failure_limit:g}), because an answer "
                    f"without a verdict earns no reward, correct or not. Repair the verifier; a text that it cannot "
                    f"read must be WRONG or NO_ANSWER, not an exception."
                )


def default_workers(processes: int = 1) -> int:
    """Return the usable CPUs, at most 8, for each of ``processes`` on this machine that verify at the same time."""
    return max(1, min(8, usable_cores() // processes))
