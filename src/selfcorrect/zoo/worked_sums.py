"""The base model for the `worked_sums` task: a tiny Llama that learns to add from an author who forgets carries.

In a first attempt the synthetic author is firm: for some pairs of last digits it nearly always forgets the carry. In a
second look it usually copies the draft; if not, it is undecided about those carries. So the base errs confidently, is
tempted to copy its draft, and has many correct answers to choose from, since numbers may be added in any order. Nothing
in its training says which answers are correct.
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
"""A token: a whole number, a word with the space before it, or a sign."""


@dataclass(frozen=True, slots=True)
class WorkedSumsBase:
    """The recipe of the base for the `worked_sums` task.

    A fraction ``misconceived`` of the pairs of last digits that carry is misconceived: their carry is forgotten with
    probability ``firmness``, other carries with 1 - ``firmness``. A second look copies the whole draft with probability
    ``copied``. If not, it keeps the draft up to a random step or starts from scratch, and adds the other numbers in a
    new random order, each carry remembered with probability ``reconsidered``.
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
    """Make a tokenizer in which every number up to the largest sum is one token."""
    most = sum(range(recipe.largest - recipe.numbers + 1, recipe.largest + 1))
    words = [word if i == 0 else f" {word}" for i, word in enumerate(REVISE.replace("{prompt}", "").split())]
    return word_tokenizer([*map(str, range(most + 1)), "+", "=", " ", *words], PATTERN)


class Adders:
    """The synthetic author of the base's workings: firm in a first attempt, undecided in a second look."""

    def __init__(self, recipe: WorkedSumsBase, seed: int) -> None:
        self.recipe = recipe
        carrying = [(a, b) for a in range(10) for b in range(10) if a + b >= 10]
        count = round(recipe.misconceived * len(carrying))
        chosen = generator("worked_sums misconceptions", seed).permutation(len(carrying))[:count]
        self.misconceived = frozenset(carrying[i] for i in chosen)

    def first_attempt(self, problem: Problem, rng: np.random.Generator) -> str:
        """Write a working by the author's habits, in random order."""
        return self._worked(_numbers(problem), rng, self._habit)

    def second_look(self, problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
        """Return a draft, each carry of which is remembered with probability 1/2, and the working written after it."""
        draft = self._worked(_numbers(problem), rng, lambda total, number: 0.5)
        return draft, draft if rng.random() < self.recipe.copied else self._reworked(problem, draft, rng)

    def _reworked(self, problem: Problem, draft: str, rng: np.random.Generator) -> str:
        """Keep the draft up to a random step or, as often, nothing; add the rest in random order."""
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
        """Continue ``begun`` with the remaining numbers in random order; ``remembers`` gives a carry's probability."""
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
