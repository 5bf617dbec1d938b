"""Settings of the computing process: environment variables that libraries read at import, and memory allocation.

Apply both before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

ENVIRONMENT = {
    # A thread that spins forever takes the CPU from the others; one that sleeps at once wakes too slowly for a small
    # model. So: spin briefly, then sleep. Read when torch is imported.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "50000",
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
