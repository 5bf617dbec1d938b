"""The system calls that a confined program may make; every other one fails with EPERM.

CPython and its pure standard library need these calls to compute and to use a private directory. The list leaves out, on
purpose, every call that makes a process or a thread (clone, fork, execve), reaches another one (kill, ptrace,
process_vm_*, pidfd_*), opens a connection (socket and its family), changes what is visible (mount, unshare, chroot,
links) or is big enough to hide holes (bpf, io_uring, keyctl, perf, userfaultfd).
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache

from selfcorrect.extras import require

ALLOWED = """
read write readv writev pread64 pwrite64 close lseek fsync fdatasync ftruncate truncate fallocate copy_file_range
open openat stat fstat lstat newfstatat statx access faccessat faccessat2 getdents64 getcwd chdir fchdir
mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 umask utimensat readlink readlinkat statfs fstatfs
dup dup2 dup3 pipe pipe2 poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 close_range
mmap munmap mremap mprotect madvise brk
futex rseq set_robust_list get_robust_list sched_yield sched_getaffinity membarrier
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack restart_syscall pause
alarm setitimer getitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
getpid gettid getppid getuid geteuid getgid getegid getgroups getpgrp getpgid getsid getrlimit getrusage
uname sysinfo getrandom arch_prctl exit exit_group
""".split()  # noqa: SIM905
"""The allowed calls; names unknown to the machine's architecture are skipped."""

_TCGETS, _FIOCLEX, _FIONCLEX, _TIOCGWINSZ = 0x5401, 0x5451, 0x5450, 0x5413
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
"""Duplicates, flags and locks, but not F_SETOWN and the like, with which the kernel signals other processes."""
_EPERM, _ENOSYS = 1, 38


@lru_cache(maxsize=1)
def compiled() -> bytes:
    """Return the filter as BPF for this machine's architecture.

    Raises:
        ConfigError: pyseccomp, or its library libseccomp, is not installed.
    """
    instead = (
        "it loads the library libseccomp (Debian, Ubuntu: apt-get install libseccomp2); or set the task's option "
        'sandbox = "process", which has resource limits only'
    )
    seccomp = require("pyseccomp", extra="code", why="the sandbox", instead=instead)
    rules = seccomp.SyscallFilter(seccomp.ERRNO(_EPERM))
    for name in ALLOWED:
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(seccomp.ALLOW, name)
    for request in (_TCGETS, _TIOCGWINSZ, _FIOCLEX, _FIONCLEX):
        rules.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, request))
    for command in _FCNTL:
        rules.add_rule(seccomp.ALLOW, "fcntl", seccomp.Arg(1, seccomp.EQ, command))
    rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # its own limits, which are hard
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return os.read(file.fileno(), 1 << 20)
