"""An estimate of the memory and time of a step on GPUs, from the sizes of tensors. Nothing here is measured.

The formulas stand in docs/scale.md. They ignore fragmentation, the verifier, and that some answers are longer than others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfcorrect.config.schema import Config
from selfcorrect.distributed.shards import decoder_layers
from selfcorrect.models.chunked_logprobs import CHUNK_ELEMENTS, GPU_TIMES
from selfcorrect.models.dtypes import DTYPES
from selfcorrect.models.lora import Adapters, base_of, is_adapter
from selfcorrect.models.reading import readable
from selfcorrect.training.batch import GPU_BUDGET
from selfcorrect.zoo.resolve import place_of

GIB = 2**30
INSTRUCTION_TOKENS = 64
"""The tokens assumed between two attempts: the revision instruction with its markers."""
CONTEXT_GIB = 1.5
"""What CUDA, its libraries and the allocator take."""
LEARNING_SHARE, READING_SHARE = 0.35, 0.6
"""The fractions of a card's peak product rate and memory bandwidth that learning and decoding reach."""
LAUNCHES, LAUNCH_S = 42, 1e-5
"""Kernel launches of a decoded token per layer with the built-in engine, and the seconds of one: assumptions."""
CHUNK_BUFFERS = 3
"""Buffers [tokens, vocabulary] in float32 that a chunk of logits needs."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that memory and time depend on.

    ``parameters`` counts a tied weight once, ``outside`` those of no layer (embeddings, last norm, head); ``trained`` counts what
    the run trains; ``kv_numbers`` are the numbers that one token keeps in the cache of keys and values.
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

    @classmethod
    def of(cls, config: Config) -> ModelShape:
        """Read the shape of the model that a configuration names; its weights are not read.

        Raises:
            ModelError: there is no such model, or its configuration lacks a size.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        path = place_of(config.model, seed=config.seed)
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
    """The GPUs of an estimate: their number, memory in GiB, peak products in TFLOP/s and memory bandwidth in GB/s."""

    gpus: int
    gib: float = 80.0
    tflops: float = 790.0
    bandwidth: float = 3350.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """The assumed tokens of a prompt and of an answer."""

    prompt: int
    answer: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one GPU holds, in GiB by purpose, and the seconds of a step.

    ``learning`` and ``sampling`` list what exists in each phase; the two phases alternate. Loading needs less than either.
    """

    learning: dict[str, float]
    sampling: dict[str, float]
    learn_s: float
    sample_s: float

    @property
    def needed(self) -> float:
        """Return the GiB of the largest phase."""
        return max(sum(phase.values()) for phase in (self.learning, self.sampling))

    def fits(self, cluster: Cluster) -> bool:
        """Return whether a GPU of the cluster holds it."""
        return self.needed <= cluster.gib


def estimate(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> Estimate:
    """Estimate a step of a configuration, with whole models or with shards of them on every GPU (docs/scale.md)."""
    width = DTYPES[config.model.dtype].itemsize
    sharded = config.distributed.shard and cluster.gpus > 1
    held = _shards(config, shape, cluster, width) if sharded else _whole(config, shape, width)
    tokens = config.optimizer.micro_batch_tokens or GPU_BUDGET
    learning = {
        "activations": tokens * _activation_numbers(config, shape) * width,
        "a chunk of logits": CHUNK_BUFFERS * CHUNK_ELEMENTS * GPU_TIMES * 4,
    }
    # Where finished rows leave the batch, the rest is copied, so for a moment both exist.
    rows, episode = _rows(config, cluster), _episode_tokens(config, lengths)
    sampling = {"keys and values": 2 * rows * episode * shape.kv_numbers * width}
    always = held.always | {"CUDA": CONTEXT_GIB * GIB}
    return Estimate(
        _in_gib(always | held.learning | learning),
        _in_gib(always | held.sampling | sampling),
        _learn_s(config, shape, cluster, lengths, references=_references(config)),
        _sample_s(config, shape, cluster, lengths, rows=rows, width=width),
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """The bytes of weights, gradients and optimizer on a GPU: always, and in addition in each phase."""

    always: dict[str, float]
    learning: dict[str, float] = field(default_factory=dict)
    sampling: dict[str, float] = field(default_factory=dict)


def _whole(config: Config, shape: ModelShape, width: int) -> _Held:
    """Return what a GPU holds that has the whole model."""
    frozen = shape.parameters * width
    references = _references(config)
    trained = shape.trained * (16 if width < 4 else 12)  # float32 weights are their own masters
    if config.model.lora is not None:  # the reference is the same weights; float32 adapters are new weights
        references, trained = 0, shape.trained * 16
    return _Held({"weights": frozen, "references": references * frozen, "gradients, Adam, float32 masters": trained})


def _shards(config: Config, shape: ModelShape, cluster: Cluster, width: int) -> _Held:
    """Return what a GPU holds that has its shard (`distributed.shards`): FSDP2 gathers a layer, and what is in none, at a time.

    Trained weights are float32 shards, gathered in the dtype of the model, and adapters lie whole on every GPU.
    """
    full = config.model.lora is None
    stored = max(4, width) if full else width
    references = _references(config) if full else 0
    layer = (shape.parameters - shape.outside) / max(1, shape.layers)
    at_a_time = shape.outside + 2 * layer  # one layer computes while the next is fetched
    state = shape.trained * 12 / cluster.gpus if full else shape.trained * 16
    always = {
        "weights": shape.parameters * stored / cluster.gpus,
        "references": references * shape.parameters * width / cluster.gpus,
        "gradients, Adam" + ("" if full else ", adapters"): state,
    }
    heads = references * shape.outside * width if config.kl.estimator == "full" else 0
    learning = {
        "gathered weights": at_a_time * width + heads,
        "gradients before they are shared": at_a_time * 4 if full else 0,
    }
    return _Held(always, learning, {"whole weights": shape.parameters * width})


def most_rows(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> int:
    """Return the largest ``rollout.max_num_seqs`` whose keys and values fit next to what a GPU always holds."""
    sampling = dict(estimate(config, shape, cluster, lengths).sampling)
    cache = sampling.pop("keys and values")
    free = cluster.gib - sum(sampling.values())
    return max(0, int(free / cache * _rows(config, cluster)))


def _in_gib(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size / GIB for name, size in sizes.items()}


def _references(config: Config) -> int:
    """Return how many frozen models exist next to the policy: at most, over the stages."""
    return max((len({"base", *stage.references}) for stage in config.stages.values()), default=1)


def _activation_numbers(config: Config, shape: ModelShape) -> int:
    """Return the numbers that a token keeps for the backward pass."""
    layer = 16 * shape.width + 4 * shape.intermediate
    if config.model.gradient_checkpointing:  # each layer's input, and one whole layer
        return shape.layers * shape.width + layer
    return shape.layers * layer


def _rows(config: Config, cluster: Cluster) -> int:
    return min(config.rollout.max_num_seqs, _episodes(config, cluster))


def _episodes(config: Config, cluster: Cluster) -> int:
    """Return the most episodes that one GPU has of a step; a group stays on one GPU."""
    group = config.rollout.group_size
    sizes = [config.batch_size(stage) for stage in config.stages.values()] or [config.rollout.batch_size]
    return -(-max(sizes) // (group * cluster.gpus)) * group


def _turns(config: Config) -> int:
    return max([config.turns, *(stage.turns for stage in config.stages.values())])


def _episode_tokens(config: Config, lengths: Lengths) -> int:
    turns = _turns(config)
    return lengths.prompt + turns * lengths.answer + (turns - 1) * INSTRUCTION_TOKENS


def _learn_s(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths, *, references: int) -> float:
    """Return the seconds of scoring and of the backward pass: 2 operations per weight and token, forward; 4 backward."""
    passes = 2 * references + config.optimizer.num_iterations * (6 + 2 * config.model.gradient_checkpointing)
    tokens = _episodes(config, cluster) * _episode_tokens(config, lengths)
    return passes * shape.parameters * tokens / (LEARNING_SHARE * cluster.tflops * 1e12)


def _sample_s(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths, *, rows: int, width: int) -> float:
    """Return the seconds of decoding: every token reads all weights and, half full on average, the cache of all rows."""
    steps = _turns(config) * lengths.answer * -(-_episodes(config, cluster) // rows)
    cache = rows * _episode_tokens(config, lengths) / 2 * shape.kv_numbers * width
    reading = (shape.parameters * width + cache) / (READING_SHARE * cluster.bandwidth * 1e9)
    launching = shape.layers * LAUNCHES * LAUNCH_S if config.rollout.engine == "hf" else 0.0
    return steps * max(reading, launching)
