"""How a side is spoken to: a process that takes a command as a line of JSON and answers with one, and how it measures itself.

Whatever the side's libraries print goes to its standard error, so that the answers stand alone. Memory is the process's own, or,
where a side has imported torch and there is a GPU, what its tensors hold there.
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
    """Say what ``ready`` returns, then answer commands until standard input is closed."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(message: dict[str, Any]) -> None:
            out.write(json.dumps(message) + "\n")
            out.flush()

        say(ready())
        for line in sys.stdin:
            say(commands[line.strip()]())


def wait() -> None:
    """Until a GPU has done what it was told: a clock that is read before tells only how long the telling took."""
    gpu = _gpu()
    if gpu is not None:
        gpu.synchronize()


def resident() -> float:
    """MiB of memory that this process holds now."""
    gpu = _gpu()
    return _status("VmRSS") if gpu is None else gpu.memory_allocated() / MIB


def forget_peak() -> None:
    """Have `peak` count from now on."""
    gpu = _gpu()
    if gpu is not None:
        gpu.reset_peak_memory_stats()
        return
    with suppress(OSError):  # not every kernel can
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """MiB that this process held at the most since `forget_peak`. Not `ru_maxrss`, which begins with those of its parent."""
    gpu = _gpu()
    return _status("VmHWM") if gpu is None else gpu.max_memory_allocated() / MIB


def _gpu() -> Any:
    """`torch.cuda` where there is a GPU and the side has torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / MIB
    raise AssertionError(f"/proc/self/status has no {name}")
