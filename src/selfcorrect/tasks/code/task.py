"""The base of all code tasks: the paper's prompts, and verdicts from the sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Any, get_type_hints

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.code.extraction import Extraction, check_mode, extract_program
from selfcorrect.tasks.options import wrong_types
from selfcorrect.tasks.sandbox import ExitStatus, Limits, Program, Result, Sandbox, require_isolation
from selfcorrect.types import Outcome, Problem, Split, Verdict

REVISE = (
    "# There might be an error in the code above because of lack of understanding of the question. Please correct the "
    "error, if any, and rewrite the solution. Only output the final correct Python program!"
)
"""The paper's second-turn instruction for code (docs/method.md, section 9)."""

VERDICTS = "3"
"""The version of the verdicts; change it whenever a verdict could change, as by another rule of `extraction`."""

_OUTCOMES = {
    ExitStatus.PASSED: Outcome.CORRECT,
    ExitStatus.FAILED: Outcome.INCORRECT,
    ExitStatus.TIMED_OUT: Outcome.TIMED_OUT,
    ExitStatus.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
    ExitStatus.REFUSED: Outcome.REFUSED,
    ExitStatus.SANDBOX_FAILED: Outcome.VERIFIER_FAILED,
}
"""The outcome of each exit status."""

_SHOWN_CHECKS = 100


@dataclass(frozen=True, slots=True)
class CodeSettings:
    """The options of every code task: how programs are extracted and run, and the script after the first message.

    ``sandbox`` is ``full`` or ``process``; ``extraction`` is ``flexible`` or ``strict``. ``seconds`` limits a program's
    CPU time, ``wall_seconds`` its wall-clock time, all tests together, and ``memory_mb`` its memory. ``revise``,
    ``system`` and ``turns`` belong to the script (see `Script`), whose first message is the task's.
    """

    sandbox: str = "full"
    extraction: Extraction = "flexible"
    seconds: float = 3.0
    wall_seconds: float = 4.0
    memory_mb: int = 512
    revise: Instructions = field(default=REVISE, repr=False)  # the repr holds only what verdicts depend on
    system: str | None = field(default=None, repr=False)
    turns: int = field(default=2, repr=False)

    def __post_init__(self) -> None:
        wrong = wrong_types(
            get_type_hints(CodeSettings), {each.name: getattr(self, each.name) for each in fields(self)}
        )
        if wrong:
            raise ConfigError("the options of a code task are rejected:\n" + "\n".join(f"  - {line}" for line in wrong))
        check_mode(self.extraction)
        self.limits()

    def limits(self) -> Limits:
        """Return the limits in the sandbox's form."""
        return Limits(self.seconds, self.wall_seconds, self.memory_mb * 2**20)

    def script(self, first: str = "{prompt}") -> Script:
        """Return the whole script."""
        return Script(first, self.revise, self.system, self.turns)


class CodeTask:
    """A task whose answers are programs; a correct one passes every test. ``first`` is the script's first message.

    ``Problem.data`` holds ``entry_point`` (the requested function), ``tests`` (Python, see `sandbox.Program`), ``names``
    (all names that the program defines), ``preamble`` (trusted code for the tests) and sometimes ``wrong``, a list of
    incorrect programs. A subclass provides the problems.

    Raises:
        ConfigError: the requested isolation does not work here.
    """

    trusted_verifier = False

    def __init__(
        self, name: str, first: str, problems: Mapping[Split, Sequence[Problem]], settings: CodeSettings
    ) -> None:
        require_isolation(settings.sandbox)
        self.name, self.script = name, settings.script(first)
        self._problems = problems
        self._settings = settings
        self._sandbox: Sandbox | None = None
        tests = (p.data["tests"] + p.data["preamble"] for several in problems.values() for p in several)
        self._packages = ("numpy",) if any("numpy" in text for text in tests) else ()
        self.version = f"{VERDICTS}+{_digest(problems, settings)}"

    @classmethod
    def script_of_options(cls, *, first: str = "{prompt}", **options: Any) -> Script:
        """Return the script of a task with these options, some of which are a subclass's own."""
        own = {each.name for each in fields(CodeSettings)}
        return CodeSettings(**{name: value for name, value in options.items() if name in own}).script(first)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sandbox": None}

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return the problems of a split in the order of their source; ``seed`` has no effect.

        Raises:
            DataError: the split is empty.
        """
        problems = self._problems.get(split, ())
        if not problems:
            sizes = ", ".join(f"{len(self._problems.get(s, ()))} {s}" for s in Split)
            raise DataError(f"task {self.name!r} has no {split} problems ({sizes}).")
        return problems[:limit]

    @property
    def sizes(self) -> dict[Split, int]:
        """Return how many problems each split has; nothing for a task that makes its problems."""
        return {split: len(several) for split, several in self._problems.items()}

    def prepare(self) -> None:
        """Start the sandbox before the clock of any program runs."""
        self._warm().start()

    def verify(self, problem: Problem, text: str) -> Verdict:
        data = problem.data
        code = extract_program(
            text, entry_point=data["entry_point"], names=data["names"], mode=self._settings.extraction
        )
        if code is None:
            return Verdict(Outcome.NO_ANSWER, detail="no program in the text")
        program = Program(self.assemble(problem, code), data["tests"], tuple(data["names"]), data["preamble"])
        return verdict(self._warm().run(program), code)

    def assemble(self, problem: Problem, code: str) -> str:
        """Return the whole program: the extracted code with the prompt's part."""
        return code

    def solution(self, problem: Problem) -> str:
        """Return the reference program in the form in which a model is to write it."""
        return f"```python\n{problem.reference}\n```"

    def corrupt(self, problem: Problem) -> str:
        """Return an incorrect program: one of the problem's own, or the reference with changed results."""
        wrong: Sequence[str] = problem.data.get("wrong", ())
        code = wrong[0] if wrong else changed_results(problem.reference, problem.data["entry_point"])
        return f"```python\n{code}\n```"

    def close(self) -> None:
        """Kill the sandbox; a later `verify` starts a new one."""
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _warm(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = Sandbox(self._settings.sandbox, self._settings.limits(), self._packages)
        return self._sandbox


def verdict(result: Result, code: str) -> Verdict:
    """Return the verdict for a sandbox result, with the outcomes of its first hundred tests."""
    detail = "" if result.passed else f"{result.ending}: {result.error}"
    return Verdict(_OUTCOMES[result.ending], code, detail, checks=result.checks[:_SHOWN_CHECKS])


def changed_results(program: str, entry_point: str) -> str:
    """Return the program with every result of ``entry_point`` replaced by a near one of the same type.

    >>> space = {}
    >>> exec(changed_results("def f(x): return x", "f"), space)
    >>> [space["f"](x) for x in (1, "a", True, [1], None)]
    [2, 'a?', False, [1, None], 0]
    """
    return f"""{program}


def _near(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, (list, tuple)):
        return type(value)([*value, None])
    return {{**value, None: None}} if isinstance(value, dict) else 0


_right = {entry_point}


def {entry_point}(*arguments, **keywords):
    return _near(_right(*arguments, **keywords))
"""


def _digest(problems: Mapping[Split, Sequence[Problem]], settings: CodeSettings) -> str:
    digest = blake2b(repr(settings).encode(), digest_size=6)
    for split, several in problems.items():
        for p in several:
            digest.update(repr((split.value, p.id, p.prompt, p.data["tests"], p.data["preamble"])).encode())
    return digest.hexdigest()
