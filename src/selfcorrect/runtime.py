"""The computing process: environment variables that libraries read at import, memory allocation, and its share of the cores.

Apply the first two before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Callable

ENVIRONMENT = {
    # A thread that spins forever takes the CPU from the others; one that sleeps at once wakes too slowly for a small
    # model. So: spin briefly, then sleep. Read when torch is imported.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "50000",
    # oneDNN and torch's interface to it keep a compiled product for each of the last 1,024 shapes, half a MiB each. The rows
    # of a batch differ from one to the next, so all but the latest products are never asked for again. They also lie between
    # the large blocks, which are then hard to place: a long run takes more memory and time with every step.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # vLLM runs in this process, which hands it the policy's weights; its usage statistics and its log are off.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def set_environment() -> None:
    """Set the environment variables that libraries read at import; a variable that the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``: the free memory that the heap keeps, and the size from which a block is mapped alone."""


def keep_freed_memory() -> None:
    """Have glibc keep freed memory in this process, instead of returning large blocks to the system at once.

    A training step frees and requests the same large blocks repeatedly, and the system clears every page of a new one.
    Settings in the environment (``MALLOC_...``, ``GLIBC_TUNABLES``) take precedence; other C libraries are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions reject more than 32 MiB. Trimming alone does not help: larger blocks would still be mapped.
        if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20):
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


LEAST_WALL_S = 20.0
"""Wall time from which a process's share of the cores says something."""
LEAST_SHARE = 0.6
"""Below this share of threads times wall time, a process on busy cores waits for them most of the time."""
BUSY = 1.25
"""The cores are busy if the load average is this many times their number."""


def usable_cores() -> int:
    """Return how many cores this process may use, which a batch system or a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CoreShare:
    """A watch of how much of the cores this process gets.

    A kernel on several threads ends with its slowest thread. If other programs use the cores, one thread of them waits for a
    core nearly always, so several threads can be slower than one, by a factor.

    Args:
        threads: the threads that the process computes with.
        clock, used, load: seconds of wall time, of processor time over all threads, and the machine's load average.
        cores: the number of the machine's cores, which the load average covers.
    """

    def __init__(
        self,
        threads: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
        load: Callable[[], float] = lambda: os.getloadavg()[0],
        cores: int | None = None,
    ) -> None:
        self.threads, self._clock, self._used, self._load = threads, clock, used, load
        self._cores = cores or os.cpu_count() or 1
        self._said = False
        self._start = clock(), used()

    @classmethod
    def of(cls, device: str) -> CoreShare:
        """Return the watch of a process whose model is on a device of this type; one that never warns if that is no CPU."""
        import torch

        return cls(torch.get_num_threads() if device == "cpu" else 1)

    def warn(self) -> None:
        """Log the warning that `look` returns, if there is one."""
        if found := self.look():
            logging.getLogger("selfcorrect").warning(found)

    def look(self) -> str | None:
        """Return a warning if the process got little of busy cores since the last look that covers enough time; once."""
        wall, used = self._clock() - self._start[0], self._used() - self._start[1]
        if self._said or self.threads < 2 or wall < LEAST_WALL_S:
            return None
        self._start = self._clock(), self._used()
        load = self._load()
        if used >= LEAST_SHARE * self.threads * wall or load < BUSY * self._cores:
            return None
        self._said = True
        return (
            f"other programs use the cores: this process computes with {self.threads} threads, but got {used:.0f} s of processor "
            f"time in {wall:.0f} s (load average {load:.1f} on {self._cores} cores). Threads then wait for each other: stop, and "
            "resume with OMP_NUM_THREADS=1 in the environment, which can be several times faster"
        )
