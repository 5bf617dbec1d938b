"""Processes that run a verifier under a hard time limit per answer.

Each worker has its own pipe and reports every verdict at once, so the parent always knows which answer a worker is
judging. A hanging or crashing verifier costs one verdict and one process, and no answer is judged twice. A library pool
(`concurrent.futures`, pebble) times whole chunks, or shares a pipe, which breaks for all when a process is killed in the
middle of a message.

Workers are plain ``python -c`` processes, not `multiprocessing` ones, which import the caller's main script again: that
runs a script without an ``if __name__ == "__main__"`` twice, and imports torch into every worker. The task travels by
cloudpickle, so verifiers written in a notebook work. POSIX only (process groups, inherited pipes).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Protocol

import cloudpickle  # type: ignore[import-untyped]

from selfcorrect.errors import ConfigError, VerifierError
from selfcorrect.reasoning import final_part
from selfcorrect.types import Outcome, Problem, Verdict

START_LIMIT_S = 120.0
"""The seconds that a worker may take to start and import the task, which count for no answer."""

MEMORY_LIMIT = 4 * 2**30
"""The address space of a limited process in bytes: an answer such as 10^(10^10) must not exhaust the machine's memory."""

_CHUNK = 32
_COMMAND = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from selfcorrect.tasks.verifier_pool import serve; serve(int(sys.argv[2]), float(sys.argv[3]))"
)


class Judging(Protocol):
    """What a worker needs of a task; ``prepare()``, if there is one, runs once, before any clock."""

    name: str

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Return the verdict of an answer."""
        ...


# --- both sides -------------------------------------------------------------------------------------


def judge(task: Judging, problem: Problem, text: str) -> Verdict:
    """Run `Task.verify` on the part of a text that answers (`reasoning.final_part`).

    A task with ``reads_reasoning = True`` gets the whole text. An exception, or a result of another type, is recorded as
    ``VERIFIER_FAILED``.
    """
    answer = text if getattr(task, "reads_reasoning", False) else final_part(text)
    if answer is None:
        return Verdict(Outcome.NO_ANSWER, detail="the reasoning has no end")
    try:
        verdict: object = task.verify(problem, answer)
    except Exception as error:  # the boundary to third-party code: recorded, counted, never scored as incorrect
        return _failed(describe(error))
    if not isinstance(verdict, Verdict) or not isinstance(verdict.outcome, Outcome):
        return _failed(f"returned {verdict!r:.200}, not a Verdict with an Outcome")
    return verdict


def describe(error: BaseException) -> str:
    """Return an exception's type and message as one short line."""
    return f"{type(error).__name__}: {error}"[:500]


def _failed(detail: str) -> Verdict:
    return Verdict(Outcome.VERIFIER_FAILED, detail=detail)


# --- in the worker ----------------------------------------------------------------------------------


def limit_memory() -> None:
    """Limit the memory of this process to `MEMORY_LIMIT`; a verifier that needs the limit calls it in its ``prepare``."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def serve(fd: int, time_limit_s: float) -> None:
    """Run a worker for its whole life: receive the task, then judge every item of every chunk, one by one."""
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # a verifier's output goes to stderr: stdout is for results
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a killed worker flushes nothing
    pipe: Connection = Connection(fd)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        task: Judging = pickle.loads(pipe.recv_bytes())
        if (prepare := getattr(task, "prepare", None)) is not None:
            prepare()  # slow imports, before the clock runs
    except Exception as error:
        pipe.send(describe(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has no more work
        while True:
            for item in pipe.recv():
                # The parent kills a hung worker; the kernel does if the parent was killed itself.
                signal.setitimer(signal.ITIMER_REAL, 2 * time_limit_s + 1)
                verdict = _judge_item(task, item)
                signal.setitimer(signal.ITIMER_REAL, 0)
                pipe.send(verdict)


def _judge_item(task: Judging, item: bytes) -> Verdict:
    try:
        problem, text = pickle.loads(item)
        verdict = judge(task, problem, text)
        pickle.dumps(verdict)
    except BaseException as error:  # sys.exit() in a verifier, or a verdict that cannot be sent back
        return _failed(describe(error))
    return verdict


# --- in the parent ----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker:
    """One process and its answers without a verdict, in order."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: bool = False
    since: float = field(default_factory=time.monotonic)
    todo: deque[int] = field(default_factory=deque)

    def stop(self) -> int:
        """Kill the worker and every process that its verifier started; return its exit status."""
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def post_mortem(self) -> int:
        """Return the exit status of a worker that closed its pipe by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return self.stop()


def _stop_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:  # a forked child has copies of these objects, but they are not its workers
        while workers:
            workers.pop().stop()


class WorkerPool:
    """A pool of at most ``size`` verifier processes of one task, started on demand. Use it from one thread at a time."""

    def __init__(self, task: Judging, *, time_limit_s: float, size: int) -> None:
        self._name = task.name
        self._time_limit_s = time_limit_s
        self._size = size
        self._workers: list[_Worker] = []
        try:
            self._payload: bytes = cloudpickle.dumps(task)
        except Exception as error:  # pickling runs the __reduce__ of anybody's objects
            raise ConfigError(
                f"task {task.name!r} cannot be sent to verifier processes ({describe(error)}). A task must be "
                f"picklable: leave out open files, locks and live models. Or set trusted_verifier = True if its "
                f"verifier always returns at once and may run in this process."
            ) from error
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, os.getpid())

    def run(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Return the verdicts of ``items``, in order.

        Raises:
            VerifierError: a worker cannot start, or cannot load the task.
        """
        verdicts: dict[int, Verdict] = {}
        packed = _pack(items, verdicts)
        size = max(1, min(_CHUNK, -(-len(packed) // (4 * self._size))))
        order = list(packed)
        waiting = deque(order[i : i + size] for i in range(0, len(order), size))
        try:
            while len(verdicts) < len(items):
                self._hand_out(waiting, packed)
                heard = set(wait([w.pipe for w in self._workers], timeout=self._patience()))
                for worker in list(self._workers):
                    if worker.pipe in heard:
                        self._listen(worker, verdicts, waiting)
                    elif self._late(worker):
                        self._time_out(worker, verdicts, waiting)
        except BaseException:  # including an interrupt: nobody would read what the workers still send
            self.close()
            raise
        return [verdicts[i] for i in range(len(items))]

    def close(self) -> None:
        """Kill every worker. Another `run` starts new ones."""
        _stop_all(self._workers, os.getpid())

    def _start(self) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-P", "-c", _COMMAND, json.dumps([p for p in sys.path if isinstance(p, str)])]
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(self._time_limit_s)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a separate group, killed as a whole and out of reach of Ctrl-C
            )
        finally:
            theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        with contextlib.suppress(OSError):  # it died already: the closed pipe will show it
            ours.send_bytes(self._payload)

    def _hand_out(self, waiting: deque[list[int]], packed: dict[int, bytes]) -> None:
        idle = [worker for worker in self._workers if not worker.todo]
        while len(self._workers) < self._size and len(idle) < len(waiting):
            self._start()
            idle.append(self._workers[-1])
        for worker in idle:
            if worker.ready and waiting:
                chunk = waiting.popleft()
                worker.todo.extend(chunk)
                worker.since = time.monotonic()
                with contextlib.suppress(OSError):
                    worker.pipe.send([packed[i] for i in chunk])

    def _listen(self, worker: _Worker, verdicts: dict[int, Verdict], waiting: deque[list[int]]) -> None:
        """Take one message from a worker: that it is ready, a verdict, or the end of the pipe."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._workers.remove(worker)
            status = worker.post_mortem()
            if not worker.ready:
                raise self._cannot_start(f"it ended with {_status(status)}") from None
            if status == -signal.SIGALRM:
                self._give_up(worker, self._timed_out(), verdicts, waiting)
            else:
                self._give_up(worker, _failed(f"the verifier process ended with {_status(status)}"), verdicts, waiting)
            return
        worker.since = time.monotonic()
        if worker.ready:
            verdicts[worker.todo.popleft()] = message
        elif message is not None:
            raise self._cannot_start(message)
        worker.ready = True

    def _late(self, worker: _Worker) -> bool:
        limit = self._time_limit_s if worker.ready else START_LIMIT_S
        return bool(worker.todo or not worker.ready) and time.monotonic() - worker.since > limit

    def _time_out(self, worker: _Worker, verdicts: dict[int, Verdict], waiting: deque[list[int]]) -> None:
        self._workers.remove(worker)
        worker.stop()
        if not worker.ready:
            raise self._cannot_start(f"it was not ready after {START_LIMIT_S:g} s")
        self._give_up(worker, self._timed_out(), verdicts, waiting)

    def _give_up(
        self, worker: _Worker, verdict: Verdict, verdicts: dict[int, Verdict], waiting: deque[list[int]]
    ) -> None:
        """Record a verdict for the answer that a stopped worker was judging; requeue the answers it had not begun."""
        if worker.todo:
            verdicts[worker.todo.popleft()] = verdict
        if worker.todo:
            waiting.appendleft(list(worker.todo))

    def _patience(self) -> float:
        """Return the seconds until the next worker may be late."""
        limits = [
            w.since + (self._time_limit_s if w.ready else START_LIMIT_S) for w in self._workers if w.todo or not w.ready
        ]
        return max(0.0, min(limits) - time.monotonic()) + 0.001

    def _timed_out(self) -> Verdict:
        return Verdict(Outcome.TIMED_OUT, detail=f"no verdict within {self._time_limit_s:g} s")

    def _cannot_start(self, reason: str) -> VerifierError:
        return VerifierError(
            f"a verifier process of task {self._name!r} could not start: {reason}. It loads the task in a fresh "
            f"Python process: everything the verifier needs must be importable there."
        )


def _pack(items: Sequence[tuple[Problem, str]], verdicts: dict[int, Verdict]) -> dict[int, bytes]:
    """Return every item as bytes; record a verdict for one that cannot be pickled."""
    packed = {}
    for index, item in enumerate(items):
        try:
            packed[index] = pickle.dumps(item)
        except Exception as error:  # pickling runs the __reduce__ of anybody's objects
            verdicts[index] = _failed(f"problem {item[0].id!r} cannot be pickled ({describe(error)})")
    return packed


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
