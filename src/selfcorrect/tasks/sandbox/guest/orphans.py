"""The processes that a program started, in a sandbox without a system call filter (`sandbox = "process"`).

A limit forbids every user but root to start one. Root's processes may leave their session and lose their parents, so
neither names them all. The warm parent therefore adopts every orphan below it, and after each job kills what it has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(*map(ctypes.c_ulong, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)))


def kill_descendants() -> None:
    """Kill and reap every process below this one, until none is left."""
    while _children_left() and (found := _descendants()):
        for sign in (signal.SIGSTOP, signal.SIGKILL):  # what is stopped starts no more
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, sign)
        time.sleep(0.001)


def _children_left() -> bool:
    """Reap the children that have ended; return whether others are there."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants() -> set[int]:
    """Return the processes below this one; none where there is no /proc."""
    parents = {}
    with contextlib.suppress(OSError):
        for place in _PROC.iterdir():
            if place.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}
