"""Write a workload down for both sides: a directory with the model, its tokenizer and ``work.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step.workloads import Shape, Workload
from selfcorrect.config.schema import ModelConfig
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.types import Problem, Split
from selfcorrect.zoo.resolve import device_of, find_model
from selfcorrect.zoo.tiny_llama import SPECIAL, chat_tokenizer, random_llama

SHORTEST, MEDIAN, SPREAD = 8, 128.0, 1.0
"""Parameters of uneven lengths: the minimum, then median and sigma of the log-normal distribution."""
SEED_OF_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Work:
    """The input of both sides. Ids are token ids; P problems, G samples of each, K turns.

    Attributes:
        prompts: the text of each problem, for a side that renders prompts itself.
        prompt_ids: the rendered prompt of each problem, [P][tokens].
        glue_ids: the ids between the attempts, [P][tokens].
        patterns: a regular expression per problem; an attempt is correct if its text without spaces matches in full.
        lengths: tokens of every attempt, [P][G][K].
    """

    workload: dict[str, Any]
    script: dict[str, Any]
    prompts: list[str]
    prompt_ids: list[list[int]]
    glue_ids: list[list[int]]
    patterns: list[str]
    lengths: list[list[list[int]]]
    learning_rate: float = 1e-5
    bonus: float = 10.0
    beta: float = 0.01

    def save(self, folder: Path) -> None:
        (folder / "work.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Work:
        return cls(**json.loads((folder / "work.json").read_text(encoding="utf-8")))


def write_work(workload: Workload, folder: Path) -> Work:
    """Fill ``folder`` with the model and the work; equal workloads give equal content.

    Raises:
        ConfigError: the episodes do not fit the model's context, or the workload needs a GPU and there is none.
    """
    if workload.gpu and not torch.cuda.is_available():
        raise ConfigError(
            f"workload {workload.name!r} needs a GPU and none was found; on a CPU, a step of its {workload.episodes} episodes "
            f"would take hours. For a quick look, use --episodes {workload.group}."
        )
    model = model_of(workload, context=workload.prompt + 2 * workload.turn + 64)
    task_script, problems = _script_and_problems(workload)
    chat = ChatFormat(model.tokenizer, task_script)
    work = Work(
        asdict(workload),
        {"first": task_script.first, "revise": task_script.revise},
        [problem.prompt for problem in problems],
        [list(chat.prompt(problem.prompt)) for problem in problems],
        [list(chat.observation_ids(1, problem.prompt, ())) for problem in problems],
        [problem.reference for problem in problems],
        lengths(workload).tolist(),
    )
    longest = max(map(len, work.prompt_ids)) + max(map(len, work.glue_ids)) + 2 * workload.turn
    if longest > model.context_limit:
        raise ConfigError(f"workload {workload.name!r}: {longest} tokens exceed the context of {model.context_limit}.")
    model.save(folder / "model")
    work.save(folder)
    return work


def lengths(workload: Workload) -> np.ndarray:
    """Return the tokens of every attempt, [P, G, K]: all equal, or log-normal and clipped to `SHORTEST` .. ``workload.turn``."""
    shape = (workload.problems, workload.group, 2)
    if not workload.uneven:
        return np.full(shape, workload.turn)
    drawn = generator("bench lengths", workload.name).lognormal(np.log(MEDIAN), SPREAD, shape)
    return np.clip(np.rint(drawn), min(SHORTEST, workload.turn), workload.turn).astype(int)


def model_of(workload: Workload, *, context: int) -> LanguageModel:
    """Return the model that the workload names, or random weights of its shape; in float32 on the CPU."""
    if isinstance(workload.model, Shape):
        return random_model(workload.model, context=context)
    settings = ModelConfig(source=workload.model, seed=SEED_OF_PROBLEMS, dtype="float32", device="cpu")
    return find_model(settings, seed=SEED_OF_PROBLEMS)


def _script_and_problems(workload: Workload) -> tuple[Script, list[Problem]]:
    if isinstance(workload.model, Shape):
        return Script(revise="w1 w2 w3 w4"), _word_problems(workload)
    task = AdditionTask()
    return task.script, list(task.problems(Split.TRAIN, seed=SEED_OF_PROBLEMS, limit=workload.problems))


def _word_problems(workload: Workload) -> list[Problem]:
    """Return prompts of exactly ``workload.prompt`` tokens, random words; half of all words make a correct answer."""
    assert isinstance(workload.model, Shape)
    words = workload.prompt - 3  # <|user|> ... <|end|><|assistant|>
    drawn = generator("bench prompts", workload.name).integers(
        workload.model.vocabulary - len(SPECIAL), size=(workload.problems, words)
    )
    return [Problem(f"p{p}", " ".join(f"w{i}" for i in row), ".*[02468]") for p, row in enumerate(drawn.tolist())]


def random_model(shape: Shape, *, context: int, cpu_kernels: bool = True) -> LanguageModel:
    """Return a Llama of that shape with seeded random weights and a tokenizer of the words w0, w1, ..."""
    return random_llama(
        0,
        word_tokenizer(shape.vocabulary),
        cpu_kernels=cpu_kernels,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied,
    )


def word_tokenizer(vocabulary: int) -> Any:
    """Return a tokenizer with exactly ``vocabulary`` tokens: the special ones, then the words w0, w1, ..."""
    from tokenizers import pre_tokenizers

    return chat_tokenizer([f"w{i}" for i in range(vocabulary - len(SPECIAL))], pre_tokenizers.WhitespaceSplit())


def load_policy(folder: Path, dtype: str, *, cpu_kernels: bool = True) -> LanguageModel:
    """Load the model of the work, on a GPU if there is one. No token counts as an end token, so no attempt ends early."""
    model = load_model(folder / "model", dtype=dtype, device=device_of(ModelConfig()), cpu_kernels=cpu_kernels)
    model.end_ids = frozenset({-1})
    return model
