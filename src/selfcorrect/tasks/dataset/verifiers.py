"""The verifiers that a data set names: how a reference is checked, an answer read, and the two compared.

A verifier's options are the fields of its class. Worker processes get a copy of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.dataset.answer_verifier import AnswerVerifier, Row, judged
from selfcorrect.tasks.dataset.choice_verifier import Choice
from selfcorrect.tasks.dataset.code_verifier import Code
from selfcorrect.tasks.dataset.patterns import compiled_pattern, last_group
from selfcorrect.tasks.jsonl import ImportedFunction
from selfcorrect.tasks.math import task as maths
from selfcorrect.tasks.math.equality import LENGTH_LIMIT, rational
from selfcorrect.tasks.math.reading import flexible_answer
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.math.written import number_text
from selfcorrect.tasks.options import wrong_types
from selfcorrect.tasks.verifier_pool import limit_memory
from selfcorrect.types import Outcome, Problem, Verdict


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
        return judged(text.strip(), self._form(text) == self._form(reference), "")

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
        return judged(None if answer is None else answer.strip(), found, "the pattern does not match")

    def written(self, problem: Problem) -> str:
        return self.form.replace("{answer}", problem.reference)

    def corrupted(self, problem: Problem) -> str:
        return self.form.replace("{answer}", corrupt_text(problem.reference))


@dataclass(frozen=True)
class NumberVerifier(AnswerVerifier):
    """The answer is the reference's number: 1,000 and 1000.0 are equal, 0.333 and 1/3 are not.

    The answer is found by the flexible rule of mathematics (docs/maths.md). Units and per cent signs do not count. A number
    must be written out: 6*11 is no answer where 66 is asked for, because that may be all that the problem says.
    """

    name = "number"
    revision = 3
    first = "{prompt}\n\nThink step by step, and end with a line of this form:\nThe answer is NUMBER."

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        if rational(reference, of_reference=True) is None:
            raise ValueError(f"the reference {reference!r:.60} is not a number")
        return reference, {}

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        answer = flexible_answer(text)
        if answer is None:
            return Verdict(Outcome.NO_ANSWER, detail="no answer by the flexible rule")
        value = rational(answer)
        if value is None:
            return Verdict(Outcome.INCORRECT, answer, "it states no single number that is written out")
        return judged(number_text(value), value == rational(reference, of_reference=True), "")

    def written(self, problem: Problem) -> str:
        computed = rational(problem.reference) is None  # a reference such as 6*11
        value = rational(problem.reference, of_reference=True) if computed else problem.reference
        return f"The answer is {value}."

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
