"""Define the workloads as data. Nothing heavy is imported here, so ``--help`` can list them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from selfcorrect.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama with random weights."""

    layers: int = 4
    width: int = 256
    inner: int = 1024
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocabulary: int = 2048
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """One step of SCoRe's second stage: ``episodes`` episodes of two attempts, then one update.

    Every attempt has exactly the requested length: an end token does not end it, on either side.

    Attributes:
        model: a shape, for random weights, or the name of a model that the package can load.
        prompt: tokens of the first turn's prompt; not used with a named model, whose task has its own prompts.
        turn: tokens of each attempt; with ``uneven``, their maximum.
        uneven: lengths are drawn from a log-normal distribution, see `inputs.lengths`.
        budget: padded tokens of a micro-batch in our learner.
        rows: rows of a micro-batch on the other side; the search for its best settings tries others, unless ``whole``.
        whole: all episodes are one micro-batch on both sides, for a comparison of memory.
        lora: train adapters instead of all weights.
        config: the built-in config that our side takes its other settings from; None: the defaults.
        gpu: too large for a CPU, unless `resized`.
    """

    name: str
    about: str
    model: Shape | str
    episodes: int
    group: int = 8
    prompt: int = 64
    turn: int = 64
    uneven: bool = False
    budget: int = 4_096
    rows: int = 64
    whole: bool = False
    lora: bool = False
    dtype: str = "float32"
    config: str | None = None
    gpu: bool = False

    @property
    def problems(self) -> int:
        return self.episodes // self.group


def _on_a_gpu(name: str, about: str, model: Shape | str, rows: int) -> Workload:
    """Return a workload of 512 episodes, 256 + 256 tokens each, in bfloat16, with equal micro-batches on both sides."""
    return Workload(name, about, model, 512, turn=256, budget=rows * 640, rows=rows, dtype="bfloat16", gpu=True)


SMALL = Shape()
QWEN_HALF_B = Shape(24, 896, 4864, heads=14, kv_heads=2, head_dim=64, vocabulary=151_936, tied=True)
QWEN_0_6_B = Shape(28, 1024, 3072, heads=16, kv_heads=8, head_dim=128, vocabulary=151_936, tied=True)
QWEN_1_HALF_B = Shape(28, 1536, 8960, heads=12, kv_heads=2, head_dim=128, vocabulary=151_936, tied=True)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "tiny", "the embedded default: additions, 8 tokens an attempt", "addition-base", 512, turn=8, config="demo"
        ),
        Workload("small", "4 layers, width 256, 64 + 64 + 64 tokens", SMALL, 512),
        Workload(
            "vocab",
            "vocabulary of 150,000, one layer of width 256",
            replace(SMALL, layers=1, vocabulary=150_000, tied=True),
            16,
            rows=16,
            whole=True,
        ),
        Workload("smollm2", "SmolLM2-135M, all weights, 48 tokens an attempt", "smollm2-135m", 32, turn=48, rows=8),
        Workload(
            "smollm2-lora", "SmolLM2-135M, LoRA, 48 tokens an attempt", "smollm2-135m", 32, turn=48, rows=8, lora=True
        ),
        Workload(
            "qwen-lora",
            "random weights in the shape of Qwen3-0.6B, LoRA, bfloat16, 90 tokens an attempt",
            QWEN_0_6_B,
            16,
            turn=90,
            rows=8,
            lora=True,
            dtype="bfloat16",
        ),
        Workload(
            "long", "`small`'s model, up to 1,024 tokens an attempt, uneven", SMALL, 16, turn=1024, uneven=True, rows=4
        ),
        _on_a_gpu("gpu-smollm2", "SmolLM2-135M, 256 tokens an attempt", "smollm2-135m", 32),
        _on_a_gpu("gpu-0.5b", "random weights in the shape of Qwen2.5-0.5B, 256 tokens an attempt", QWEN_HALF_B, 16),
        _on_a_gpu("gpu-1.5b", "random weights in the shape of Qwen2.5-1.5B, 256 tokens an attempt", QWEN_1_HALF_B, 8),
    )
}


def find_workload(name: str) -> Workload:
    """Return the workload of that name.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    close = difflib.get_close_matches(name, WORKLOADS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"workload {name!r} is unknown: the workloads are {', '.join(WORKLOADS)}.{hint}")


def resized(workload: Workload, episodes: int | None) -> Workload:
    """Return the workload with another number of episodes, for a quick look.

    Raises:
        ConfigError: the number is not a multiple of the group size.
    """
    if episodes is None:
        return workload
    if episodes < workload.group or episodes % workload.group:
        raise ConfigError(
            f"--episodes {episodes}: workload {workload.name!r} has groups of {workload.group} episodes per problem; "
            f"give a multiple of {workload.group}."
        )
    return replace(workload, episodes=episodes, gpu=False)
