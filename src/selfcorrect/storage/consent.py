"""The one gate between what a directory names and what this process runs (docs/dev/security.md).

A run or an evaluation may come from someone else. Its files are data, but some settings name code: a verifier, a method, an
engine, a tracker, a task of another package, a model's own Python, or stored programs to run without a sandbox. Such code runs
only if the caller allows each name (``--allow-code NAME``, ``allow_code=[NAME]``), or gave the same setting. Nothing that ships
with this package needs to be allowed.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from selfcorrect.config.engine_names import ENGINES, VLLM
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.tracker_names import TRACKERS
from selfcorrect.errors import ConsentError

OWN = "selfcorrect."
"""How the locations of this package's own entry points begin."""
REMOTE_CODE = "trust_remote_code"
NO_SANDBOX = "sandbox=process"
IMPORTS_ITS_VARIANT = {"verifiers"}
"""This package's own task families that import what stands after the colon."""

Named = tuple[str, str, str]
"""A setting that names code, the name to allow, and what would happen."""


def code_of_config(config: Config) -> list[Named]:
    """Return the code that a run's settings name."""
    found = code_of_task(config.task.name, config.task.options)
    if config.model.trust_remote_code:
        found.append(("model.trust_remote_code", REMOTE_CODE, "run the Python files that come with its model"))
    for name, stage in config.stages.items():
        if isinstance(stage, ReinforcementStage) and not _is_own("selfcorrect.methods", stage.method):
            found.append((f"stages.{name}.method", stage.method, "import it as the method"))
    engine = config.rollout.engine
    if engine not in ENGINES.builtin:
        found.append(("rollout.engine", engine, "import it as the engine"))
    found += [
        ("log.trackers", name, "import it as a tracker") for name in config.log.trackers if name not in TRACKERS.builtin
    ]
    if engine == VLLM:
        found += [
            (f"vllm.options.{key}", f"vllm.{key}", "pass it to vLLM, some of whose arguments name code")
            for key, value in config.vllm.options.items()
            if REMOTE_CODE in key or not isinstance(value, (bool, int, float))
        ]
    return found


def code_of_task(name: str, options: Mapping[str, Any], given: Collection[str] = ()) -> list[Named]:
    """Return the code that a task and its options name, apart from the options that the caller gave himself."""
    family = name.partition(":")[0]
    found: list[Named] = []
    own = _is_own("selfcorrect.tasks", family)
    if not own:
        found.append(("task.name", family, "make this task of another package, with its options"))
    elif family in IMPORTS_ITS_VARIANT:
        found.append(
            ("task.name", name, "import this installed package, and make its environment with the stored options")
        )
    # A name without a module, such as "math", is the task's own: nothing is imported.
    by_name = own and isinstance(options.get("verifier"), str) and ":" not in options["verifier"]
    if "verifier" in options and "verifier" not in given and not by_name:
        found.append(("task.options.verifier", str(options["verifier"]), "import it as the verifier"))
    if options.get("sandbox", "full") != "full" and "sandbox" not in given:
        found.append(("task.options.sandbox", NO_SANDBOX, "run the stored programs without a sandbox"))
    return found


def names_of_config(config: Config) -> list[str]:
    """Return the names to allow for settings that the caller chose himself."""
    return [name for _, name, _ in code_of_config(config)]


def flags(names: Iterable[str]) -> str:
    """Return the options that allow these names, with a blank before each.

    >>> flags(["my_verifier:check"])
    ' --allow-code my_verifier:check'
    """
    return "".join(f" --allow-code {shlex.quote(name)}" for name in dict.fromkeys(names))


def require_consent(path: Path, named: Sequence[Named], allowed: Collection[str]) -> None:
    """Reject code that a directory names and the caller did not allow.

    Raises:
        ConsentError: there is some; the message lists what would happen, and how to allow it.
    """
    left = [item for item in named if item[1] not in allowed]
    if left:
        listed = "".join(f"\n  - {setting} = {name!r}: it would {what}" for setting, name, what in left)
        names = dict.fromkeys(name for _, name, _ in left)
        raise ConsentError(
            f"{path} names code to run, and whoever wrote the directory chose it:{listed}\n"
            f"If you trust it, for instance because it is your own, repeat the command with{flags(names)} "
            f"(in Python: allow_code={list(names)!r})."
        )


def _is_own(group: str, name: str) -> bool:
    """Return whether a name is this package's own; an unknown one names nothing that could run."""
    if ":" in name:
        return False
    return all(point.value.startswith(OWN) for point in _points(group, name))


def _points(group: str, name: str) -> Iterator[EntryPoint]:
    return (point for point in entry_points(group=group) if point.name == name)
