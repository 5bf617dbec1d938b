"""Run the jobs of a comparison, each in a process or in several; finished jobs are kept, killed ones resume."""

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

from selfcorrect.distributed.world import agreed
from selfcorrect.errors import InterruptedRun, SelfCorrectError, TrainingError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runtime import keep_freed_memory, usable_cores

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
    processes: int = 1,
    on_done: Callable[[Done], None] = lambda done: None,
    should_stop: Callable[[], int | None] = lambda: None,
) -> list[Done]:
    """Finish every unfinished job, ``workers`` at a time; a failing job takes only its descendants with it.

    ``processes`` processes share each job.

    Raises:
        InterruptedRun: a stop was requested; everything is saved.
        TrainingError: a worker was killed.
    """
    ended: list[Done] = []
    names = {job.path: job.name for job in jobs}
    waiting = [job for job in jobs if not job.finished]
    unfinished = {job.path for job in waiting}
    failed: set[Path] = set()
    with pool(workers, processes) as (executor, stopping):
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
    """Do what is left of a job, in a worker process or in the processes that it starts."""
    begin = time.perf_counter()
    error: str | None = None
    try:
        if _Worker.processes == 1:
            _finish_here(job)
        else:
            error = _finish_on(_Worker.processes, job)
    except SelfCorrectError as failure:
        error = str(failure)
    except Exception as failure:  # one failing run must not stop the others
        log.exception("%s", job.name)
        error = f"{type(failure).__name__}: {failure}"
    return Done(job, time.perf_counter() - begin, error)


def _finish_here(job: Job) -> None:
    stopping = _Worker.stopping
    job.finish(Callbacks(should_stop=lambda: signal.SIGTERM if stopping is not None and stopping.is_set() else None))


def _finish_on(processes: int, job: Job) -> str | None:
    """Finish a job in several new processes; return the error that all of them have."""
    from selfcorrect.distributed.launch import on_processes

    return on_processes(processes, _finish_share, job, _Worker.stopping, _Worker.threads, os.getpid())[0]


def _finish_share(job: Job, stopping: Any, threads: int, parent: int) -> str | None:
    """Finish a job as one of several processes."""
    _begin(stopping, threads, parent)
    try:
        _finish_here(job)
    except Exception as error:
        if not agreed(error):
            raise  # this process alone failed: the launcher ends the others, which may be waiting for it
        return str(error) if isinstance(error, SelfCorrectError) else f"{type(error).__name__}: {error}"
    return None


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
    """A worker's state: the event that asks all workers to stop, and how it does a job."""

    stopping: Any = None
    threads: int = 1
    processes: int = 1


@contextmanager
def pool(workers: int, processes: int = 1) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Yield workers that share the cores, started on demand, and the event that stops their work.

    Each does a job by itself, or in ``processes`` processes. Their numbers alone decide the threads of a process, never the
    number of jobs: threads change the last bits.
    """
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    threads = _threads(workers * processes)
    executor = ProcessPoolExecutor(workers, context, _begin, (stopping, threads, os.getpid(), processes))
    try:
        yield executor, stopping
    finally:
        stopping.set()
        executor.shutdown(cancel_futures=True)


def _threads(processes: int) -> int:
    """Return the threads of each process: the usable cores are divided, and `OMP_NUM_THREADS` is not exceeded."""
    import torch

    share = max(1, usable_cores() // processes)
    return min(share, torch.get_num_threads()) if "OMP_NUM_THREADS" in os.environ else share


def _begin(stopping: Any, threads: int, parent: int, processes: int = 1) -> None:
    """Set up a worker: it ignores signals, which the parent handles, and exits when the parent is gone."""
    import torch

    _Worker.stopping, _Worker.threads, _Worker.processes = stopping, threads, processes
    keep_freed_memory()
    torch.set_num_threads(threads)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
