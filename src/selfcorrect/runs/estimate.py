"""An estimate of the memory and time of a run on GPUs or a CPU, from the sizes of tensors.

The formulas stand in docs/scale.md. They ignore fragmentation, the verifier, and that some answers are longer than others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from selfcorrect.config.engine_names import VLLM
from selfcorrect.config.schema import Config
from selfcorrect.engines.vllm import CACHE_SHARE, cache_bytes
from selfcorrect.errors import ConfigError
from selfcorrect.models.chunked_logprobs import CHUNK_ELEMENTS, GPU_TIMES
from selfcorrect.models.dtypes import DTYPES
from selfcorrect.runs.model_shape import GIB, Cluster, Lengths, ModelShape
from selfcorrect.runs.time_needed import Clock, Times
from selfcorrect.tasks.base import model_turns
from selfcorrect.training.batch import CPU_BUDGET, GPU_BUDGET

CONTEXT_GIB = 1.5
"""What CUDA, its libraries and the allocator take."""
LIBRARIES_GIB = 0.7
"""What Python with torch and transformers takes on a CPU."""
CHUNK_BUFFERS = 3
"""Buffers [tokens, vocabulary] in float32 that a chunk of logits needs."""
HF_CACHE, VLLM_WEIGHTS, VLLM_CACHE = "keys and values", "vLLM: weights", "vLLM: keys and values"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one GPU, or a machine without one, holds, in GiB by purpose, and the seconds of a step and of the run.

    ``learning`` and ``sampling`` list what exists in each phase; the two phases alternate. Loading needs less than either.
    ``clock`` estimates parts of the run.
    """

    learning: dict[str, float]
    sampling: dict[str, float]
    times: Times
    clock: Clock = field(compare=False, repr=False)

    @property
    def needed(self) -> float:
        """Return the GiB of the largest phase."""
        return max(sum(phase.values()) for phase in (self.learning, self.sampling))

    def fits(self, cluster: Cluster) -> bool:
        """Return whether a GPU of the cluster holds it."""
        return self.needed <= cluster.gib


def estimate(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> Estimate:
    """Estimate a run of a configuration, with whole models or with shards of them on every GPU (docs/scale.md)."""
    width = DTYPES[config.model.dtype].itemsize
    sharded = config.distributed.shard and cluster.gpus > 1
    held = _shards(config, shape, cluster, width) if sharded else _whole(config, shape, width)
    engine = (
        _vllm(config, shape, cluster, lengths)
        if config.rollout.engine == VLLM
        else _hf(config, shape, cluster, lengths)
    )
    tokens = config.optimizer.micro_batch_tokens or (CPU_BUDGET if cluster.cpu else GPU_BUDGET)
    learning: dict[str, float] = {
        "activations": tokens * _activation_numbers(config, shape) * width,
        "a chunk of logits": CHUNK_BUFFERS * CHUNK_ELEMENTS * (1 if cluster.cpu else GPU_TIMES) * 4,
    }
    libraries = {"Python, torch": LIBRARIES_GIB * GIB} if cluster.cpu else {"CUDA": CONTEXT_GIB * GIB}
    control = config.optimizer.kl_control
    if control is not None and control.limit is not None:
        shards = cluster.gpus if sharded and config.model.lora is None else 1
        learning["weights, Adam before the step"] = shape.trained * 12 / shards
    always = held.always | engine.always | libraries
    at_once = math.inf if VLLM_CACHE not in always else always[VLLM_CACHE] / _kept(config, shape, lengths)
    sampling_width = engine_width(config)
    clock = Clock(config, shape, cluster, lengths, sampling_width, int(max(1, min(at_once, 10**9))))
    whole = held.sampling if config.rollout.engine != VLLM else {}  # vLLM samples from its copy
    return Estimate(
        _in_gib(always | held.learning | learning), _in_gib(always | whole | engine.sampling), clock.times(), clock
    )


def check_context(config: Config, shape: ModelShape, lengths: Lengths) -> None:
    """Reject what `train` rejects: an episode that the model's context does not hold.

    Raises:
        ConfigError: with the assumed prompt and answers of ``rollout.max_tokens``, it is longer.
    """
    longest = _longest(config, lengths)
    if longest > shape.context:
        raise ConfigError(
            f"an episode could take {longest:,} tokens (an assumed prompt of {lengths.prompt:,}, {_turns(config)} turns of "
            f"at most {config.rollout.max_tokens:,}, and instructions), but the model's context is {shape.context:,}, so "
            "`train` would reject this: lower rollout.max_tokens, or set --prompt-tokens to what your prompts take."
        )


@dataclass(frozen=True, slots=True)
class _Held:
    """The bytes of something on a GPU: always, and in addition in each phase."""

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


def _hf(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> _Held:
    """Return what sampling takes in the policy itself.

    Where finished rows leave the batch, the rest is copied, so for a moment both exist.
    """
    return _Held({}, sampling={HF_CACHE: 2 * _rows(config, cluster) * _kept(config, shape, lengths)})


def _vllm(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> _Held:
    """Return what vLLM takes next to the policy, also while that learns: its copy of the weights, and its cache.

    Its own buffers and compiled graphs are left out.
    """
    weights = shape.parameters * engine_width(config)
    return _Held({VLLM_WEIGHTS: weights, VLLM_CACHE: GIB * _vllm_cache_gib(config, shape, cluster, lengths)})


def _vllm_cache_gib(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> float:
    """Return the GiB that `engines.vllm` gives to keys and values when it opens, next to the base alone."""
    if config.vllm.cache_gib is not None:
        return config.vllm.cache_gib
    token = shape.kv_numbers * engine_width(config)
    wanted = cache_bytes(token, config.rollout.max_num_seqs, _longest(config, lengths)) / GIB
    free = cluster.gib - CONTEXT_GIB - shape.parameters * DTYPES[config.model.dtype].itemsize / GIB
    return min(wanted, max(0.0, CACHE_SHARE * free))


def engine_width(config: Config) -> int:
    """Return the bytes of a number in the engine."""
    own = config.vllm.dtype if config.rollout.engine == VLLM else None
    return DTYPES[config.model.dtype].itemsize if own is None else {"float32": 4}.get(own, 2)


def most_rows(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> int | None:
    """Return the largest ``rollout.max_num_seqs`` whose keys and values fit next to what a GPU always holds.

    None with vLLM, whose cache has a fixed size: where it is full, episodes wait.
    """
    sampling = dict(estimate(config, shape, cluster, lengths).sampling)
    cache = sampling.pop(HF_CACHE, None)
    if cache is None:
        return None
    free = cluster.gib - sum(sampling.values())
    return max(0, int(free / cache * _rows(config, cluster)))


def most_cache(config: Config, shape: ModelShape, cluster: Cluster, lengths: Lengths) -> float | None:
    """Return the largest ``vllm.cache_gib`` that fits next to everything else; None with other engines."""
    found = estimate(config, shape, cluster, lengths)
    cache = found.learning.get(VLLM_CACHE)
    return None if cache is None else max(0.0, cluster.gib - (found.needed - cache))


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
    """Return the most episodes that one GPU samples at once; a group stays on one GPU."""
    group = config.rollout.group_size
    sizes = [config.batch_size(stage) for stage in config.stages.values()] or [config.rollout.batch_size]
    return min(config.rollout.max_num_seqs, -(-max(sizes) // (group * cluster.gpus)) * group)


def _turns(config: Config) -> int:
    """Return the most turns of the model in an episode: attempts, feedback and verifications.

    The verification of a draft, with its draft, is as long as an episode of two.
    """
    stages = config.stages.values()
    turns = model_turns(config, max([config.turns, *(stage.turns for stage in stages)]))
    return max([turns, *(2 for stage in stages if stage.verifies_drafts)])


def _kept(config: Config, shape: ModelShape, lengths: Lengths) -> int:
    """Return the bytes of an episode's keys and values."""
    return lengths.episode(_turns(config)) * shape.kv_numbers * engine_width(config)


def _longest(config: Config, lengths: Lengths) -> int:
    """Return the tokens of the longest episode: every answer may take ``rollout.max_tokens``."""
    return Lengths(lengths.prompt, config.rollout.max_tokens).episode(_turns(config))
