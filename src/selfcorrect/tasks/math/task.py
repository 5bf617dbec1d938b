"""Mathematics with the paper's prompts: MATH, GSM8K, and GSM-Symbolic, which is made offline.

Differences from the paper (docs/method.md, section 9):

1. The paper's instruction precedes the problem in the user's message, not in a few-shot prompt.
2. ``dev`` training problems are held out for development, because settings are chosen on them; ``dev=0`` is exactly the
   paper's split of MATH: 12,000 problems for training, MATH-500 for the test.
3. The reward comes from the flexible reading of the answer unless ``extraction = "strict"``; both are reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, ClassVar

from selfcorrect.config import aliases
from selfcorrect.config.settings import MAX_PROBLEMS
from selfcorrect.errors import ConfigError
from selfcorrect.extras import missing, require
from selfcorrect.rng import generator
from selfcorrect.script import Script
from selfcorrect.tasks.math.data import Convert, DataRow, gsm8k_row, math_row, read_source, set_apart, without
from selfcorrect.tasks.math.equality import compared_part, equal
from selfcorrect.tasks.math.reading import flexible_answer, strict_answer
from selfcorrect.tasks.rows import MAX_RESPONSES, Fields, RowsTask, Source, refuse
from selfcorrect.tasks.splits import take_split
from selfcorrect.tasks.verifier_pool import limit_memory
from selfcorrect.types import Outcome, Problem, Split, Verdict

FORM = (
    "At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)
FIRST = (
    "You are a math expert. When you respond, respond only with the Solution of the final Problem, thinking step by "
    f"step. {FORM}\n\n{{prompt}}"
)
"""The paper's prompt for MATH, before the problem."""
REVISE = (
    "There might be an error in the solution above because of lack of understanding of the question. Please correct "
    f"the error, if any, and rewrite the solution. Only output the final solution! {FORM}"
)
"""The paper's second-turn instruction for MATH."""

EXTRACTIONS = {"strict": strict_answer, "flexible": flexible_answer}
VERDICTS = "3"
"""The version of how answers are found in texts and compared; change it whenever an outcome could change."""
EXTRACTED = "1"
"""The version of the answers that this verifier's verdicts hold, which decide whether two attempts have the same answer."""


class MathsVerifier:
    """A verifier of mathematical texts that reports both by_rule of the answer and rewards one.

    Args:
        extraction: the reading that counts, ``flexible`` or ``strict``; see `tasks.math.reading`.

    Raises:
        ConfigError: there is no such extraction, or math-verify is not installed.
    """

    def __init__(self, extraction: str) -> None:
        extraction = aliases.extraction(extraction)
        if extraction not in EXTRACTIONS:
            raise ConfigError(f"extraction = {extraction!r}: choose one of {', '.join(EXTRACTIONS)}.")
        try:
            self.version = f"{VERDICTS}.{EXTRACTED}+math-verify-{installed_version('math-verify')}+{extraction}"
        except ImportError as error:
            why = "the verifier of mathematics"
            raise missing("math_verify", extra="math", why=why, reason=str(error)) from error
        self.extraction = extraction

    def __call__(self, text: str, reference: str, row: Mapping[str, Any] | None = None) -> Verdict:
        answers = {name: extract(text) for name, extract in EXTRACTIONS.items()}
        outcomes = {answer: _outcome(reference, answer) for answer in set(answers.values())}
        answer = answers[self.extraction]
        by_rule = {name: outcomes[answer] for name, answer in answers.items()}
        if answer is None:
            return Verdict(outcomes[answer], None, f"no answer by the {self.extraction} rule", by_rule)
        return Verdict(outcomes[answer], *compared_part(reference, answer), by_rule)

    def prepare(self) -> None:
        """Import sympy and limit the memory, in a verifier process before the clock of any answer runs."""
        import logging

        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its own time limits are off
        equal("\\sum_{k=1}^{2} k", "3")
        limit_memory()


def _outcome(reference: str, answer: str | None) -> Outcome:
    if answer is None:
        return Outcome.NO_ANSWER
    return Outcome.CORRECT if equal(reference, answer) else Outcome.INCORRECT


def final_answer(answer: str) -> str:
    """Return the answer in the form that the prompt asks for."""
    return f"Final Answer: The final answer is ${answer}$. I hope it is correct."


def corrupted(reference: str) -> str:
    r"""Return an incorrect answer in the requested form: its last number one higher, or 1 added where it has none.

    >>> corrupted("\\frac{1}{9}") == final_answer("\\frac{1}{10}"), corrupted("x") == final_answer("x + 1")
    (True, True)
    """
    numbers = list(re.finditer(r"\d+", reference))
    if not numbers:
        return final_answer(f"{reference} + 1")
    start, end = numbers[-1].span()
    return final_answer(f"{reference[:start]}{int(reference[start:end]) + 1}{reference[end:]}")


def _kept(convert: Convert, responses: list[str], row: DataRow) -> dict[str, Any]:
    """Convert a row, and keep the first worked solutions."""
    converted = convert(row)
    whole = row.get("solution") or row.get("answer")
    if len(responses) < MAX_RESPONSES and isinstance(whole, str) and len(whole) > len(str(converted["answer"])):
        responses.append(whole)
    return converted


class _StoredMaths(RowsTask):
    """Problems of a published data set; a subclass names its sources and converts its rows.

    Args:
        path: the problems: a .jsonl or .parquet file, a directory of a dataset, or a hub id. By default the hub's.
        test_path: the test problems, which are left out of ``path``. With ``path`` alone, a hash splits its problems
            (80% / 10% / 10%).
        dev: the number of training problems, at most a tenth, that are held out for development.
        extraction: the reading of the answer that counts, ``flexible`` or ``strict``.
        first, revise, system, turns: the script; see `Script`.

    Raises:
        ConfigError: an option is invalid, or a package is missing.
        DataError: the problems cannot be loaded, or rows are malformed.
    """

    family: ClassVar[str]
    hub: ClassVar[tuple[str, str]]
    convert: ClassVar[staticmethod[[DataRow], dict[str, Any]]]

    def __init__(
        self,
        path: str | Path | None = None,
        test_path: str | Path | None = None,
        *,
        dev: int = 500,
        extraction: str = "flexible",
        first: str = FIRST,
        revise: str = REVISE,
        system: str | None = None,
        turns: int = 2,
    ) -> None:
        if dev < 0:
            raise ConfigError(f"dev = {dev}: give a number of problems, 0 or more.")
        verifier = MathsVerifier(extraction)
        if path is None and test_path is None:
            path, test_path = self.hub
        errors: list[str] = []
        self.responses: list[str] = []
        convert = partial(_kept, type(self).convert, self.responses)
        main, test = (None if p is None else read_source(p, convert, errors) for p in (path, test_path))
        refuse(self.family, errors)
        development: Source | None = None
        if main is not None and test is not None:
            main, development = set_apart(without(main, test), dev)
        self._set_up(
            main,
            development if development and development.rows else None,
            test,
            verifier=verifier,
            fields=Fields(id="id", difficulty="difficulty"),
            script=self.script_of_options(first=first, revise=revise, system=system, turns=turns),
            name=self.family,
            trusted=False,
        )
        if development is not None and not development.rows:  # else a tenth would go to development regardless
            self._problems[Split.TRAIN] += self._problems[Split.DEV]
            self._problems[Split.DEV] = []
        self.version = f"{verifier.version}+{self.version}"
        self.prepare = verifier.prepare

    @classmethod
    def script_of_options(
        cls, *, first: str = FIRST, revise: str = REVISE, system: str | None = None, turns: int = 2, **others: Any
    ) -> Script:
        """Return the script of a task with these options."""
        return Script(first=first, revise=revise, system=system, turns=turns)

    def answer(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it."""
        return final_answer(problem.reference)

    def corrupt(self, problem: Problem) -> str:
        return corrupted(problem.reference)


class MathTask(_StoredMaths):
    """Competition mathematics (MATH): 12,000 problems to train on, MATH-500 to test on, from the hub or from files.

    Rows have ``problem`` and ``solution`` (the answer in its last box) or ``answer``; ``level`` is the difficulty.
    For the options see `_StoredMaths`.
    """

    family = "math"
    hub = ("EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500")
    convert = staticmethod(math_row)


class Gsm8kTask(_StoredMaths):
    """Grade-school word problems (GSM8K) from the hub or from files.

    Rows have ``question`` and ``answer``, which ends in ``#### NUMBER``. For the options see `_StoredMaths`.
    """

    family = "gsm8k"
    hub = ("openai/gsm8k/main:train", "openai/gsm8k/main:test")
    convert = staticmethod(gsm8k_row)


FAULTY = {
    3: "rounds the hours down",
    4: "rounds the racks down, to 0 too",
    24: "asks for ages that come out as 0 and below",
    46: "writes 2/3 as 0.6666666666666666",
    52: "rounds a third of the letters down, and writes it out",
    66: "writes hours like 35.916666666666664",
    75: "rounds half a tube down",
    99: "loses a unit to floating point (23.72 - 14.72 = 8)",
}
"""Templates of reasoning-gym 0.1.25's gsm_symbolic with incorrect references or unreadable numbers, and their faults.

Evaluating every equation of 300 worked solutions per template revealed them; the generator itself leaves out 15 more."""


class GsmSymbolicTask:
    """Grade-school word problems made from GSM-Symbolic's templates with fresh numbers: offline, and without end.

    The templates come from reasoning-gym, without those in `FAULTY`. The three splits share templates, but no problem.

    Args:
        size: the number of problems in a split without a limit.
        extraction: the reading of the answer that counts, ``flexible`` or ``strict``.
        first, revise, system, turns: the script; see `Script`.

    Raises:
        ConfigError: an option is invalid, or a package is missing.
    """

    trusted_verifier = False
    name = "gsm_symbolic"

    def __init__(
        self,
        *,
        size: int = 1000,
        extraction: str = "flexible",
        first: str = FIRST,
        revise: str = REVISE,
        system: str | None = None,
        turns: int = 2,
    ) -> None:
        if not 1 <= size <= MAX_PROBLEMS:
            raise ConfigError(f"size = {size}: a split has 1 to {MAX_PROBLEMS:,} problems.")
        require("reasoning_gym", extra="math", why="task 'gsm_symbolic'")
        self._verifier = MathsVerifier(extraction)
        self._size = size
        self.script = Script(first=first, revise=revise, system=system, turns=turns)
        self.version = f"1+reasoning-gym-{installed_version('reasoning-gym')}+{self._verifier.version}"
        self.prepare = self._verifier.prepare

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return the first ``limit`` (else ``size``) distinct problems of a split in the stream of ``seed``."""
        return take_split(_word_problems(seed), split, self._size if limit is None else limit, name=self.name)

    def verify(self, problem: Problem, text: str) -> Verdict:
        return self._verifier(text, problem.reference)

    def answer(self, problem: Problem) -> str:
        """Return a correct answer as a model may write it."""
        return final_answer(problem.reference)

    def corrupt(self, problem: Problem) -> str:
        return corrupted(problem.reference)


def _word_problems(seed: int) -> Iterator[Problem]:
    """Yield problems without end; a random template and random numbers make each one."""
    import random

    from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import (
        GSMSymbolicDataset,
        GSMSymbolicDatasetConfig,
        tasks_ok,
    )

    templates = [number for number in tasks_ok if number not in FAULTY]
    makers = GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=0, size=1)).generators
    choice = generator("gsm_symbolic", seed)
    index = 0
    while True:
        for template in choice.choice(templates, 256):
            own = blake2b(f"gsm_symbolic/{seed}/{index}".encode(), digest_size=8).digest()
            made = makers[int(template)](random.Random(int.from_bytes(own, "big")), 1.0)
            steps = made["metadata"]["answer_cot"].count("\n")
            number = f"{float(made['answer']):.10g}"  # some templates write 60.0
            yield Problem(f"{seed}-{index}", made["question"], number, f"{steps} steps", {"template": int(template)})
            index += 1
