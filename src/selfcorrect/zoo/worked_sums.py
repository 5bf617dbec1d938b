"""The base model for the `worked_sums` task: a tiny Llama that has learnt to add from people who forget some carries.

In a first attempt they are firm: for some pairs of last digits they nearly always forget the carry. Asked to look again,
they most often copy their draft, and where they do not, they are of two minds about those carries. So the base errs
confidently, is tempted to copy its draft, and has many right answers to choose from, since numbers may be added in any
order. Nothing in its training says which answers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.splits import take_split
from selfcorrect.tasks.worked_sums import REVISE, WorkedSumsTask
from selfcorrect.types import Problem, Split
from selfcorrect.zoo.tiny_llama import learn_transcripts, untrained_llama, word_tokenizer

PATTERN = r"\d+| ?[A-Za-z.]+|[+=]|\s"
"""A token: a whole number, a word with the blank before it, or a sign."""


@dataclass(frozen=True, slots=True)
class WorkedSumsBase:
    """What the base for the `worked_sums` task is made of.

    Of the pairs of last digits that carry, a share of ``misconceived`` is misconceived: the carry is forgotten with
    probability ``firmness``, and elsewhere with 1 - ``firmness``. A second look copies the draft whole with probability
    ``copied``; otherwise it keeps the draft's steps up to a random one and goes on anew in an order of its own, each carry
    remembered with probability ``reconsidered``.
    """

    numbers: int = 5
    largest: int = 20
    misconceived: float = 0.25
    firmness: float = 0.96
    copied: float = 0.6
    reconsidered: float = 0.5
    problems: int = 5000
    layers: int = 2
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_dim: int = 32
    rope_theta: float = 100.0
    steps: int = 1000
    cooldown: int = 250
    batch_size: int = 128
    learning_rate: float = 4e-3
    beta2: float = 0.98


def make_worked_sums_base(
    seed: int, recipe: WorkedSumsBase | None = None, *, on_step: Callable[[int, int, float], None] | None = None
) -> LanguageModel:
    """Train the base from random weights; the same seed, versions and threads give the same bits.

    ``on_step(step, steps, loss)`` is called after every step.
    """
    recipe = recipe or WorkedSumsBase()
    task = WorkedSumsTask(recipe.numbers, recipe.largest)
    problems = take_split(
        task.stream(generator("worked_sums base", seed)), Split.TRAIN, recipe.problems, name=task.name
    )
    model = untrained_llama(seed, recipe, make_tokenizer(recipe), cpu_kernels=True)
    chat = ChatFormat(model.tokenizer, Script(revise=REVISE))
    learn_transcripts(
        model, recipe, problems, Adders(recipe, seed), chat, place=("worked_sums base", seed), on_step=on_step
    )
    return model


def make_tokenizer(recipe: WorkedSumsBase) -> object:
    """A tokenizer in which every number up to the largest sum is one token."""
    most = sum(range(recipe.largest - recipe.numbers + 1, recipe.largest + 1))
    words = [word if i == 0 else f" {word}" for i, word in enumerate(REVISE.replace("{prompt}", "").split())]
    return word_tokenizer([*map(str, range(most + 1)), "+", "=", " ", *words], PATTERN)


class Adders:
    """Those whose workings the base reads: firm in a first attempt, and of two minds in a second look."""

    def __init__(self, recipe: WorkedSumsBase, seed: int) -> None:
        self.recipe = recipe
        carrying = [(a, b) for a in range(10) for b in range(10) if a + b >= 10]
        count = round(recipe.misconceived * len(carrying))
        chosen = generator("worked_sums misconceptions", seed).permutation(len(carrying))[:count]
        self.misconceived = frozenset(carrying[i] for i in chosen)

    def first_attempt(self, problem: Problem, rng: np.random.Generator) -> str:
        """A working by their habits, in any order."""
        return self._worked(_numbers(problem), rng, self._habit)

    def second_look(self, problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
        """A look at somebody's draft, of which each carry is remembered or forgotten at even odds."""
        draft = self._worked(_numbers(problem), rng, lambda total, number: 0.5)
        return draft, draft if rng.random() < self.recipe.copied else self._reworked(problem, draft, rng)

    def _reworked(self, problem: Problem, draft: str, rng: np.random.Generator) -> str:
        """The draft up to a random step, and the rest anew."""
        terms = draft.split("+")
        kept = "+".join(terms[: rng.integers(1, len(terms))]) if rng.random() < 0.5 else ""
        return self._worked(_numbers(problem), rng, lambda total, number: self.recipe.reconsidered, kept)

    def _worked(
        self,
        numbers: Sequence[int],
        rng: np.random.Generator,
        remembers: Callable[[int, int], float],
        begun: str = "",
    ) -> str:
        """A working that goes on from ``begun`` with what is left, in random order; ``remembers`` gives a carry's odds."""
        used = [int(term.split("=")[0]) for term in begun.split("+")] if begun else []
        left = [int(n) for n in rng.permutation([n for n in numbers if n not in used])]
        text, total = (begun, int(begun.rsplit("=", maxsplit=1)[-1])) if begun else (str(left[0]), left.pop(0))
        for number in left:
            forgotten = total % 10 + number % 10 >= 10 and rng.random() >= remembers(total, number)
            total += number - 10 * forgotten
            text += f"+{number}={total}"
        return text

    def _habit(self, total: int, number: int) -> float:
        firm = self.recipe.firmness
        return 1 - firm if (total % 10, number % 10) in self.misconceived else firm


def _numbers(problem: Problem) -> list[int]:
    return [int(number) for number in problem.prompt.split()]
