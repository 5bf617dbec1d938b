"""The settings of sampling: rollouts, and the engine vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from selfcorrect.config.settings import LARGE, MAX_BATCH, MAX_RATE, MAX_TOKENS, EngineName, Options, Settings, StopTexts


class RolloutConfig(Settings):
    """How episodes are sampled."""

    engine: EngineName = "hf"
    """The engine that samples: `hf`, the policy itself; `vllm`, which reloads the policy's weights after every step (see
    `vllm`); or an external engine, by the name under which an installed package offers it or as `module:attribute`."""
    engine_options: Options = {}
    """Settings of an external engine."""
    batch_size: int = Field(512, ge=1, le=MAX_BATCH)
    """Episodes per step."""
    group_size: int = Field(8, ge=1, le=MAX_BATCH)
    """Episodes per problem; `batch_size` must be a multiple of it."""
    temperature: float = Field(1.0, gt=0, le=MAX_RATE)
    """Sampling temperature, which log-probabilities and KL use too."""
    max_tokens: int = Field(64, ge=1, le=MAX_TOKENS)
    """Token limit per turn."""
    stop: StopTexts = ()
    """Texts that end a turn as soon as they appear in it; they stay part of the turn."""
    max_num_seqs: int = Field(512, ge=1, le=MAX_BATCH)
    """Episodes sampled in one batch; affects memory and speed only."""
    ahead: int = Field(0, ge=0, le=1)
    """Steps by which sampling runs ahead of learning. 0 = a step learns from episodes of its own weights; 1 = from episodes of
    the weights one step before (docs/method.md, section 11), weighted by `optimizer.tis_cap`, which must be set. No time is
    saved yet: the engine samples and the policy learns in turn."""
    gap_warning: float = Field(1e-2, gt=0, le=LARGE)
    """Warn if the engine's and the policy's log-probabilities of a token differ by more than this, in nats."""


class VLLMConfig(Settings):
    """Settings of the engine `vllm`; unused unless `rollout.engine = "vllm"`."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of its weights and computation; unset = the model's."""
    cache_gib: float | None = Field(None, gt=0, le=65_536)
    """Memory for keys and values, in GiB; unset = enough for `rollout.max_num_seqs` episodes of maximal length, on a GPU at most
    half of what is free."""
    enforce_eager: bool | None = None
    """Run the model uncompiled; false = compile it first, which takes a minute or more and speeds up sampling. Unset = true on a
    CPU, false on a GPU."""
    options: Options = {}
    """Additional arguments of `vllm.LLM`."""


def vllm_problems(name: str, dtype: str, vllm: VLLMConfig, temperatures: Mapping[str, float]) -> list[str]:
    """Return why vLLM cannot run a dtype (that of the setting ``name``) or sample at ``temperatures`` (by setting)."""
    found = []
    if dtype == "float64" and vllm.dtype is None:
        found.append(f"{name} = 'float64', which vLLM does not support: set vllm.dtype = 'float32'")
    found += [
        f"{where} = {temperature}: vLLM samples at 0.01 to 2; choose a temperature in this range, or engine = 'hf'"
        for where, temperature in temperatures.items()
        if not 0.01 <= temperature <= 2
    ]
    return found
