"""Working through the cells of a comparison, one process a cell; what is finished is kept, what was killed goes on."""

from __future__ import annotations

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
from typing import Any

from selfcorrect.console import keep_freed_memory
from selfcorrect.errors import InterruptedRun, SelfCorrectError, TrainingError
from selfcorrect.extension import extend
from selfcorrect.paper.further import Further
from selfcorrect.paper.plan import Cell
from selfcorrect.run import Callbacks, resume, train

LOOK_S = 0.5
"""Seconds between two looks for a request to stop."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a cell ended: its seconds of work here, and what went wrong, if anything did."""

    cell: Cell | Further
    seconds: float
    error: str | None = None


def work_through(
    cells: Sequence[Cell | Further],
    *,
    workers: int,
    on_done: Callable[[Done], None] = lambda done: None,
    should_stop: Callable[[], int | None] = lambda: None,
) -> list[Done]:
    """Finish every cell that is not finished; a cell that fails takes those with it that go on from it, and no others.

    Raises:
        InterruptedRun: a stop was asked for; everything is saved.
        TrainingError: a worker was killed.
    """
    ended: list[Done] = []
    names = {cell.path: cell.name for cell in cells}
    waiting = [cell for cell in cells if not cell.finished]
    unfinished = {cell.path for cell in waiting}
    failed: set[Path] = set()
    with pool(workers) as (executor, stopping):
        running: dict[Future[Done], Cell | Further] = {}
        while waiting or running:
            for cell in list(waiting):
                if cell.parent is not None and cell.parent in failed:
                    failed.add(cell.path)
                    waiting.remove(cell)
                    _tell(Done(cell, 0.0, f"not begun, as it goes on from {names[cell.parent]}"), ended, on_done)
                elif cell.parent not in unfinished:
                    waiting.remove(cell)
                    running[executor.submit(finish, cell)] = cell
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
                    failed.add(done.cell.path)
                _tell(done, ended, on_done)
    return ended


def finish(cell: Cell | Further) -> Done:
    """Train and evaluate what is left of a cell, or evaluate further; in a worker."""
    begin = time.perf_counter()
    stopping = _Worker.stopping
    callbacks = Callbacks(should_stop=lambda: signal.SIGTERM if stopping is not None and stopping.is_set() else None)
    try:
        if isinstance(cell, Further):
            cell.finish(callbacks)
        elif cell.started:
            resume(cell.path, callbacks=callbacks)
        elif cell.parent is not None:
            extend(cell.parent, cell.config, cell.path, callbacks=callbacks)
        else:
            train(cell.config, cell.path, callbacks=callbacks)
    except SelfCorrectError as error:
        return Done(cell, time.perf_counter() - begin, str(error))
    return Done(cell, time.perf_counter() - begin)


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
