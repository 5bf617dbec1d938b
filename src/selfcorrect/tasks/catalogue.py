"""The catalogue of available tasks, each with an example."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.tasks.base import Task, available_tasks, get_task
from selfcorrect.types import Problem, Split

EXAMPLE_VARIANTS = {"reasoning_gym": "chain_sum"}
"""The example variant of a family that needs a variant."""

NEEDS = {
    "dataset": "needs a file or a hub id, and a verifier: --task-option path=FILE --task-option verifier=choice",
    "jsonl": "needs your own data: --task-option path=problems.jsonl --task-option verifier=module:function",
    "math": "loads MATH from the hub; from files: --task-option path=train.jsonl --task-option test_path=test.jsonl",
    "gsm8k": "loads GSM8K from the hub; from files: --task-option path=train.jsonl --task-option test_path=test.jsonl",
    "mbpp": "needs a file or a hub id: --task-option source=FILE, or google-research-datasets/mbpp",
    "verifiers": "needs an installed single-turn environment, as verifiers:NAME; see docs/environments.md",
    "mbpp_r": "needs a file with MBPP's fields and wrong_code: --task-option source=FILE",
}
"""What a family needs before it can be made at all."""


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One family, or one variant of it.

    ``variants`` lists the names allowed after the colon; ``note`` says why there is no example.
    """

    name: str
    description: str
    version: str | None = None
    example: Problem | None = None
    first: str | None = None
    revise: str | None = None
    variants: tuple[str, ...] = ()
    note: str | None = None


def catalogue(name: str | None = None) -> Iterator[TaskEntry]:
    """Yield every registered family, or only the one called ``name`` (also ``family:variant``).

    Raises:
        ConfigError: there is no family ``name``.
    """
    known = available_tasks()
    family = (name or "").partition(":")[0]
    if name is not None and family not in known:
        get_task(name)  # raises, with a suggestion
    for each in [family] if name is not None else known:
        try:
            factory = known[each].load()
        except Exception as error:  # the boundary to packages of third parties
            yield TaskEntry(each, "", note=f"cannot be loaded: {type(error).__name__}: {error}")
            continue
        entry = TaskEntry(each, (inspect.getdoc(factory) or "").partition("\n")[0])
        yield _with_example(entry, name if name and ":" in name else each)


def _with_example(entry: TaskEntry, name: str) -> TaskEntry:
    if name in NEEDS:
        return TaskEntry(entry.name, entry.description, note=NEEDS[entry.name])
    if name in EXAMPLE_VARIANTS:
        name = f"{name}:{EXAMPLE_VARIANTS[name]}"
    variants = _generators() if entry.name == "reasoning_gym" else ()
    try:
        task: Task = get_task(name)
        problem = task.problems(Split.TEST, seed=0, limit=1)[0]
    except ConfigError as error:
        if name != entry.name and name.partition(":")[2] != EXAMPLE_VARIANTS.get(entry.name):
            raise
        return TaskEntry(entry.name, entry.description, note=str(error), variants=variants)
    except SelfCorrectError as error:
        return TaskEntry(entry.name, entry.description, note=str(error), variants=variants)
    script = task.script
    first, revise = script.user_turns(problem.prompt)[0].text, "\n\n".join(turn.text for turn in script.later)
    return TaskEntry(name, entry.description, task.version, problem, first, revise, variants)


def _generators() -> tuple[str, ...]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return ()
    return tuple(sorted(name for name in DATASETS if name != "composite"))


def entry_json(entry: TaskEntry) -> dict[str, Any]:
    """Return the entry as plain values."""
    plain = asdict(entry)
    if entry.example is not None:
        plain["example"] = {"prompt": entry.example.prompt, "reference": entry.example.reference}
    return plain


def entry_text(entry: TaskEntry, *, full: bool = False) -> str:
    """Return the entry as text; ``full`` lists all variants instead of counting them."""
    lines = [entry.name + (f"  (version {entry.version})" if entry.version else ""), f"  {entry.description}"]
    if entry.variants:
        family = entry.name.partition(":")[0]
        lines.append(
            f"  {len(entry.variants)} generators, used as {family}:NAME; list them with: selfcorrect tasks {family}"
        )
    if entry.example is not None and entry.first is not None:
        shown = {"first turn": entry.first, "reference": entry.example.reference, "second turn": entry.revise or ""}
        lines += [f"  {name:11} | {text.replace(chr(10), chr(10) + ' ' * 14 + '| ')}" for name, text in shown.items()]
    if entry.note:
        lines.append(f"  {entry.note}")
    if full and entry.variants:
        lines += ["", *wrap(", ".join(entry.variants), 100, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join(lines) + "\n"
