"""Run the jobs of a comparison, one process per job; finished jobs are kept, killed ones resume."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from selfcorrect.errors import InterruptedRun, SelfCorrectError, TrainingError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runtime import keep_freed_memory

log = logging.getLogger("selfcorrect")

LOOK_S = 0.5
"""Seconds between two checks for a request to stop."""


class Job(Protocol):
    """One run or evaluation with its directory; it may fork another run (``parent``)."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def parent(self) -> Path | None: ...
    @property
    def finished(self) -> bool: ...
    def finish(self, callbacks: Callbacks) -> None:
        """Do what is left of the job."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a job: its seconds of work, and the error, if it failed."""

    job: Job
    seconds: float
    error: str | None = None


def work_through(
    jobs: Sequence[Job],
    *,
    workers: int,
    on_done: Callable[[Done], None] = lambda done: None,
    should_stop: Callable[[], int | None] = lambda: None,
) -> list[Done]:
    """Finish every unfinished job; a failing job takes only its descendants with it.

    Raises:
        InterruptedRun: a stop was requested; everything is saved.
        TrainingError: a worker was killed.
    """
    ended: list[Done] = []
    names = {job.path: job.name for job in jobs}
    waiting = [job for job in jobs if not job.finished]
    unfinished = {job.path for job in waiting}
    failed: set[Path] = set()
    with pool(workers) as (executor, stopping):
        running: dict[Future[Done], Job] = {}
        while waiting or running:
            for job in list(waiting):
                if job.parent is not None and job.parent in failed:
                    failed.add(job.path)
                    waiting.remove(job)
                    _report(Done(job, 0.0, f"not started: it depends on {names[job.parent]}"), ended, on_done)
                elif job.parent not in unfinished:
                    waiting.remove(job)
                    running[executor.submit(finish, job)] = job
            found, _ = wait(running, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            stop = should_stop()
            if stop:
                stopping.set()
                wait([future for future in running if not future.cancel()])
                raise InterruptedRun("stopped; everything is saved. Resume with the same command.", signal=int(stop))
            for future in found:
                done = _result(future)
                unfinished.discard(running.pop(future).path)
                if done.error is not None:
                    failed.add(done.job.path)
                _report(done, ended, on_done)
    return ended


def finish(job: Job) -> Done:
    """Do what is left of a job, in a worker process."""
    begin = time.perf_counter()
    stopping = _Worker.stopping
    callbacks = Callbacks(should_stop=lambda: signal.SIGTERM if stopping is not None and stopping.is_set() else None)
    try:
        job.finish(callbacks)
    except SelfCorrectError as error:
        return Done(job, time.perf_counter() - begin, str(error))
    except Exception as error:  # one failing run must not stop the others
        log.exception("%s", job.name)
        return Done(job, time.perf_counter() - begin, f"{type(error).__name__}: {error}")
    return Done(job, time.perf_counter() - begin)


def _report(done: Done, ended: list[Done], on_done: Callable[[Done], None]) -> None:
    ended.append(done)
    on_done(done)


def _result(future: Future[Done]) -> Done:
    try:
        return future.result()
    except BrokenProcessPool:
        raise TrainingError(
            "a worker was killed, perhaps because memory ran out: lower --workers. The same command resumes."
        ) from None


# ---------------------------------------------------------------- processes


class _Worker:
    """A worker's state: the event that asks all workers to stop."""

    stopping: Any = None


@contextmanager
def pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Yield processes that share the cores, started on demand, and the event that stops their work.

    A process's number of threads depends on ``workers`` alone, never on the number of jobs: threads change the last bits.
    """
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    threads = max(1, (os.cpu_count() or 1) // workers)
    executor = ProcessPoolExecutor(workers, context, _begin, (stopping, threads, os.getpid()))
    try:
        yield executor, stopping
    finally:
        stopping.set()
        executor.shutdown(cancel_futures=True)


def _begin(stopping: Any, threads: int, parent: int) -> None:
    """Set up a worker: it ignores signals, which the parent handles, and exits when the parent is gone."""
    import torch

    _Worker.stopping = stopping
    keep_freed_memory()
    torch.set_num_threads(threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
