"""Working through the jobs of a comparison, one process a job; what is finished is kept, what was killed goes on."""

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
"""Seconds between two looks for a request to stop."""


class Job(Protocol):
    """One run or evaluation with a directory of its own; it may go on from another's (``parent``)."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def parent(self) -> Path | None: ...
    @property
    def finished(self) -> bool: ...
    def finish(self, callbacks: Callbacks) -> None:
        """Do what is left of it."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """How a job ended: its seconds of work here, and what went wrong, if anything did."""

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
    """Finish every job that is not finished; a job that fails takes those with it that go on from it, and no others.

    Raises:
        InterruptedRun: a stop was asked for; everything is saved.
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
                    _tell(Done(job, 0.0, f"not begun, as it goes on from {names[job.parent]}"), ended, on_done)
                elif job.parent not in unfinished:
                    waiting.remove(job)
                    running[executor.submit(finish, job)] = job
            found, _ = wait(running, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            stop = should_stop()
            if stop:
                stopping.set()
                wait([future for future in running if not future.cancel()])
                raise InterruptedRun("stopped; everything is saved, and the same command goes on.", signal=int(stop))
            for future in found:
                done = _result(future)
                unfinished.discard(running.pop(future).path)
                if done.error is not None:
                    failed.add(done.job.path)
                _tell(done, ended, on_done)
    return ended


def finish(job: Job) -> Done:
    """Do what is left of a job; in a worker."""
    begin = time.perf_counter()
    stopping = _Worker.stopping
    callbacks = Callbacks(should_stop=lambda: signal.SIGTERM if stopping is not None and stopping.is_set() else None)
    try:
        job.finish(callbacks)
    except SelfCorrectError as error:
        return Done(job, time.perf_counter() - begin, str(error))
    except Exception as error:  # the boundary between one run and all others
        log.exception("%s", job.name)
        return Done(job, time.perf_counter() - begin, f"{type(error).__name__}: {error}")
    return Done(job, time.perf_counter() - begin)


def _tell(done: Done, ended: list[Done], on_done: Callable[[Done], None]) -> None:
    ended.append(done)
    on_done(done)


def _result(future: Future[Done]) -> Done:
    try:
        return future.result()
    except BrokenProcessPool:
        raise TrainingError(
            "a worker was killed, perhaps for want of memory: lower --workers. The same command goes on."
        ) from None


# ---------------------------------------------------------------- processes


class _Worker:
    """What a worker knows: the event that asks all of them to stop."""

    stopping: Any = None


@contextmanager
def pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Processes that share the cores, and the event that stops their work; they start as they are needed.

    How many threads each has depends on ``workers`` alone, not on how much there is to do: threads change the last bits.
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
    """Set a worker up: signals are the parent's business, and without the parent there is nothing to work for."""
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
