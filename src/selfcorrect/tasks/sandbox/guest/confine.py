"""Confinement of a forked child before it runs anything: files, memory, processes, capabilities, system calls.

Every step is irreversible: the limits are hard limits, the mount namespace belongs to the child, and the system call
filter stays for the rest of its life.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_CLONE_NEWNS = 0x00020000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9
PRIVATE = "/tmp"
"""The only directory in which a confined program may write."""

_libc = ctypes.CDLL(None, use_errno=True)


def confine(limits: Mapping[str, Any], keep_fds: Sequence[int], seccomp: bytes | None, directory: str) -> list[int]:
    """Confine this process; return the new numbers (3, 4, ...) of ``keep_fds``, the only files that stay open.

    Without ``seccomp`` (`sandbox = "process"`) only resource limits apply, and no byte can be written to any file. The
    process then begins in ``directory``, which no other program shares.
    """
    os.setsid()
    fds = _keep_only(keep_fds)
    if seccomp is None:
        _die_with_parent()
        _limit(limits, file_bytes=0)
        os.chdir(directory)
        return fds
    _private_directory(limits["file_bytes"], limits["files"])
    _limit(limits, file_bytes=limits["file_bytes"])
    _drop_capabilities()
    _load(seccomp)
    return fds


def _keep_only(fds: Sequence[int]) -> list[int]:
    """Move ``fds`` to 3, 4, ..., redirect the standard streams to /dev/null, and close all other files."""
    high = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    places = [os.dup2(fd, 3 + i) for i, fd in enumerate(high)]
    os.closerange(3 + len(fds), 1 << 16)
    return places


def _limit(limits: Mapping[str, Any], *, file_bytes: int) -> None:
    seconds = int(limits["seconds"]) + 1
    for name, value in {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }.items():
        resource.setrlimit(name, (value, value))


def _private_directory(size: int, files: int) -> None:
    """Mount a private file system in memory, which disappears with the process."""
    _call("unshare", _CLONE_NEWNS)
    options = f"size={size},nr_inodes={files},mode=0700".encode()
    _call("mount", b"tmpfs", PRIVATE.encode(), b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)
    os.chdir(PRIVATE)


def _drop_capabilities() -> None:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24))


def _load(seccomp: bytes) -> None:
    """Load a compiled filter: an array of ``struct sock_filter``, 8 bytes each."""
    program = ctypes.create_string_buffer(seccomp, len(seccomp))
    header = struct.pack("@HP", len(seccomp) // 8, ctypes.addressof(program))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0)


def _die_with_parent() -> None:
    if hasattr(_libc, "prctl"):  # Linux; elsewhere the warm parent kills the child before it ends
        _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def _call(name: str, *arguments: Any) -> None:
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(_libc, name)(*wide) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
