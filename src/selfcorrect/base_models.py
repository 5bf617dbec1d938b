"""Base models that the package makes itself: a tiny Llama that adds, trained from scratch in about a minute.

It is a plain Hugging Face directory with a real tokenizer file and a chat template, so it takes the same
path as any other model. It learns single answers, and second attempts after drafts of *random digits*: it
knows how a conversation goes on but has no reason to copy or to trust a draft.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from selfcorrect.batch import Rows
from selfcorrect.chat import ChatFormat
from selfcorrect.modeling import LanguageModel
from selfcorrect.randomness import generator
from selfcorrect.sft import supervised_backward
from selfcorrect.tasks.addition import REVISE, AdditionTask
from selfcorrect.tasks.splits import split_of
from selfcorrect.types import Split

WARMUP = 30
MEMORY = 0.9

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class AdditionBase:
    """What the base for the `addition` task is made of.

    ``label_noise`` is the share of training answers with one digit off by one: it leaves the base unsure
    enough to explore. The learning rate stays up until the running loss falls to ``skill`` (nats per token; at most
    ``patience`` steps) and then falls to zero over ``cooldown`` steps: seeds differ much in how long they take to grasp
    carrying, so a fixed number of steps would give bases of all kinds.
    """

    digits: int = 6
    layers: int = 2
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_dim: int = 32
    patience: int = 1500
    skill: float = 0.5
    cooldown: int = 105
    batch_size: int = 96
    learning_rate: float = 4e-3
    beta2: float = 0.98
    label_noise: float = 0.05
    balance: float = 0.1


def make_addition_base(
    seed: int, recipe: AdditionBase | None = None, *, on_step: Callable[[int, int, float], None] | None = None
) -> LanguageModel:
    """Train the base from random weights; the same seed, versions and threads give the same bits.

    ``on_step(step, steps, loss)`` is called after every step.
    """
    recipe = recipe or AdditionBase()
    model = _untrained(seed, recipe)
    transcripts = _Transcripts(recipe, ChatFormat(model.tokenizer, AdditionTask(recipe.digits).script))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=0.01
    )
    share, lead, loss = 0.5, 0.0, math.inf
    step, last = 0, recipe.patience + recipe.cooldown
    while step < last:
        rate = recipe.learning_rate * min(1.0, (step + 1) / WARMUP, (last - step) / recipe.cooldown)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        first, second = supervised_backward(model, transcripts.batch(generator("addition base", seed, step), share))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # Equal skill at both turns: whichever kind of answer is known less often gets more of the next batch.
        lead = MEMORY * lead + (1 - MEMORY) * (first.known - second.known)
        share = min(0.9, max(0.1, share + recipe.balance * lead))
        now = (first.loss + second.loss) / 2
        loss = now if loss == math.inf else MEMORY * loss + (1 - MEMORY) * now
        step += 1
        if loss < recipe.skill:
            last = min(last, step + recipe.cooldown)
        if on_step:
            on_step(step, last, now)
    return model


class _Transcripts:
    """Random training transcripts as rows; all of a kind have the same length, so nothing is padded."""

    def __init__(self, recipe: AdditionBase, chat: ChatFormat) -> None:
        self.recipe, self.task = recipe, AdditionTask(recipe.digits)
        digit_ids = [chat.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)]
        self.digit_ids = np.array(digit_ids)
        end = chat.tokenizer.eos_token_id
        zeros = self.task.make(0, 0).prompt
        self.frame = np.array(chat.prompt(zeros))
        self.end = np.array([end])
        self.glue_frame = np.array(chat.glue(1, zeros, (end,)))

    def batch(self, rng: np.random.Generator, two_turn_share: float) -> list[Rows]:
        """Single answers, and second attempts after drafts of random digits; answers are noisy, drafts untrained."""
        count = self.recipe.batch_size
        twos = int(count * two_turn_share)
        operands, answers = self._problems(rng, count)
        prompts, glue = self._filled(self.frame, operands), self._filled(self.glue_frame, operands[count - twos :])
        drafts = self.digit_ids[rng.integers(0, 10, size=(twos, answers.shape[1]))]

        def rows(*parts: tuple[np.ndarray, int]) -> Rows:
            tokens = np.concatenate([part for part, _ in parts], 1)
            turn = np.concatenate([np.full(part.shape, turn) for part, turn in parts], 1)
            return Rows(
                torch.from_numpy(tokens),
                torch.ones(tokens.shape, dtype=torch.bool),
                torch.from_numpy(turn),
                torch.arange(len(tokens)),
                torch.zeros(int((turn >= 0).sum()), dtype=torch.float64),
            )

        def each(ids: np.ndarray, count: int) -> np.ndarray:
            return np.tile(ids, (count, 1))

        ones = count - twos
        return [
            rows((prompts[:ones], -1), (answers[:ones], 0), (each(self.end, ones), 0)),
            rows(
                (prompts[ones:], -1), (drafts, -1), (each(self.end, twos), -1), (glue, -1),
                (answers[ones:], 1), (each(self.end, twos), 1),
            ),
        ]  # fmt: skip

    def _problems(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Operands' digit ids and noisy answers' ids of problems of the training split."""
        pairs: list[tuple[int, int]] = []
        while len(pairs) < count:
            drawn = self.task.operands(rng, count)
            pairs += [(a, b) for a, b in drawn if split_of(self.task.make(a, b).prompt) is Split.TRAIN]
        ab = np.array(pairs[:count])
        operands = np.concatenate([_digits(ab[:, i], self.recipe.digits) for i in (0, 1)], 1)
        answers = _digits(ab.sum(1), self.recipe.digits + 1)
        noisy = np.flatnonzero(rng.random(count) < self.recipe.label_noise)
        place = rng.integers(answers.shape[1], size=len(noisy))
        answers[noisy, place] = (answers[noisy, place] + rng.choice([1, 9], size=len(noisy))) % 10
        return self.digit_ids[operands], self.digit_ids[answers]

    def _filled(self, frame: np.ndarray, operands: np.ndarray) -> np.ndarray:
        """The rendered ids of the problem 0 + 0 with each row's operands, wherever the template shows the problem."""
        filled = np.tile(frame, (len(operands), 1))
        places = np.flatnonzero(frame == self.digit_ids[0]).reshape(-1, operands.shape[1])
        for shown in places:
            filled[:, shown] = operands
        return filled


def _digits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Decimal digits, most significant first: [n] -> [n, width]."""
    return numbers[:, None] // 10 ** np.arange(width - 1, -1, -1) % 10


def _untrained(seed: int, recipe: AdditionBase) -> LanguageModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageModel(model, tokenizer)


def make_tokenizer() -> Any:
    """A tokenizer file for arithmetic conversations: one token a digit, one a word of the instruction."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    words = [word if i == 0 else f" {word}" for i, word in enumerate(REVISE.split())]
    vocabulary = {token: i for i, token in enumerate([*special, *"0123456789+=", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9+=]| ?[^\s0-9+=]+"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
