"""What an estimate of memory and time is made from: the sizes of a model, the GPUs, and the assumed lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfcorrect.config.schema import Config
from selfcorrect.distributed.shards import decoder_layers
from selfcorrect.models.families import context_limit
from selfcorrect.models.lora import Adapters, base_of, is_adapter
from selfcorrect.models.reading import readable
from selfcorrect.zoo.resolve import place_of

GIB = 2**30
INSTRUCTION_TOKENS = 64
"""The tokens assumed between two attempts: the revision instruction with its markers."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that memory and time depend on.

    ``parameters`` counts a tied weight once, ``outside`` those of no layer (embeddings, last norm, head); ``trained`` counts what
    the run trains; ``kv_numbers`` are the numbers that one token keeps in the cache of keys and values, and ``context`` is the
    longest sequence of tokens.
    """

    name: str
    parameters: int
    outside: int
    trained: int
    layers: int
    width: int
    intermediate: int
    kv_numbers: int
    vocabulary: int
    context: int

    @classmethod
    def of(cls, config: Config) -> ModelShape:
        """Read the shape of the model that a configuration names; its weights are not read.

        Raises:
            ModelError: there is no such model, or its configuration lacks a size.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        local = not config.model.trust_remote_code  # else the model's code may be missing in the cache
        path = place_of(config.model, seed=config.seed, settings_alone=local)
        if is_adapter(Path(path)):
            path = base_of(Path(path))
        with readable(f"the configuration of model {config.model.source!r}"), torch.device("meta"):
            sizes = AutoConfig.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
            model = AutoModelForCausalLM.from_config(sizes, trust_remote_code=config.model.trust_remote_code)
        parameters = _count(model)
        text = sizes.get_text_config()
        return cls(
            name=type(model).__name__,
            parameters=parameters,
            outside=parameters - sum(map(_count, decoder_layers(model.get_decoder()))),
            trained=parameters if config.model.lora is None else _adapter_parameters(model, config),
            layers=int(text.num_hidden_layers),
            width=int(text.hidden_size),
            intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
            kv_numbers=_kv_numbers(text),
            vocabulary=int(text.vocab_size),
            context=context_limit(sizes),
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _adapter_parameters(model: Any, config: Config) -> int:
    assert config.model.lora is not None
    adapters = Adapters(model)
    adapters.create("policy", config.model.lora, 0)
    return sum(parameter.numel() for parameter in adapters.parameters("policy"))


def _kv_numbers(text: Any) -> int:
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    head = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return 2 * int(text.num_hidden_layers) * heads * head


@dataclass(frozen=True, slots=True)
class Cluster:
    """The GPUs of an estimate: their number, memory in GiB, peak products in TFLOP/s and memory bandwidth in GB/s.

    ``cpu``: one machine without a GPU, with its own memory and rates (`runs.cpu_rates`).
    """

    gpus: int
    gib: float = 80.0
    tflops: float = 790.0
    bandwidth: float = 3350.0
    cpu: bool = False


@dataclass(frozen=True, slots=True)
class Lengths:
    """The assumed tokens of a prompt and of an answer."""

    prompt: int
    answer: int

    def episode(self, turns: int) -> int:
        """Return the tokens of an episode of ``turns`` attempts."""
        return self.prompt + turns * self.answer + (turns - 1) * INSTRUCTION_TOKENS
