"""User-defined tasks: JSONL files and a verifier named as ``module:function`` (docs/tasks.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.extras import importable, imported
from selfcorrect.script import GENERAL_INSTRUCTION, Instructions, Script
from selfcorrect.tasks.rows import Fields, RowsTask, refuse
from selfcorrect.tasks.sources import read_lines


class JsonlTask(RowsTask):
    """A `RowsTask` whose rows are the lines of JSONL files (UTF-8, one object per line; blank lines are skipped).

    Args:
        path: the problems. Splits without a separate file share them by a hash of the prompt.
        verifier: ``module:function``, looked up in the current directory first, as ``python -m`` does.
        dev_path, test_path: files that form the whole development or test split. ``test_path`` without ``path`` makes a
            task for evaluation on all its lines.
        prompt_field, reference_field, id_field, difficulty_field: the names of the fields.
        first, revise, system, turns: the script; see `Script`.
        name: the task's name; the default is the file's name without its suffix.
        trusted: run the verifier in this process, without a time limit.

    Raises:
        ConfigError: an argument or the verifier is invalid.
        DataError: a file is missing, empty or malformed, or a problem occurs twice in it or in two files;
            the message lists such lines, at most `rows.MAX_SHOWN`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        verifier: str = "",
        *,
        dev_path: str | Path | None = None,
        test_path: str | Path | None = None,
        prompt_field: str = "prompt",
        reference_field: str = "answer",
        id_field: str | None = None,
        difficulty_field: str | None = None,
        first: str = "{prompt}",
        revise: Instructions = GENERAL_INSTRUCTION,
        system: str | None = None,
        turns: int = 2,
        name: str | None = None,
        trusted: bool = False,
    ) -> None:
        paths = {Path(p) for p in (path, dev_path, test_path) if p is not None}
        if not paths:
            raise ConfigError("task 'jsonl' has no file: set its option path (or test_path, to evaluate).")
        name = name or Path(path or test_path or dev_path or "").stem
        function = ImportedFunction(verifier, str(Path.cwd()))
        errors: list[str] = []
        short = len({p.name for p in paths}) == len(paths)
        sources = {p: read_lines(p, p.name if short else str(p), errors) for p in sorted(paths)}
        refuse(name, errors)
        self._set_up(
            *(None if p is None else sources[Path(p)] for p in (path, dev_path, test_path)),
            verifier=function,
            fields=Fields(prompt_field, reference_field, id_field, difficulty_field),
            script=Script(first=first, revise=revise, system=system, turns=turns),
            name=name,
            trusted=trusted,
        )


class ImportedFunction:
    """The function ``module:function``, with ``directory`` first on the import path while it is imported or runs.

    `sys.path` is restored afterwards. A copy in another process imports the function again there.

    Raises:
        ConfigError: ``spec`` has another form, or there is no such module or function.
    """

    def __init__(self, spec: str, directory: str) -> None:
        self.spec, self.directory = spec, directory
        module, colon, attribute = spec.partition(":")
        if not (module and colon and attribute):
            raise ConfigError(
                f"verifier = {spec!r}: name a function as 'module:function', such as 'my_verifier:check'."
            )
        target = imported("verifier", spec, spec, directory=directory)
        if not callable(target):
            raise ConfigError(f"verifier = {spec!r} is {type(target).__name__}, not a function.")
        self.function: Callable[..., Any] = target

    def __call__(self, *arguments: Any) -> Any:
        with importable(self.directory):  # it may import more while it runs
            return self.function(*arguments)

    def __reduce__(self) -> tuple[type[ImportedFunction], tuple[str, str]]:
        return ImportedFunction, (self.spec, self.directory)
