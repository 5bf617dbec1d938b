"""The verifiers that a data set names: how a reference is checked, an answer read, and the two compared.

A verifier's options are the fields of its class. It is made anew nowhere: worker processes get a copy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from selfcorrect.errors import ConfigError
from selfcorrect.script import GENERAL_INSTRUCTION
from selfcorrect.tasks.code.extraction import Extraction, parse
from selfcorrect.tasks.code.mbpp import called, defined, used
from selfcorrect.tasks.code.task import REVISE as REVISE_CODE
from selfcorrect.tasks.code.task import CodeSettings, CodeTask
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.dataset.choice import LETTERS, chosen, options_in
from selfcorrect.tasks.dataset.patterns import compiled_pattern, last_group
from selfcorrect.tasks.jsonl import ImportedFunction
from selfcorrect.tasks.math import task as maths
from selfcorrect.tasks.math.equality import LENGTH_LIMIT, rational
from selfcorrect.tasks.math.reading import flexible_answer
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.options import wrong_types
from selfcorrect.tasks.verifier_pool import limit_memory
from selfcorrect.types import Outcome, Problem, Split, Verdict

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerVerifier:
    """The base: a reference is its own correct answer."""

    name: ClassVar[str]
    trusted: ClassVar[bool] = False
    checks_references: ClassVar[bool] = True
    """Whether every reference is judged when the task is made, which must be quick."""
    bounded: ClassVar[str | None] = None
    """The option, if there is one, because of which references are judged in another process (`patterns.Bounded`)."""
    first: ClassVar[str] = "{prompt}"
    revise: ClassVar[str] = GENERAL_INSTRUCTION

    @property
    def version(self) -> str:
        """Return a text that changes with the verdicts; `maths.VERDICTS` covers how answers are found in texts."""
        return f"{self.name}-1-{maths.VERDICTS}-{blake2b(repr(self).encode(), digest_size=4).hexdigest()}"

    def shown(self, row: Row) -> Mapping[str, str]:
        """Return what a template may show besides the row's columns."""
        return {}

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        """Return the reference in one form, and what the verdict needs besides.

        Raises:
            ValueError: no answer can equal the reference, or the row lacks something.
        """
        return reference, {}

    def bind(self, problems: Sequence[Problem]) -> None:
        """Get to know all problems, once, before the first verdict."""

    def __call__(self, text: str, reference: str, row: Row) -> bool | Verdict:
        raise NotImplementedError

    def judge(self, problem: Problem, text: str) -> Verdict:
        """Return the verdict of an answer to a problem."""
        found = self(text, problem.reference, problem.data)
        return found if isinstance(found, Verdict) else Verdict(Outcome.CORRECT if found else Outcome.INCORRECT, text)

    def written(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it."""
        return problem.reference

    def corrupted(self, problem: Problem) -> str:
        """Return an incorrect answer in the same form."""
        return corrupt_text(problem.reference)


def _judged(answer: str | None, correct: bool, missing: str) -> Verdict:
    if answer is None:
        return Verdict(Outcome.NO_ANSWER, detail=missing)
    return Verdict(Outcome.CORRECT if correct else Outcome.INCORRECT, answer)


@dataclass(frozen=True)
class Exact(AnswerVerifier):
    """The whole answer is the reference, apart from white space at its ends.

    ``ignore_space`` makes every run of white space one blank; ``ignore_case`` compares casefolded text.
    """

    name = "exact"
    trusted = True
    first = "{prompt}\n\nReply with the answer alone, without an explanation."

    ignore_case: bool = False
    ignore_space: bool = True

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        return _judged(text.strip(), self._form(text) == self._form(reference), "")

    def _form(self, text: str) -> str:
        text = " ".join(text.split()) if self.ignore_space else text.strip()
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True)
class Regex(Exact):
    r"""The last match of ``pattern`` is the answer (its first group that took part), compared as `Exact` does.

    ``form`` says how a correct answer is written, such as ``#### {answer}``, so that references can be tried.
    """

    name = "regex"
    trusted = False  # a pattern may take very long
    bounded = "pattern"
    first = "{prompt}"

    pattern: str = ""
    form: str = "{answer}"

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ConfigError("verifier 'regex' needs its option pattern, such as pattern = '#### (.+)'.")
        if "{answer}" not in self.form:
            raise ConfigError(f"form = {self.form!r} lacks {{answer}}, which stands for the reference.")
        compiled_pattern(self.pattern, "pattern")

    def prepare(self) -> None:
        """Limit the memory of a verifier process, before the clock of any answer runs."""
        limit_memory()

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        answer = last_group(compiled_pattern(self.pattern, "pattern"), text)
        found = answer is not None and self._form(answer) == self._form(reference)
        return _judged(answer, found, "the pattern does not match")

    def written(self, problem: Problem) -> str:
        return self.form.replace("{answer}", problem.reference)

    def corrupted(self, problem: Problem) -> str:
        return self.form.replace("{answer}", corrupt_text(problem.reference))


@dataclass(frozen=True)
class NumberVerifier(AnswerVerifier):
    """The answer is the reference's number: 1,000 and 1000.0 and 2000/2 are equal, 0.333 and 1/3 are not.

    The answer is found by the flexible rule of mathematics (docs/maths.md). Units and per cent signs do not count.
    """

    name = "number"
    first = "{prompt}\n\nThink step by step, and end with a line of this form:\nThe answer is NUMBER."

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        if rational(reference, of_reference=True) is None:
            raise ValueError(f"the reference {reference!r:.60} is not a number")
        return reference, {}

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        answer = flexible_answer(text)
        value = None if answer is None else rational(answer)
        found = value is not None and value == rational(reference, of_reference=True)
        return _judged(answer, found, "no answer by the flexible rule")

    def written(self, problem: Problem) -> str:
        return f"The answer is {problem.reference}."

    def corrupted(self, problem: Problem) -> str:
        return f"The answer is {(rational(problem.reference, of_reference=True) or 0) + 1}."


@dataclass(frozen=True)
class Maths(AnswerVerifier):
    """The answer has the reference's value, as in the task ``math``; ``extraction`` is ``flexible`` or ``strict``."""

    name = "math"
    first = maths.FIRST
    revise = maths.REVISE

    extraction: str = "flexible"
    _verifier: maths.MathsVerifier = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_verifier", maths.MathsVerifier(self.extraction))

    @property
    def version(self) -> str:
        return f"math-{self._verifier.version}"

    def prepare(self) -> None:
        """Do what `MathsVerifier.prepare` does."""
        self._verifier.prepare()

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        if bare(reference).casefold() in ("", "nan"):
            raise ValueError(f"the reference {reference!r:.60} is empty")
        boxed = "\\boxed" in bare(reference)  # within other text, as in a worked solution
        if "\n" in reference.strip() or len(reference) > LENGTH_LIMIT or "####" in reference or boxed:
            raise ValueError(
                f"the reference {reference!r:.60} is a whole solution; name the column of the answer alone, or take the "
                "answer out with reference_pattern"
            )
        return reference, {}

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        return self._verifier(text, reference)

    def written(self, problem: Problem) -> str:
        return maths.final_answer(problem.reference)

    def corrupted(self, problem: Problem) -> str:
        return maths.corrupted(problem.reference)


@dataclass(frozen=True)
class Choice(AnswerVerifier):
    """The answer chooses the reference's option: ``(B)``, ``**B**``, ``The answer is B.``, ``B) Paris`` (`dataset.choice`).

    ``options_field`` is the column of the options (a list, or ARC's ``{text, label}``), or a list of columns that hold one
    each. Without it, the problem's own lines ``A) ...`` list them, and without those any letter from A to J may be the key.

    The reference is a letter, a label, or the text of one option. ``count_from`` is the number of the first option where
    references are numbers.
    """

    name = "choice"
    trusted = True
    first = "{prompt}\n\nThink step by step, and end with a line of this form:\nThe answer is (X)."

    options_field: str | list[str] | None = None
    count_from: int | None = None

    def shown(self, row: Row) -> Mapping[str, str]:
        if self.options_field is None:
            return {}
        return {"options": "\n".join(f"{letter}) {text}" for letter, (_, text) in self._options(row).items())}

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        if self.options_field is None:
            listed = options_in(prompt)
            options = {letter: (letter, listed.get(letter, "")) for letter in listed or LETTERS}
        else:
            options = self._options(row)
        key = self._key(reference.strip(), options)
        return key, {"options": {letter: text for letter, (_, text) in options.items()}}

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        answer = chosen(text, row["options"])
        return _judged(answer, answer == reference, "the text chooses no option, or several")

    def written(self, problem: Problem) -> str:
        return f"The answer is ({problem.reference})."

    def corrupted(self, problem: Problem) -> str:
        letters = list(problem.data["options"])
        return f"The answer is ({letters[(letters.index(problem.reference) + 1) % len(letters)]})."

    def _options(self, row: Row) -> dict[str, tuple[str, str]]:
        """Return each option's own label and text by its letter."""
        labels, texts = self._columns(row)
        if not isinstance(texts, list) or not all(isinstance(text, str | int | float) for text in texts):
            raise ValueError(
                f"the options {texts!r:.80} are no list of texts; options_field may also be a list of columns"
            )
        if not 2 <= len(texts) <= len(LETTERS):
            raise ValueError(f"{len(texts)} options: a question needs 2 to {len(LETTERS)}")
        written = [str(text).strip() for text in texts]
        if not all(written) or len({text.casefold() for text in written}) < len(written):
            raise ValueError(f"the options {written!r:.80} must differ, and none may be empty")
        own = labels if isinstance(labels, list) and len(labels) == len(texts) else list(LETTERS)
        return {letter: (str(label), text) for letter, label, text in zip(LETTERS, own, written, strict=False)}

    def _columns(self, row: Row) -> tuple[Any, Any]:
        """Return the labels and the texts as the row has them."""
        names = [self.options_field] if isinstance(self.options_field, str) else self.options_field or []
        if absent := [name for name in names if name not in row]:
            columns = ", ".join(map(repr, row))
            raise ValueError(
                f"no column {', '.join(map(repr, absent))} among {columns}; set options_field to the right one"
            )
        if isinstance(self.options_field, list):
            return names, [row[name] for name in names]
        value = row[names[0]]
        return (value.get("label"), value.get("text")) if isinstance(value, Mapping) else (LETTERS, value)

    def _key(self, reference: str, options: Mapping[str, tuple[str, str]]) -> str:
        named = [letter for letter, (label, _) in options.items() if reference == label]
        same = [letter for letter, (_, text) in options.items() if text and reference.casefold() == text.casefold()]
        letter = re.fullmatch(r"[(\[]?\s*([A-Ja-j])\s*[)\].:]*", reference)
        if self.count_from is not None and re.fullmatch(r"\d{1,3}", reference):
            place = int(reference) - self.count_from
            found = list(options)[place : place + 1] if place >= 0 else []
        elif named:
            found = named
        elif letter and letter[1].upper() in options:
            found = [letter[1].upper()]
        else:
            found = same
        if not found:
            hint = " (count_from = 0 or 1 reads numbers)" if reference.isdigit() and self.count_from is None else ""
            raise ValueError(f"the key {reference!r:.40} is not among the options {', '.join(options)}{hint}")
        return found[0]


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


@dataclass(frozen=True)
class Function(AnswerVerifier):
    """A ``module:function`` of your own, which gets the text, the reference and the whole row; see the task ``jsonl``.

    ``trusted`` runs it in the main process, without a time limit.
    """

    name = "module:function"
    checks_references = False  # it may be slow, and a reference need not be an answer

    trusted: bool = False  # type: ignore[misc]
    function: Callable[..., Any] = field(default=lambda *_: None, repr=False)

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        return reference, dict(row)

    def __call__(self, text: str, reference: str, row: Row) -> bool | Verdict:
        result: bool | Verdict = self.function(text, reference, row)
        return result


VERIFIERS: dict[str, type[AnswerVerifier]] = {
    kind.name: kind for kind in (Exact, Regex, NumberVerifier, Maths, Choice, Code)
}
"""The verifiers with a name of their own."""


def option_names(kind: type[AnswerVerifier]) -> list[str]:
    """Return the names of a verifier's options."""
    return [each.name for each in fields(kind) if each.init and each.name != "function"]


def make_verifier(name: str, options: Mapping[str, Any], of_task: Sequence[str] = ()) -> AnswerVerifier:
    """Return the verifier called ``name``, or the function ``module:function``, with its options.

    ``of_task`` are the names of the task's own options, for the suggestion in a message.

    Raises:
        ConfigError: there is no such verifier, or it has no such option, or a value has another type.
    """
    if ":" not in name and name not in VERIFIERS:
        close = difflib.get_close_matches(name, VERIFIERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"verifier = {name!r}: choose one of {', '.join(VERIFIERS)}, or name a function as 'module:function'.{hint}"
        )
    kind = VERIFIERS.get(name, Function)
    own = option_names(kind)
    unknown = [option for option in options if option not in own]
    if unknown:
        others = [other.name for other in VERIFIERS.values() if unknown[0] in option_names(other)]
        close = difflib.get_close_matches(unknown[0], [*own, *of_task], n=1)
        hint = f" {others[0]!r} has it." if others else f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"task 'dataset' with verifier {name!r} has no option {', '.join(map(repr, unknown))}; "
            f"this verifier takes {', '.join(own) or 'none'}.{hint}"
        )
    wrong = wrong_types({key: kind_of for key, kind_of in get_type_hints(kind).items() if key in own}, options)
    if wrong:
        raise ConfigError(f"verifier {name!r} rejects its options:\n" + "\n".join(f"  - {line}" for line in wrong))
    if kind is Function:
        return Function(function=ImportedFunction(name, str(Path.cwd())), **options)
    return kind(**options)
