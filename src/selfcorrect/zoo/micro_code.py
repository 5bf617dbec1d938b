"""The base model for the `micro_code` task: a tiny Llama that learns to program from a synthetic author.

In a first attempt the author is firm: it knows some steps, and gets others wrong nearly always and in the same typical way
(off by one, wrong operator, missing edge case). In a second look at a draft it copies a line or rewrites it, and a
rewritten line varies. So the base errs confidently at first and wavers in the second attempt, which is the premise of
learning to self-correct. Nothing in its training says which programs are correct.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.code.micro_code import problem_stream, whole_program
from selfcorrect.tasks.code.task import REVISE
from selfcorrect.tasks.splits import take_split
from selfcorrect.types import Problem, Split
from selfcorrect.zoo.tiny_llama import learn_transcripts, untrained_llama, word_tokenizer

PATTERN = r"\n *| ?[A-Za-z_]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
"""A token: the beginning of a line, a word, a digit or a sign, each with the space before it."""


@dataclass(frozen=True, slots=True)
class MicroCodeBase:
    """The recipe of the base for the `micro_code` task.

    For a fraction ``misconceived`` of the step templates, the author believes in a typical incorrect line. It writes the
    line it believes in with probability ``firmness``, else the other one. A second look copies a line of the draft with
    probability ``copied`` and rewrites it otherwise: correctly with probability ``reconsidered``, else as one of its
    typical incorrect lines. Training samples ``problems`` of the training split repeatedly, with new programs each time.
    """

    level: int = 1
    kinds: tuple[str, ...] = ("lists",)
    misconceived: float = 0.3
    firmness: float = 0.96
    copied: float = 0.6
    reconsidered: float = 0.5
    problems: int = 1500
    layers: int = 2
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_dim: int = 32
    rope_theta: float = 100.0
    steps: int = 400
    cooldown: int = 120
    batch_size: int = 32
    learning_rate: float = 5e-3
    beta2: float = 0.98


def make_micro_code_base(
    seed: int, recipe: MicroCodeBase | None = None, *, on_step: Callable[[int, int, float], None] | None = None
) -> LanguageModel:
    """Train the base from random weights; the same seed, versions and threads give the same bits.

    ``on_step(step, steps, loss)`` is called after every step.
    """
    recipe = recipe or MicroCodeBase()
    problems = training_problems(recipe, seed)
    model = untrained_llama(seed, recipe, make_tokenizer(problems))
    chat = ChatFormat(model.tokenizer, Script(revise=REVISE))
    programmers = Programmers(recipe, problems, seed)
    learn_transcripts(model, recipe, problems, programmers, chat, place=("micro_code base", seed), on_step=on_step)
    return model


def training_problems(recipe: MicroCodeBase, seed: int) -> Sequence[Problem]:
    """Return the problems that the base learns from."""
    stream = problem_stream(recipe.level, recipe.kinds, generator("micro_code base", seed))
    return take_split(stream, Split.TRAIN, recipe.problems, name="micro_code")


def make_tokenizer(problems: Sequence[Problem]) -> Any:
    """Make a tokenizer whose vocabulary covers the problems that the base learns from."""
    return word_tokenizer(vocabulary(problems), PATTERN)


def vocabulary(problems: Sequence[Problem]) -> list[str]:
    """Return all tokens of the problems, their correct and incorrect programs and the instruction, and all ASCII characters."""
    from tokenizers import Regex, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    lines = {line for problem in problems for several in problem.data["lines"] for line in several}
    texts = {REVISE, "def f(x):\n    return x", *lines, *(problem.prompt for problem in problems)}
    found = {token for text in texts for token, _ in splitter.pre_tokenize_str(text)}
    found |= {blank + character for character in map(chr, range(33, 127)) for blank in ("", " ")}
    return sorted(found | {" ", "\n", "\n    "})


class Programmers:
    """The synthetic author of the base's programs: firm in a first attempt, undecided in a second look."""

    def __init__(self, recipe: MicroCodeBase, problems: Sequence[Problem], seed: int) -> None:
        self.recipe = recipe
        known = sorted({template(lines[0]) for problem in problems for lines in problem.data["lines"]})
        count = round(recipe.misconceived * len(known))
        chosen = generator("micro_code misconceptions", seed).permutation(len(known))[:count]
        self.misconceived = frozenset(known[i] for i in chosen)

    def first_attempt(self, problem: Problem, rng: np.random.Generator) -> str:
        """Write a program by the author's habits."""
        return whole_program([self._habit(several, rng) for several in problem.data["lines"]])

    def second_look(self, problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
        """Return a draft, each line of which is correct with probability 1/2, and the program written after it."""
        draft = [_line(several, 0.5, rng) for several in problem.data["lines"]]
        lines = [
            line if rng.random() < self.recipe.copied else _line(several, self.recipe.reconsidered, rng)
            for line, several in zip(draft, problem.data["lines"], strict=True)
        ]
        return whole_program(draft), whole_program(lines)

    def _habit(self, lines: Sequence[str], rng: np.random.Generator) -> str:
        right, *wrong = lines
        believed, other = (wrong[0], right) if template(right) in self.misconceived else (right, wrong[0])
        return believed if rng.random() < self.recipe.firmness else other


def template(line: str) -> str:
    """Return the line with ``#`` for every number: lines that differ only in their numbers share a template."""
    return re.sub(r"\d+", "#", line)


def _line(lines: Sequence[str], right: float, rng: np.random.Generator) -> str:
    """Return the first line, the correct one, with probability ``right``, else one of the others."""
    return lines[0] if rng.random() < right else lines[int(rng.integers(1, len(lines)))]
