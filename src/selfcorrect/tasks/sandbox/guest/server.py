"""The warm parent: one Python process that forks a confined child for every job.

The protocol on its control socket is always: an order (role, limits, and file descriptors for the child) -> stop -> done.
The first descriptor holds the job, and only the child reads it: every later child inherits the parent's memory, freed or
not, so the parent must never hold a program, tests or arguments. The child is killed at its deadline, at ``stop``, or when
the control socket closes because the run itself was killed. ``done`` reports how the child ended. There is one job at a
time.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from selfcorrect.tasks.sandbox.guest.candidate import answer_calls
from selfcorrect.tasks.sandbox.guest.confine import confine
from selfcorrect.tasks.sandbox.guest.judge import run_tests
from selfcorrect.tasks.sandbox.guest.orphans import adopt_orphans, kill_descendants

PRELOADED = """
bisect cmath collections contextlib copy csv dataclasses datetime decimal enum fractions functools hashlib heapq inspect
io itertools json locale math numbers operator pprint queue random re statistics string tempfile textwrap threading
traceback types typing unicodedata unittest uuid
""".split()  # noqa: SIM905
"""Modules that short programs import; the parent imports them once, before the first fork."""

ROLES: dict[str, Callable[..., None]] = {"candidate": answer_calls, "judge": run_tests}
MAX_FDS = 3
_CPU_CLOCK = 2
"""Combined with a process id, the kernel's id of that process's CPU clock (clock_getcpuclockid)."""


def serve(control_fd: int) -> None:
    """Run a warm parent for its whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles Ctrl-C
    control = socket.socket(fileno=control_fd)
    hello, _ = _receive(control)
    for name in [*PRELOADED, *hello["packages"]]:
        importlib.import_module(name)
    seccomp = bytes.fromhex(hello["seccomp"]) if hello["seccomp"] else None
    if seccomp is None:
        adopt_orphans()
    gc.collect()
    gc.freeze()
    _send(control, {"ready": os.getpid()})
    while True:
        try:
            order, fds = _receive(control)
        except EOFError:
            return
        with _own_directory(walled=seccomp is not None) as directory:
            pid = os.fork()
            if pid == 0:
                _child(order, fds, seccomp, directory)
            for fd in fds:
                os.close(fd)
            done = _watch(pid, control, order["limits"], walled=seccomp is not None)
        if done is None:
            return
        _send(control, done)


def _own_directory(*, walled: bool) -> contextlib.AbstractContextManager[str]:
    """Return a new directory for one program, removed at its end: what it leaves there is no other program's to find.

    Behind walls, `confine` mounts one.
    """
    if walled:
        return contextlib.nullcontext("/")
    return tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True)


def _child(order: dict[str, Any], fds: list[int], seccomp: bytes | None, directory: str) -> None:
    """Read the job, confine the child, run its role, and exit without running any of the parent's code."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        job_fd, *kept = fds
        job = json.loads(os.pread(job_fd, os.fstat(job_fd).st_size, 0))
        os.close(job_fd)
        confined = confine(order["limits"], kept, seccomp, directory)
        random.seed(0)  # the same numbers for every program
        ROLES[order["role"]](job | order, *confined)
        status = 0
    finally:
        os._exit(status)


def _watch(pid: int, control: socket.socket, limits: dict[str, Any], *, walled: bool) -> dict[str, Any] | None:
    """Wait for ``stop`` and kill the child then, or at a deadline. Return None if the control socket closed."""
    deadline = time.monotonic() + limits["wall_seconds"]
    child = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(child, select.POLLIN)
    end: dict[str, Any] | None = None
    late = stopped = False
    while not stopped:
        left = None if end or late else _time_left(pid, deadline, limits["seconds"])
        events = {fd for fd, _ in poll.poll(None if left is None else 1000 * left)}
        if child in events:
            poll.unregister(child)
            end = _reap(pid, walled=walled)
        elif left == 0.0 and not events:
            late = True
            _kill(pid)
        stopped = control.fileno() in events
    killed = not (end or late)
    if end is None:
        _kill(pid)
        end = _reap(pid, walled=walled)
    os.close(child)
    try:
        _receive(control)
    except EOFError:
        return None
    return {"late": late, "killed": killed, **end}


def _reap(pid: int, *, walled: bool) -> dict[str, Any]:
    """Return how the child ended, and end what it started: walls forbid that, and take the rest along."""
    _, status, used = os.wait4(pid, 0)
    if not walled:
        kill_descendants()
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "cpu_s": used.ru_utime + used.ru_stime,
        "memory_bytes": used.ru_maxrss * 1024,
    }


def _time_left(pid: int, deadline: float, cpu_seconds: float) -> float:
    """Return the seconds until the child can exceed its wall-clock or CPU time."""
    used = time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    return max(0.0, min(deadline - time.monotonic(), cpu_seconds - used))


def _kill(pid: int) -> None:
    """Kill the child, which may have ended, without reaping it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _receive(control: socket.socket) -> tuple[Any, list[int]]:
    head, fds, _, _ = socket.recv_fds(control, 4, MAX_FDS)
    if len(head) < 4:
        raise EOFError
    (length,) = struct.unpack("<I", head)
    body = bytearray()
    while len(body) < length:
        part = control.recv(length - len(body))
        if not part:
            raise EOFError
        body += part
    return json.loads(body), list(fds)


def _send(control: socket.socket, message: Any) -> None:
    body = json.dumps(message).encode()
    try:
        control.sendall(struct.pack("<I", len(body)) + body)
    except BrokenPipeError:
        sys.exit(0)
