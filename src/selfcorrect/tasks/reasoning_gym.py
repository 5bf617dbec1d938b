"""Every generator of reasoning-gym by name: ``reasoning_gym:chain_sum``.

This module adds to reasoning-gym:

1. Splits. reasoning-gym has none, and consecutive seeds overlap (problem i of a seed is problem i - 1 of the next).
   Here the hash of its text assigns a problem to a split (`tasks.splits`), and different seeds draw from hashed seeds.
2. Reproducible problems. Generators run in a separate Python process with a fixed hash seed. Without it at least five
   give different problems each time: isomorphic_strings, polynomial_multiplication, ransom_note and word_ladder iterate
   over sets, and list_functions reads the global random state.
3. A strict threshold. An answer is correct with a score of at least ``threshold`` = 1.0, which every generator gives its
   own answer. A lower threshold passes incorrect answers: time_intervals gives 0.99 for a day too many, and
   rotate_matrix, modulo_grid and codeio for a wrong character in a long answer.
4. Corrections. `QUIRKS` lists the generators whose own verifier needs help, and how.

Verifiers of several generators evaluate the model's text with sympy, so they always run in worker processes.
"""

from __future__ import annotations

import difflib
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version as installed_version
from typing import Any

from selfcorrect.config.settings import MAX_PROBLEMS
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.extras import require
from selfcorrect.script import Instructions, Script
from selfcorrect.tasks.corruption import corrupt_text
from selfcorrect.tasks.math.equality import compared_part, rational
from selfcorrect.tasks.math.quantities import quantity
from selfcorrect.tasks.math.reading import NUMBER, last_marked
from selfcorrect.tasks.math.spelling import has_words
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.own_process import in_own_process
from selfcorrect.tasks.splits import take_split
from selfcorrect.types import Outcome, Problem, Split, Verdict

FIRST = "{prompt}\n\nGive your final answer, and nothing else, between <answer> and </answer>."
REVISE = (
    "There might be an error in the solution above because of lack of understanding of the question. Please correct "
    "the error, if any, and rewrite the solution. Give your final answer, and nothing else, between <answer> and "
    "</answer>."
)

_BLOCK = 2000  # problems per seed; word_ladder and acre do setup work in proportion to it


@dataclass(frozen=True, slots=True)
class Quirk:
    """The peculiarities of one generator of reasoning-gym 0.1.25.

    ``reference`` is the metadata key of an answer, for an entry that has none itself. ``malformed`` lists the exceptions
    that its verifier raises for answers it cannot parse, which are then WRONG. ``exact`` compares with the reference
    instead of calling the generator. ``not_numbers`` makes "nan" WRONG. ``corrupted`` replaces the general corruption.
    """

    reference: str | None = None
    malformed: tuple[type[Exception], ...] = ()
    exact: bool = False
    not_numbers: bool = False
    corrupted: str | None = None


QUIRKS: dict[str, Quirk] = {
    # There is no known answer: reference is "". The verifier simulates the answer.
    "boxnet": Quirk(malformed=(TypeError, AttributeError, KeyError, ValueError)),
    "rush_hour": Quirk(),
    # The answer is one of many, and only the metadata hold it.
    "graph_color": Quirk(reference="possible_answer"),
    "propositional_logic": Quirk(reference="example_answer", corrupted="no formula"),  # (Q or R) may follow as well
    "rubiks_cube": Quirk(reference="example_correct_answer"),
    # Its verifier accepts every text that is not empty.
    "game_of_life_halting": Quirk(exact=True),
    # Its verifier accepts "nan": min(1.0, nan) is 1.0.
    "complex_arithmetic": Quirk(not_numbers=True),
    # These raise instead of scoring 0.
    "coin_flip": Quirk(malformed=(OverflowError,)),
    "game_of_life": Quirk(malformed=(KeyError, TypeError, IndexError)),
    "prime_factorization": Quirk(malformed=(ValueError,)),
}
"""Known but left alone: the verifiers of fraction_simplification, the two integrations, kakurasu, knights_knaves,
quantum_lock, sokoban, tower_of_hanoi and time_intervals overlook stray characters around a correct answer; coin_flip
also compares digits as text, so a reference of 1 accepts 100000000000000000000."""


class ReasoningGymTask:
    """Problems and verdicts of one reasoning-gym generator.

    The answer is the text between the last ``<answer>`` and ``</answer>``. Without such tags it is what a marker
    introduces (``The answer is ...``, a box), or else the last line that is not blank or, where the reference itself has several
    lines, the whole text. Where the reference is a number, words and units around the only number of an answer, and what
    leads to it by ``=``, are left out. An empty answer, or an ``<answer>`` that is never closed, is NO_ANSWER. With
    ``last_number`` the answer is the last number of the text, whatever stands around it.

    Args:
        variant: the generator's name.
        threshold: the lowest score of a correct answer, above 0 and at most 1.
        last_number: read the last number as the answer, for generators with numeric answers.
        size: the number of problems in a split without a limit.
        first, revise, system, turns: the script; see `Script`.
        options: the generator's own settings (``min_terms = 3``).

    Raises:
        ConfigError: reasoning-gym is not installed, or does not know the generator or an option.
    """

    trusted_verifier = False

    def __init__(
        self,
        variant: str = "",
        *,
        threshold: float = 1.0,
        last_number: bool = False,
        size: int = 1000,
        first: str = FIRST,
        revise: Instructions = REVISE,
        system: str | None = None,
        turns: int = 2,
        **options: Any,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"threshold = {threshold}: the lowest correct score must lie above 0 and at most at 1.")
        if not 1 <= size <= MAX_PROBLEMS:
            raise ConfigError(f"size = {size}: a split has 1 to {MAX_PROBLEMS:,} problems.")
        _check_generator(variant, options)
        self.name = f"reasoning_gym:{variant}"
        self.script = Script(first=first, revise=revise, system=system, turns=turns)
        self._variant, self._options = variant, options
        self._threshold, self._size, self._last_number = threshold, size, last_number
        self._quirk = QUIRKS.get(variant, Quirk())
        self._scorer: Any = None
        how = ["last_number"] if last_number else []
        settings = json.dumps([variant, options, threshold, *how], sort_keys=True, default=repr)
        digest = blake2b(settings.encode(), digest_size=4).hexdigest()
        self.version = f"3+reasoning-gym-{installed_version('reasoning-gym')}+{digest}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorer": None}

    def problems(self, split: Split, *, seed: int, limit: int | None = None) -> Sequence[Problem]:
        """Return the first ``limit`` (else ``size``) distinct problems of a split in the stream of ``seed``.

        A split holds only part of what the generator yields (`splits.SHARES`), so a test problem costs ten draws. Slow
        generators therefore take their time.

        Raises:
            DataError: the generator has too few distinct problems, or it failed.
        """
        request = (self._variant, self._options, split, seed, self._size if limit is None else limit)
        problems: list[Problem] = in_own_process(_draw, request, what=f"the generator of task {self.name!r}")
        return problems

    def prepare(self) -> None:
        """Import reasoning-gym and build the scorer before the clock of any answer runs."""
        if self._scorer is None:
            self._scorer = _dataset(self._variant, self._options, seed=0, size=10)

    def verify(self, problem: Problem, text: str) -> Verdict:
        answer = last_number(text) if self._last_number else extract(text, problem.reference)
        if not answer:
            return Verdict(Outcome.NO_ANSWER, detail="no text, or an <answer> without text or </answer>")
        try:
            score = self._score(problem, answer)
        except self._quirk.malformed as error:
            return Verdict(Outcome.INCORRECT, extracted=answer, detail=f"not in the expected form ({error})"[:200])
        right = score >= self._threshold
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, answer, "" if right else f"score {score:.4g}")

    def corrupt(self, problem: Problem) -> str:
        return self._quirk.corrupted or corrupt_text(problem.reference)

    def _score(self, problem: Problem, answer: str) -> float:
        if self._quirk.exact:
            return float(answer.casefold() == problem.reference.strip().casefold())
        if self._quirk.not_numbers and "nan" in answer.casefold():
            return 0.0
        self.prepare()
        entry = {"question": problem.prompt, "answer": problem.data["answer"], "metadata": problem.data["metadata"]}
        score = self._scorer.score_answer(answer, entry)
        if not isinstance(score, int | float) or math.isnan(score):
            raise ValueError(f"the generator's score is {score!r}, not a number")
        return float(score)


IS_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?", re.ASCII)


def extract(text: str, reference: str) -> str | None:
    """Return the bare answer in a model's text by the rule of `ReasoningGymTask`, or None.

    >>> extract("2 + 2 is <answer> 4 </answer>.", "4"), extract("So it is\\n4\\n", "4"), extract("<answer>4", "4")
    ('4', '4', None)
    >>> extract("8 * 5 = 40", "40"), extract("The answer is 40 legs.\\nBye!", "40"), extract("The answer is No.", "No")
    ('40', '40', 'No')
    """
    if tagged := re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, flags=re.DOTALL):
        answer = str(tagged[-1]).strip()
        return (_as_number(answer, reference) or answer) or None
    if "<answer>" in text or not text.strip():
        return None
    whole = text.strip()
    if "\n" in reference.strip():
        return whole
    line = whole.splitlines()[-1].strip()
    found = _as_number(last_marked(whole) or "", reference) or _as_number(line, reference)
    return found or last_marked(line) or line


def _as_number(answer: str, reference: str) -> str | None:
    """Return the number that an answer states, as it is written there; None without one, or if the reference is no number.

    What is left to compute states none (`rational`), and neither does a text with several numbers.
    """
    if not IS_NUMBER.fullmatch(reference.strip()):
        return None
    if rational(answer) is None:
        numbers = NUMBER.findall(answer)
        if len(numbers) != 1 or not has_words(answer):
            return None
        answer = numbers[0]
    stated, _ = compared_part(reference, answer)
    return quantity(bare(stated)).value.replace(",", "")


def last_number(text: str) -> str | None:
    """Return the last number in a model's text, without thousands separators, or None.

    >>> last_number("12 + 30 = 42."), last_number("It is -1,234.50!"), last_number("twelve")
    ('42', '-1234.50', None)
    """
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return str(found[-1]).replace(",", "") if found else None


# --- generation -------------------------------------------------------------------------------------


def _check_generator(variant: str, options: Mapping[str, Any]) -> None:
    DATASETS = require("reasoning_gym.factory", extra="reasoning", why="task 'reasoning_gym'").DATASETS
    if variant not in DATASETS:
        close = difflib.get_close_matches(variant, DATASETS, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ConfigError(
            f"reasoning-gym has no generator {variant!r}; name one of its {len(DATASETS)} as in "
            f"'reasoning_gym:chain_sum'.{hint}"
        )
    if variant == "composite":
        raise ConfigError("reasoning_gym:composite mixes other generators: use each of them as a task instead.")
    reserved = {"seed", "size"} & options.keys()
    if reserved:
        raise ConfigError(f"{sorted(reserved)} cannot be options of a generator, because this package sets them.")
    try:
        config = DATASETS[variant][1](**options)
        if hasattr(config, "validate"):  # power_function's has none
            config.validate()
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"reasoning_gym:{variant} rejects the options {dict(options)!r} ({error}). It takes "
            f"{', '.join(n for n in DATASETS[variant][1].__dataclass_fields__ if n not in ('seed', 'size'))}."
        ) from error


def _dataset(variant: str, options: Mapping[str, Any], *, seed: int, size: int) -> Any:
    from reasoning_gym.factory import DATASETS

    make, config = DATASETS[variant]
    return make(config=config(seed=seed, size=size, **options))


def _draw(request: tuple[str, Mapping[str, Any], Split, int, int]) -> Sequence[Problem]:
    """Draw problems, in a process that a generator may print in and whose global random state it may change."""
    variant, options, split, seed, limit = request
    try:
        return take_split(_stream(variant, options, seed), split, limit, name=f"reasoning_gym:{variant}")
    except DataError:
        raise
    except Exception as error:  # the boundary to the generator: reported in the calling process
        raise DataError(
            f"generator reasoning_gym:{variant} with options {options!r} failed: {type(error).__name__}: {error}"
        ) from error


def _stream(variant: str, options: Mapping[str, Any], seed: int) -> Iterator[Problem]:
    """Yield problems without end, block after block, each block from its own seed."""
    block = 0
    while True:
        own = int.from_bytes(blake2b(f"{variant}/{seed}/{block}".encode(), digest_size=4).digest(), "big") // 2
        random.seed(own)  # safe in this separate process; see note 2 of the module
        dataset = _dataset(variant, options, seed=own, size=_BLOCK)
        for index in range(_BLOCK):
            try:
                entry = dataset[index]
            except IndexError:  # word_ladder ends early when it runs out of words
                break
            yield _problem(variant, entry, f"{variant}-{seed}-{block * _BLOCK + index}")
        block += 1


def _problem(variant: str, entry: Mapping[str, Any], name: str) -> Problem:
    answer = entry["answer"]
    key = QUIRKS.get(variant, Quirk()).reference
    known = entry["metadata"][key] if key else answer
    reference = "" if known is None else known if isinstance(known, str) else json.dumps(known)
    return Problem(name, entry["question"], reference, data={"answer": answer, "metadata": entry["metadata"]})
