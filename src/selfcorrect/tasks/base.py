"""The task protocol and the registry behind ``--task NAME``."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.script import DRAFT_REQUEST, Script, UserTurn
from selfcorrect.tasks.options import option_types, wrong_types
from selfcorrect.types import Problem, Role, Split, Verdict

GROUP = "selfcorrect.tasks"


@runtime_checkable
class Task(Protocol):
    """The protocol of a task. A task is cheap to make, and picklable, because verifier processes get a copy.

    ``version`` changes whenever problems or verdicts do; it is recorded with every result.
    A task whose models know few words may have a ``verified_script``, in which the model verifies its attempts, and a
    ``draft_request``, which asks it to verify a draft alone; see `verified_script_of` and `draft_request_of`.
    ``trusted_verifier`` means that `verify` always returns at once and may run in this process. Any other
    verifier runs in a worker process under a time limit (see `tasks.verifier`).

    A task may also have ``solution(problem) -> str``, which returns a correct response as a model is to write it, with its steps.
    Stages with ``method = "sft"`` train on these responses.

    A task with a finite number of problems may have ``sizes``, the number by split, and ``more_problems(split) -> str``, which
    says what gives it more ("add rows of data").

    A task whose data may have to be fetched when it is made has a class method ``script_of_options(**options) -> Script``,
    which needs none of them.
    """

    name: str
    version: str
    script: Script
    trusted_verifier: bool

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return the problems of a split, always in the same order for the same seed.

        Splits are disjoint by normalised prompt text for every seed. ``limit`` takes the first problems;
        an endless generator needs it for the test and development splits.
        """
        ...

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Return the verdict of an answer, as a pure function of the arguments. An exception is recorded.

        ``text`` is what stands after the model's reasoning, if it wrote any (`selfcorrect.reasoning`). A task whose
        class sets ``reads_reasoning = True`` gets the whole completion.
        """
        ...

    def corrupt(self, problem: Problem) -> str:
        """Return an incorrect answer that resembles the reference, for checking the verifier."""
        ...


def available_tasks() -> dict[str, EntryPoint]:
    """Return all registered task families, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Make the task called ``name``, or ``family:variant`` (``reasoning_gym:chain_sum``).

    ``options`` are the family's own settings; the variant is passed as ``variant``.

    Raises:
        ConfigError: there is no such family (the message suggests one), it has no such option, or values have other types.
    """
    factory, arguments = checked_task(name, options)
    try:
        task = factory(**arguments)
    except TypeError as error:
        raise ConfigError(f"task {name!r} does not take the options {sorted(arguments)}: {error}") from error
    assert isinstance(task, Task)
    return task


class HasScript(Protocol):
    """A task, as far as its instructions are concerned."""

    @property
    def script(self) -> Script: ...


@dataclass(frozen=True, slots=True)
class ScriptAlone:
    """The script of a task whose data are not read."""

    script: Script


def scripted(name: str, options: Mapping[str, Any] | None = None) -> HasScript:
    """Return something with the script of the task called ``name``; no data are fetched for it.

    Raises:
        ConfigError: see `get_task`.
    """
    factory, arguments = checked_task(name, options)
    known = getattr(factory, "script_of_options", None)
    return get_task(name, options) if known is None else ScriptAlone(known(**arguments))


def checked_task(name: str, options: Mapping[str, Any] | None = None) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return what makes the task called ``name``, and its arguments, before the task fetches anything.

    Raises:
        ConfigError: see `get_task`.
    """
    family, _, variant = name.partition(":")
    known = available_tasks()
    if family not in known:
        close = difflib.get_close_matches(family, known, n=1)
        hint = _data_hint(name) or (f" Did you mean {close[0]!r}?" if close else "")
        raise ConfigError(f"task {family!r} is not known: choose among {', '.join(known)}.{hint}")
    arguments = dict(options or {})
    if variant:
        arguments["variant"] = variant
    factory = known[family].load()
    _refuse_unknown(name, factory, arguments)
    wrong = wrong_types(option_types(factory), arguments)
    if wrong:
        raise ConfigError(f"task {name!r} rejects its options:\n" + "\n".join(f"  - {line}" for line in wrong))
    return factory, arguments


def _data_hint(name: str) -> str:
    """Return how to use a name that looks like a place of data as a task; nothing if it does not."""
    if re.search(r"\.(jsonl?|csv|tsv|parquet|arrow)(\.\w{2,3})?$", name):
        return f" Data in a file are the task 'dataset' with the options path = {name!r} and verifier (docs/tasks.md)."
    if "/" in name:
        return (
            f" Data in a directory or on the hub are the task 'dataset' with the options path = {name!r} and verifier "
            "(docs/tasks.md)."
        )
    return ""


def _refuse_unknown(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    unknown = [option for option in options if option not in parameters]
    if not unknown or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    close = difflib.get_close_matches(unknown[0], parameters, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else " Leave out options of other tasks."
    raise ConfigError(
        f"task {name!r} has no option {', '.join(map(repr, unknown))}; it takes {', '.join(parameters)}.{hint}"
    )


def origin_of(task: Task) -> dict[str, Any]:
    """Return what is recorded of where a task's problems are from: nothing, for most tasks.

    ``data_commits`` are the commits of the hub's repositories; ``repeated_dropped`` counts what `drop_repeated` left out.
    """
    found = {"data_commits": getattr(task, "data_commits", {}), "repeated_dropped": getattr(task, "dropped", {})}
    return {name: dict(value) for name, value in found.items() if value}


def verified_script_of(config: Config, task: HasScript) -> Script:
    """Return a script in which the model verifies every attempt and makes another only if it says wrong.

    It is the task's ``verified_script``, or else `Script.with_verification` of the task's own script.
    """
    own = getattr(task, "verified_script", None)
    if isinstance(own, Script) and config.task.revise is None:
        return own
    return script_of(config, task).with_verification()


def draft_request_of(config: Config, task: HasScript) -> UserTurn:
    """Return the message that asks the model to verify a draft on a prompt of its own.

    It is the configured one, or the task's ``draft_request``, or `script.DRAFT_REQUEST`.
    """
    own = getattr(task, "draft_request", None)
    return config.task.draft_request or (own if isinstance(own, UserTurn) else DRAFT_REQUEST)


def model_turns(config: Config, attempts: int, *, told: bool = False) -> int:
    """Return the most turns of the model in an episode of ``attempts``: feedback and verifications count; no data are fetched.

    With ``told``, verifications are written, not sampled, and do not count.
    """
    if config.task.revise is not None:
        script = Script(revise=config.task.revise)
    else:
        script = _script_of_task(config.task.name, json.dumps(config.task.options, default=str))
    turns = script.with_turns(attempts).user_turns()
    return sum(not (told and turn.role is Role.VERIFICATION) for turn in turns)


@lru_cache(maxsize=8)
def _script_of_task(name: str, options: str) -> Script:
    """Return a task's own script; some tasks read their data for it."""
    return scripted(name, json.loads(options)).script


def script_of(config: Config, task: HasScript) -> Script:
    """Return the task's script with the configured instruction and system message."""
    script = task.script
    if config.task.revise is not None:
        script = replace(script, revise=config.task.revise)
    return script if config.task.system is None else replace(script, system=config.task.system)
