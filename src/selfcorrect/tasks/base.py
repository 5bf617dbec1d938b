"""The task protocol and the registry behind ``--task NAME``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.script import Script
from selfcorrect.types import Problem, Split, Verdict

GROUP = "selfcorrect.tasks"


@runtime_checkable
class Task(Protocol):
    """What a task family offers. A task is cheap to make and picklable: verifier processes get a copy.

    ``version`` changes whenever problems or verdicts do; it is recorded with every result.
    ``trusted_verifier`` says that `verify` always returns at once and may run in this process; any
    other verifier runs in a worker process under a time limit (see `tasks.verification`).
    """

    name: str
    version: str
    script: Script
    trusted_verifier: bool

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """The problems of a split, always in the same order for the same seed.

        Splits are disjoint by normalised prompt text whatever the seed. ``limit`` takes the first ones;
        a generator without a natural end needs it for the test and development splits.
        """
        ...

    def verify(self, problem: Problem, text: str) -> Verdict:
        """The verdict of an answer; a pure function of its arguments. It may raise: that is recorded."""
        ...

    def corrupt(self, problem: Problem) -> str:
        """An answer like the reference but wrong, for checking the verifier itself."""
        ...


def available_tasks() -> dict[str, EntryPoint]:
    """All registered task families, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Make the task called ``name``, or ``family:variant`` (``reasoning_gym:chain_sum``).

    ``options`` are the family's own settings; the variant is passed to it as ``variant``.

    Raises:
        ConfigError: no such family (with a suggestion), or an option that it does not have.
    """
    family, _, variant = name.partition(":")
    known = available_tasks()
    if family not in known:
        close = difflib.get_close_matches(family, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"task {family!r} is not known; there are {', '.join(known)}.{hint}")
    arguments = dict(options or {})
    if variant:
        arguments["variant"] = variant
    factory = known[family].load()
    _refuse_unknown(name, factory, arguments)
    try:
        task = factory(**arguments)
    except TypeError as error:
        raise ConfigError(f"task {name!r} does not take the options {sorted(arguments)}: {error}") from error
    assert isinstance(task, Task)
    return task


def _refuse_unknown(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    unknown = [option for option in options if option not in parameters]
    if not unknown or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    close = difflib.get_close_matches(unknown[0], parameters, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else " Leave out what belongs to another task."
    raise ConfigError(
        f"task {name!r} has no option {', '.join(map(repr, unknown))}; there are {', '.join(parameters)}.{hint}"
    )


def script_of(config: Config, task: Task) -> Script:
    """The task's script with the configured instruction and system message."""
    script = task.script
    if config.task.revise is not None:
        script = replace(script, revise=config.task.revise)
    return script if config.task.system is None else replace(script, system=config.task.system)
