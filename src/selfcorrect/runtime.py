"""The process that computes: environment variables that libraries read at import, and how memory is allocated.

Set both before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

ENVIRONMENT = {
    # Threads that spin for ever steal the CPUs from the others; threads that sleep at once are too slow to wake for a
    # small model. So: spin briefly, then sleep. Read when torch is imported.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "50000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # vLLM: in this process, which hands it the policy's weights; without its reports of use and its log.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def set_environment() -> None:
    """What libraries read from the environment when they are imported; whatever the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``: blocks from the second on are mapped by themselves; so much free space the heap keeps."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed in this process, instead of returning large blocks to the system at once.

    A training step frees and asks for the same large blocks again and again, and the system clears every page of a new one.
    What the user has set in the environment (``MALLOC_...``, ``GLIBC_TUNABLES``) stays; other C libraries are left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        # Older versions refuse more than 32 MiB; without the first, the second would have every larger block mapped.
        if mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20):
            mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
