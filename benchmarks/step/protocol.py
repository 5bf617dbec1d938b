"""Answer commands, one a line, with JSON lines, and measure the memory of this process, a side of the benchmark.

The output of the side's libraries goes to stderr, so stdout carries only answers. Memory is the process's resident
memory or, if the side has imported torch and there is a GPU, its tensors' memory on the GPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 2**20


def answer(commands: dict[str, Callable[[], dict[str, Any]]], ready: Callable[[], dict[str, Any]]) -> None:
    """Send the result of ``ready``, then answer commands until stdin is closed."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            out.write(json.dumps(message) + "\n")
            out.flush()

        say(ready())
        for line in sys.stdin:
            say(commands[line.strip()]())


def wait() -> None:
    """Wait for the GPU's queued work; without this, a clock would measure only the time to queue it."""
    gpu = _gpu()
    if gpu is not None:
        gpu.synchronize()


def resident() -> float:
    """Return the MiB of memory that this process holds now."""
    gpu = _gpu()
    return _status("VmRSS") if gpu is None else gpu.memory_allocated() / MIB


def forget_peak() -> None:
    """Reset `peak`."""
    gpu = _gpu()
    if gpu is not None:
        gpu.reset_peak_memory_stats()
        return
    with suppress(OSError):  # not every kernel can
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the peak MiB of this process since `forget_peak`. `ru_maxrss` does not work: it starts at the parent's peak."""
    gpu = _gpu()
    return _status("VmHWM") if gpu is None else gpu.max_memory_allocated() / MIB


def _gpu() -> Any:
    """Return `torch.cuda` if there is a GPU and the side has imported torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise AssertionError(f"/proc/self/status has no {name}")
