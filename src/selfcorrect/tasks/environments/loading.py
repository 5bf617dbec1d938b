"""Loading an environment in a process of its own: what it prints, its signal handlers and its imports stay there."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from selfcorrect.config.settings import MAX_PROBLEMS
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import check_installed
from selfcorrect.tasks.environments.example import Environment, Example
from selfcorrect.tasks.own_process import in_own_process
from selfcorrect.tasks.verifier_pool import describe

NAME = re.compile(r"(?:[\w-]+/)?(?P<module>[A-Za-z_][\w-]*)(?:@[\w.-]+)?")
"""An environment's name: that of its package, or of a hub (``owner/name``)."""


@dataclass(frozen=True, slots=True)
class Request:
    """An environment with its arguments, and which rows of it to read."""

    name: str
    arguments: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    size: int | None
    reference_field: str
    score: str | None


@dataclass(slots=True)
class Loaded:
    """An environment's problems as plain values. ``code`` names and digests the code that judges them."""

    train: list[tuple[str, Example]] | None = None
    test: list[tuple[str, Example]] | None = None
    code: str = ""
    form: str = ""
    errors: list[str] = field(default_factory=list)


def module_of(name: str) -> str:
    """Return the module of an environment.

    Raises:
        ConfigError: the library or the environment is not installed; nothing is imported to find out.
    """
    check_installed("verifiers", extra="verifiers", why="task 'verifiers'")
    match = NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name!r} is not the name of an environment: write the task as 'verifiers:NAME'.")
    module = match["module"].replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"environment {name!r} is not installed: there is no module {module!r} among the installed packages. Install its "
            "package first; nothing is fetched by its name."
        )
    return module


def open_environment(name: str, arguments: Mapping[str, Any]) -> Environment:
    """Import and make an environment in this process.

    Raises:
        ConfigError: it is none, or rejects its arguments.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    module = importlib.import_module(module_of(name))
    if _is_taskset(module):
        from selfcorrect.tasks.environments.taskset import TasksetEnvironment

        return TasksetEnvironment(module.__name__, arguments)
    if callable(getattr(module, "load_environment", None)):
        from selfcorrect.tasks.environments.classic import ClassicEnvironment

        return ClassicEnvironment(module.__name__, module, arguments)
    raise ConfigError(
        f"module {module.__name__!r} is no environment: it has neither a function load_environment() nor a Taskset in __all__."
    )


def _is_taskset(module: Any) -> bool:
    try:
        from verifiers.v1.taskset import Taskset
    except ImportError:  # an earlier version
        return False
    members = [getattr(module, name, None) for name in getattr(module, "__all__", ())]
    return any(isinstance(member, type) and issubclass(member, Taskset) for member in members)


def load(request: Request) -> Loaded:
    """Return an environment's problems, read in a process of its own with a fixed hash seed.

    Raises:
        ConfigError: it is not installed, has several turns, tools or a judge, or rejects its arguments.
        DataError: it fails while it makes its problems.
    """
    module_of(request.name)
    found: Loaded = in_own_process(_load, request, what=f"environment {request.name!r}")
    return found


def _load(request: Request) -> Loaded:
    os.environ.setdefault("OPENAI_API_KEY", "none")  # so that a judge can be made, and rejected by its name
    try:
        return _loaded(request)
    except (ConfigError, DataError):
        raise
    except Exception as error:  # the boundary to the environment: reported in the calling process
        raise DataError(
            f"environment {request.name!r} with the options {dict(request.arguments)!r:.300} failed: {describe(error)}"
        ) from error


def _loaded(request: Request) -> Loaded:
    found = Loaded()
    env = _checked(request, request.arguments)
    found.train = _examples(env, env.training(), "train", request, found.errors)
    if request.evaluation is None:
        found.test = _examples(env, env.evaluation(), "eval", request, found.errors)
    else:
        other = _checked(request, {**request.arguments, **request.evaluation})
        found.test = _examples(other, other.training(), "eval", request, found.errors)
    found.code, found.form = _code_of(module_of(request.name)), env.form()
    return found


def _checked(request: Request, arguments: Mapping[str, Any]) -> Environment:
    env = open_environment(request.name, arguments)
    reason = env.refusal()
    if reason is not None:
        raise ConfigError(
            f"environment {request.name!r} cannot be a task: {reason}. A task has one answer, judged by itself: choose a "
            "single-turn environment whose rubric needs no other model."
        )
    names = env.names()
    if request.score is not None and names is not None and request.score not in names:
        raise ConfigError(f"score = {request.score!r}: environment {request.name!r} has {', '.join(sorted(names))}.")
    return env


def _examples(
    env: Environment, rows: Iterator[Any] | None, label: str, request: Request, errors: list[str]
) -> list[tuple[str, Example]] | None:
    if rows is None:
        return None
    found = []
    for i, row in enumerate(islice(rows, request.size or MAX_PROBLEMS)):
        try:
            found.append((f"{label}[{i}]", env.example(row, request.reference_field)))
        except ValueError as error:
            errors.append(f"{label}[{i}]: {error}")
    return found


def _code_of(module: str) -> str:
    """Return the versions of the library and of the environment's package, and a digest of its source files."""
    digest = blake2b(digest_size=6)
    origin = Path(importlib.util.find_spec(module).origin or "")  # type: ignore[union-attr]
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    for file in files:
        digest.update(file.name.encode() + b"\n" + file.read_bytes())
    version = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = f"-{importlib.metadata.version(module.replace('_', '-'))}"
    library = importlib.import_module("verifiers").__version__
    return f"verifiers-{library}+{module}{version}+{digest.hexdigest()}"
