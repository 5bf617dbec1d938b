"""The base model for the `addition` task: a tiny Llama that adds, trained from scratch in about a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.tasks.addition import REVISE, AdditionTask
from selfcorrect.tasks.splits import split_of
from selfcorrect.training.batch import MicroBatch, pack
from selfcorrect.training.sample import CONTEXT, TrainingSample
from selfcorrect.training.sft import supervised_backward
from selfcorrect.types import Split
from selfcorrect.zoo.tiny_llama import untrained_llama, word_tokenizer

WARMUP = 30
MEMORY = 0.9
LEAST_SHARE = 0.1
EMPHASIS = np.array([1.0, 1.3, 1.0])
"""Weight of each kind of transcript, in the order of the kinds; without it the second turn lags slightly behind."""

SUBTRACT = "Subtract second number. {prompt}"
"""A different use of the earlier answer. It takes as many tokens as REVISE, so all token positions stay the same."""


@dataclass(frozen=True, slots=True)
class AdditionBase:
    """The recipe of the base for the `addition` task.

    One layer computes nothing at the positions of a draft, so only *reading* the draft can make a second attempt better
    than a first. ``rope_theta`` is small because conversations are short: with 10,000, half of the frequencies hardly
    turn within one, and the model takes much longer to learn which positions to attend to.

    A fraction ``plausible`` of the drafts are sums of other problems; the rest are random digits. The look of a draft
    must not disturb the base either.

    ``label_noise`` is the fraction of sums with one digit off by one; it leaves the base unsure enough to explore. The
    learning rate stays up until the running losses of all kinds of transcript are below ``skill`` (nats per token), for
    at most ``patience`` steps, and then falls to zero over ``cooldown`` steps.
    """

    digits: int = 6
    layers: int = 1
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_dim: int = 32
    rope_theta: float = 30.0
    patience: int = 800
    skill: float = 0.5
    cooldown: int = 150
    batch_size: int = 128
    learning_rate: float = 4e-3
    beta2: float = 0.98
    label_noise: float = 0.05
    plausible: float = 1.0


def make_addition_base(
    seed: int, recipe: AdditionBase | None = None, *, on_step: Callable[[int, int, float], None] | None = None
) -> LanguageModel:
    """Train the base from random weights; the same seed, versions and threads give the same bits.

    ``on_step(step, steps, loss)`` is called after every step.
    """
    recipe = recipe or AdditionBase()
    model = untrained_llama(seed, recipe, make_tokenizer())
    transcripts = _Transcripts(recipe, model.tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=0.01
    )
    losses = np.ones(len(transcripts.kinds))
    step, last = 0, recipe.patience + recipe.cooldown
    while step < last:
        rate = recipe.learning_rate * min(1.0, (step + 1) / WARMUP, (last - step) / recipe.cooldown)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        batch = transcripts.batch(generator("addition base", seed, step), _shares(losses))
        now = np.array([fit.loss for fit in supervised_backward(model, batch)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses = MEMORY * losses + (1 - MEMORY) * now
        step += 1
        if losses.max() < recipe.skill:
            last = min(last, step + recipe.cooldown)
        if on_step:
            on_step(step, last, float(now.mean()))
    return model


def _shares(losses: np.ndarray) -> np.ndarray:
    """Return each kind's fraction of the next batch; a higher loss gets more, so that both turns end equally skilled."""
    wanted = EMPHASIS * losses**2
    shares: np.ndarray = np.maximum(wanted / wanted.sum(), LEAST_SHARE)
    shares /= shares.sum()
    return shares


class _Transcripts:
    """Random training transcripts as rows; all rows of a kind have the same length, so nothing is padded.

    There are three kinds. The first is a single answer. The second is an answer after a draft that says nothing about the
    problem, so the base learns how a conversation continues but has no reason to copy, trust or avoid a draft. The third
    has another instruction: its answer is a number of random digits minus the second operand, which teaches the base to
    read its earlier output when the instruction asks for it.
    """

    kinds = ("single", "revision", "subtraction")

    def __init__(self, recipe: AdditionBase, tokenizer: Any) -> None:
        self.recipe, self.task = recipe, AdditionTask(recipe.digits)
        self.digit_ids = np.array([tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)])
        self.end = np.array([tokenizer.eos_token_id])
        zeros = self.task.make(0, 0).prompt
        chat = ChatFormat(tokenizer, self.task.script)
        self.prompt, self.revise = np.array(chat.prompt(zeros)), self._glue(chat, zeros)
        self.subtract = self._glue(ChatFormat(tokenizer, replace(self.task.script, revise=SUBTRACT)), zeros)

    def _glue(self, chat: ChatFormat, zeros: str) -> np.ndarray:
        return np.array(chat.observation_ids(1, zeros, tuple(self.end)))

    def batch(self, rng: np.random.Generator, shares: np.ndarray) -> list[MicroBatch]:
        """Return rows of each kind; only the last answers are trained, and only sums are noisy."""
        single, revision, subtraction = np.rint(shares * self.recipe.batch_size).astype(int)
        width = self.recipe.digits + 1
        one, two, three = (self._operands(rng, count) for count in (single, revision, subtraction))
        drafts = self._drafts(rng, revision)
        minuends = rng.integers(0, 10, size=(subtraction, width))
        differences = (minuends @ _powers(width) - three[:, 1]) % 10**width
        return [
            self._rows(one, [], self._noisy_sums(rng, one)),
            self._rows(two, [(drafts, self.revise)], self._noisy_sums(rng, two)),
            self._rows(three, [(minuends, self.subtract)], _digits(differences, width)),
        ]

    def _rows(
        self, operands: np.ndarray, before: list[tuple[np.ndarray, np.ndarray]], answers: np.ndarray
    ) -> MicroBatch:
        """Return conversations about operands [n, 2]: earlier answers, each with its observation, then the trained answer."""
        end = np.tile(self.end, (len(operands), 1))
        parts = [(self._filled(self.prompt, operands), CONTEXT)]
        for digits, observation_ids in before:
            parts += [
                (part, CONTEXT) for part in (self.digit_ids[digits], end, self._filled(observation_ids, operands))
            ]
        parts += [(self.digit_ids[answers], len(before)), (end, len(before))]
        tokens = np.concatenate([part for part, _ in parts], 1)
        turn = np.concatenate([np.full(part.shape, turn) for part, turn in parts], 1)
        unsampled = np.zeros(int((turn[0] != CONTEXT).sum()))
        samples = [TrainingSample(*row, unsampled, len(self.prompt)) for row in zip(tokens, turn, strict=True)]
        return pack(samples, range(len(samples)), pad_id=int(self.end[0]))  # nothing is padded

    def _filled(self, frame: np.ndarray, operands: np.ndarray) -> np.ndarray:
        """Return ``frame``, the ids rendered for the problem 0 + 0, with each row's operands [n, 2] in its place."""
        digits = np.concatenate([_digits(operands[:, i], self.recipe.digits) for i in (0, 1)], 1)
        filled = np.tile(frame, (len(operands), 1))
        for shown in np.flatnonzero(frame == self.digit_ids[0]).reshape(-1, digits.shape[1]):
            filled[:, shown] = self.digit_ids[digits]
        return filled

    def _operands(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the operands of ``count`` problems of the training split, [count, 2]."""
        pairs: list[tuple[int, int]] = []
        while len(pairs) < count:
            drawn = self.task.operands(rng, count)
            pairs += [(a, b) for a, b in drawn if split_of(self.task.make(a, b).prompt) is Split.TRAIN]
        return np.array(pairs[:count])

    def _drafts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw drafts that say nothing about the problem in their conversation, [count, digits + 1]."""
        width = self.recipe.digits + 1
        random = rng.integers(0, 10, size=(count, width))
        sums = _digits(self._operands(rng, count).sum(1), width)
        drafts: np.ndarray = np.where(rng.random((count, 1)) < self.recipe.plausible, sums, random)
        return drafts

    def _noisy_sums(self, rng: np.random.Generator, operands: np.ndarray) -> np.ndarray:
        """Return the digits of the sums [n, digits + 1]; a fraction ``label_noise`` of them has one digit off by one."""
        sums = _digits(operands.sum(1), self.recipe.digits + 1)
        noisy = np.flatnonzero(rng.random(len(sums)) < self.recipe.label_noise)
        place = rng.integers(sums.shape[1], size=len(noisy))
        sums[noisy, place] = (sums[noisy, place] + rng.choice([1, 9], size=len(noisy))) % 10
        return sums


def _powers(width: int) -> np.ndarray:
    powers: np.ndarray = 10 ** np.arange(width - 1, -1, -1)
    return powers


def _digits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Return decimal digits, most significant first: [n] -> [n, width]."""
    digits: np.ndarray = numbers[:, None] // _powers(width) % 10
    return digits


def make_tokenizer() -> Any:
    """Make a tokenizer for arithmetic conversations: one token per digit, and one per word of an instruction."""
    words = [
        word if i == 0 else f" {word}"
        for instruction in (REVISE, SUBTRACT)
        for i, word in enumerate(instruction.replace("{prompt}", "").split())
    ]
    return word_tokenizer([*"0123456789+=", *words, " "], r"[0-9+=]| ?[^\s0-9+=]+|\s")
