"""The base model for the `micro_code` task: a tiny Llama that has learnt to program from careless programmers.

Each line of the programs that it reads is, with some probability, a typical mistake (off by one, wrong operator, missing
edge case), so the mistakes that are more frequent than the right line become its habits. Its training never says
which programs are right. That is left to reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from selfcorrect.base_models import untrained_llama, word_tokenizer
from selfcorrect.batch import pack
from selfcorrect.chat import ChatFormat
from selfcorrect.modeling import LanguageModel
from selfcorrect.prompts import Script
from selfcorrect.randomness import generator
from selfcorrect.sft import supervised_backward
from selfcorrect.tasks.code import REVISE
from selfcorrect.tasks.micro_code import careless_program, problem_stream
from selfcorrect.tasks.splits import take_split
from selfcorrect.types import Episode, Outcome, Problem, Split, StopReason, Turn, Verdict

PATTERN = r"\n *| ?[A-Za-z_]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"
"""A token: a line's beginning, a word, a digit or a sign, each with the blank before it."""

WARMUP = 20
UNJUDGED = Verdict(Outcome.WRONG)


@dataclass(frozen=True, slots=True)
class MicroCodeBase:
    """What the base for the `micro_code` task is made of.

    ``carelessness`` is the probability that a line of a program it reads is wrong. A transcript is a problem, a
    program, the instruction to correct it, and another program that owes nothing to the first: so the base answers afresh.
    ``problems`` of the training split are read again and again, each time in other programs.
    """

    level: int = 1
    kinds: tuple[str, ...] = ("lists",)
    carelessness: float = 0.6
    problems: int = 1500
    layers: int = 2
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_dim: int = 32
    rope_theta: float = 100.0
    steps: int = 320
    cooldown: int = 80
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
    problems = take_split(
        problem_stream(recipe.level, recipe.kinds, generator("micro_code base", seed)),
        Split.TRAIN,
        recipe.problems,
        name="micro_code",
    )
    model = untrained_llama(seed, recipe, word_tokenizer(vocabulary(problems), PATTERN))
    chat = ChatFormat(model.tokenizer, Script(revise=REVISE))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=0.01
    )
    for step in range(recipe.steps):
        rate = recipe.learning_rate * min(1.0, (step + 1) / WARMUP, (recipe.steps - step) / recipe.cooldown)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        rng = generator("micro_code base", seed, step)
        chosen = [problems[i] for i in rng.integers(len(problems), size=recipe.batch_size)]
        episodes = [transcript(chat, problem, recipe.carelessness, rng) for problem in chosen]
        rows = pack(episodes, range(len(episodes)), pad_id=model.pad_id)
        (fit,) = supervised_backward(model, [rows])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step:
            on_step(step + 1, recipe.steps, fit.loss)
    return model


def vocabulary(problems: Sequence[Problem]) -> list[str]:
    """Every token of the problems, of their programs, right and wrong, and of the instruction; and each ASCII character."""
    from tokenizers import Regex, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    lines = {line for problem in problems for several in problem.data["lines"] for line in several}
    texts = {REVISE, "def f(x):\n    return x", *lines, *(problem.prompt for problem in problems)}
    found = {token for text in texts for token, _ in splitter.pre_tokenize_str(text)}
    found |= {blank + character for character in map(chr, range(33, 127)) for blank in ("", " ")}
    return sorted(found | {" ", "\n", "\n    "})


def transcript(chat: ChatFormat, problem: Problem, carelessness: float, rng: np.random.Generator) -> Episode:
    """Two programs for a problem, by two careless programmers who do not know of each other."""
    turns: list[Turn] = []
    for k in range(2):
        program = careless_program(problem, carelessness, rng)
        ids = (*chat.ids(program), chat.tokenizer.eos_token_id)
        glue = chat.glue(k, problem.prompt, turns[-1].ids) if turns else chat.prompt(problem.prompt)
        turns.append(Turn(glue, ids, (0.0,) * len(ids), program, StopReason.END, UNJUDGED))
    return Episode(problem, 0, tuple(turns))
