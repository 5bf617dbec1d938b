"""Common parts of the bundled bases: a tiny Llama, a word tokenizer, and training on a synthetic author's transcripts.

Each base is a plain Hugging Face directory with a real tokenizer file and a chat template, so it takes the same path as
any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.training.batch import pack
from selfcorrect.training.sample import CONTEXT, Segment, TrainingSample
from selfcorrect.training.sft import supervised_backward
from selfcorrect.types import Problem

WARMUP = 20
CONTEXT_LENGTH = 512
"""Context length of the bundled bases in tokens: enough for ten attempts at their tasks."""

SPECIAL = ("<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Shape(Protocol):
    """The part of a recipe that sets the size of a model."""

    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...


def untrained_llama(seed: int, shape: Shape, tokenizer: Any, *, cpu_kernels: bool = False) -> LanguageModel:
    """Make an untrained base; the default forward pass, without ``cpu_kernels``, keeps the older models' bits."""
    return random_llama(
        seed,
        tokenizer,
        cpu_kernels=cpu_kernels,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    )


def random_llama(seed: int, tokenizer: Any, *, cpu_kernels: bool, **shape: Any) -> LanguageModel:
    """Make a Llama for a tokenizer with random weights that depend on the seed; ``shape`` goes to `LlamaConfig`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return LanguageModel(model, tokenizer, cpu_kernels=cpu_kernels)


class Schedule(Protocol):
    """The part of a recipe that sets the training on transcripts."""

    @property
    def steps(self) -> int: ...
    @property
    def cooldown(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def beta2(self) -> float: ...


class SyntheticAuthor(Protocol):
    """A synthetic author, whose attempts a base is trained on."""

    def first_attempt(self, problem: Problem, rng: np.random.Generator) -> str: ...
    def second_look(self, problem: Problem, rng: np.random.Generator) -> tuple[str, str]:
        """Return a draft, and the attempt that the author writes after reading it."""
        ...


def transcript(chat: ChatFormat, problem: Problem, texts: Sequence[str]) -> TrainingSample:
    """Make a sample of a synthetic author's successive attempts; only the last one is trained."""
    segments: list[Segment] = []
    before: tuple[int, ...] = ()
    for k, text in enumerate(texts):
        observation = chat.observation_ids(k, problem.prompt, before) if k else chat.prompt(problem.prompt)
        before = (*chat.ids(text), chat.tokenizer.eos_token_id)
        segments.append(Segment(observation, before, k if k == len(texts) - 1 else CONTEXT))
    return TrainingSample.of_segments(segments)


def learn_transcripts(
    model: LanguageModel,
    recipe: Schedule,
    problems: Sequence[Problem],
    people: SyntheticAuthor,
    chat: ChatFormat,
    *,
    place: tuple[object, ...],
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    """Train a model on a synthetic author: first attempts at half of a step's problems, second looks at the other half.

    The learning rate rises, stays, and falls to zero over the last ``cooldown`` steps. ``place`` keys the random numbers.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=0.01
    )
    for step in range(recipe.steps):
        rate = recipe.learning_rate * min(1.0, (step + 1) / WARMUP, (recipe.steps - step) / recipe.cooldown)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        rng = generator(*place, step)
        chosen = [problems[i] for i in rng.integers(len(problems), size=recipe.batch_size)]
        half = recipe.batch_size // 2
        kinds = [
            [transcript(chat, problem, [people.first_attempt(problem, rng)]) for problem in chosen[:half]],
            [transcript(chat, problem, people.second_look(problem, rng)) for problem in chosen[half:]],
        ]
        fits = supervised_backward(model, [pack(some, range(len(some)), pad_id=model.pad_id) for some in kinds])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step:
            on_step(step + 1, recipe.steps, sum(fit.loss for fit in fits) / len(fits))


def word_tokenizer(tokens: Sequence[str], pattern: str) -> Any:
    """Make a tokenizer that splits a text by ``pattern``; pieces other than ``tokens`` are unknown."""
    from tokenizers import Regex, decoders, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return chat_tokenizer(tokens, cut, decoder=decoders.Fuse())


def chat_tokenizer(tokens: Sequence[str], pre_tokenizer: Any, *, decoder: Any = None) -> Any:
    """Make a tokenizer of the special tokens and whole words, with the chat template of the bundled bases."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        core.decoder = decoder
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
