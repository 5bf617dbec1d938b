"""Drive a side from the parent process: start it, send it commands, and explain its failures."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from selfcorrect.errors import ConfigError, TrainingError
from selfcorrect.runtime import ENVIRONMENT

TAIL = 15
"""Lines of a failed side's standard error that its message shows."""
TRL_VERSION = "1.16.0"
HOW_TO_GET_TRL = (
    f"`make trl` creates its environment in .venv-trl. By hand: python3 -m venv .venv-trl, then with its pip install "
    f"torch==2.13.0 (the CPU build), and after it trl=={TRL_VERSION} and peft."
)


ROOT = Path(__file__).parents[2]
"""The root of the checkout, from which our side's module is started."""


class Side:
    """A running side, used as a context manager: its process ends with the block.

    Args:
        name: what messages and tables call it.
        command: the program and its arguments.
        threads: OpenMP threads that it may use.

    Raises:
        TrainingError: the process ended or never started; the message shows the end of its stderr.
    """

    def __init__(self, name: str, command: list[str], *, threads: int) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed in __exit__)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.ready = self._read()

    def ask(self, command: str, patience: float = math.inf) -> dict[str, Any]:
        """Send a command and return the answer.

        Raises:
            TimeoutError: no answer came within ``patience`` seconds. The side is still busy; leaving the block ends it.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None
        if not select.select([self._process.stdout], [], [], None if patience == math.inf else patience)[0]:
            raise TimeoutError
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failed()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self) -> TrainingError:
        self._log.seek(0)
        tail = "".join(self._log.readlines()[-TAIL:])
        status = self._process.wait(timeout=60)
        return TrainingError(
            f"the side {self.name!r} of the benchmark ended with status {status}; the end of its stderr:\n{tail}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=0.0 if error else 20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def our_command(folder: Path, slowdown: float = 0.0) -> list[str]:
    """Return the command that starts our side."""
    return [sys.executable, "-m", "benchmarks.step.ours", str(folder), str(slowdown)]


def machine_command(dtype: str) -> list[str]:
    """Return the command that starts the process that measures the machine."""
    return [sys.executable, "-m", "benchmarks.step.roofline", dtype]


def trl_command(folder: Path, python: Path, settings: dict[str, Any]) -> list[str]:
    """Return the command that starts TRL's side with the interpreter of its own environment."""
    return [str(python), str(Path(__file__).with_name("trl_score.py")), str(folder), json.dumps(settings)]


def check_trl(python: Path) -> None:
    """Check, before any work starts, that an environment has the TRL version of the comparison.

    Raises:
        ConfigError: there is no such interpreter, no TRL, or another version.
    """
    if not python.exists():
        raise ConfigError(f"--trl-python {python}: no such interpreter. {HOW_TO_GET_TRL}")
    code = "from importlib.metadata import version; print(version('trl'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, timeout=60)
    found = done.stdout.strip() or "no TRL"
    if found != TRL_VERSION:
        raise ConfigError(
            f"--trl-python {python} has {found}; the benchmark compares with TRL {TRL_VERSION}. {HOW_TO_GET_TRL}"
        )
