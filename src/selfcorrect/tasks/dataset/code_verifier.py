"""The verifier ``code``: programs that pass a row's tests, in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from selfcorrect.tasks.code.extraction import Extraction, parse
from selfcorrect.tasks.code.mbpp import called, defined, used
from selfcorrect.tasks.code.task import REVISE as REVISE_CODE
from selfcorrect.tasks.code.task import CodeSettings, CodeTask
from selfcorrect.tasks.dataset.answer_verifier import AnswerVerifier, Row
from selfcorrect.types import Problem, Split, Verdict


@dataclass(frozen=True)
class Code(AnswerVerifier):
    """The answer is a Python program that passes the tests, in the sandbox (docs/code.md); the reference is one, too.

    ``tests_field`` is the column of the tests: Python whose every ``assert`` is one check, or a list of such lines.
    ``entry_point_field`` names the requested function; by default it is the one of the reference that the tests call. For
    the others see `CodeSettings`.
    """

    name = "code"
    checks_references = False  # `selfcorrect tasks check` runs them
    first = "{prompt}\n\nWrite the program in Python, in one ```python block."
    revise = REVISE_CODE

    tests_field: str = "tests"
    entry_point_field: str | None = None
    sandbox: str = "full"
    extraction: Extraction = "flexible"
    seconds: float = 3.0
    wall_seconds: float = 4.0
    memory_mb: int = 512
    _task: CodeTask = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._settings.limits()

    @cached_property
    def _settings(self) -> CodeSettings:
        return CodeSettings(self.sandbox, self.extraction, self.seconds, self.wall_seconds, self.memory_mb)

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        reference = reference.replace("\r\n", "\n").strip()
        tests = row.get(self.tests_field)
        if isinstance(tests, list):
            tests = "\n".join(map(str, tests))
        if not isinstance(tests, str) or not tests.strip():
            raise ValueError(f"column {self.tests_field!r} has no tests; set tests_field to Python or a list of lines")
        names = defined(reference)
        if not names:
            raise ValueError("the reference is not Python that defines a function")
        tree = parse(tests)
        if tree is None:
            raise ValueError(f"the tests in column {self.tests_field!r} are not Python")
        entry = str(row.get(self.entry_point_field)) if self.entry_point_field else called(reference, tests)
        if entry not in names:
            raise ValueError(f"the reference does not define {entry!r}, the function to write")
        if "check" in defined(tests) and not re.search(r"^check\(", tests, re.MULTILINE):  # as HumanEval writes tests
            tests = f"{tests}\ncheck({entry})\n"
        if "assert" not in tests:
            raise ValueError(f"the tests in column {self.tests_field!r} assert nothing")
        wanted = sorted({entry} | (names & used(tests)))
        return reference, {"entry_point": entry, "tests": tests, "names": wanted, "preamble": ""}

    @property
    def version(self) -> str:
        return f"code-{self._task.version}"

    def bind(self, problems: Sequence[Problem]) -> None:
        object.__setattr__(self, "_task", CodeTask("dataset", "{prompt}", {Split.TEST: problems}, self._settings))

    def prepare(self) -> None:
        """Start the sandbox."""
        self._task.prepare()

    def close(self) -> None:
        """Kill the sandbox; a later verdict starts a new one."""
        self._task.close()

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        problem = Problem("", "", reference, data=row)
        return self._task.verify(problem, text)

    def written(self, problem: Problem) -> str:
        return f"```python\n{problem.reference}\n```"

    def corrupted(self, problem: Problem) -> str:
        return str(self._task.corrupt(problem))
