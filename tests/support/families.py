"""Make tiny models of real families with random weights: Llama, Qwen and Gemma, with tied and untied embeddings."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from selfcorrect.config.schema import LoRAConfig
from selfcorrect.models.cpu.llama import CPULlamaForward
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.zoo.addition import make_tokenizer
from support.models import exact_norms

TOKENIZER = make_tokenizer()
SMALL = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen3": {"head_dim": 16},
    # One layer of each kind; softcaps as in the real models, and windows longer than the tests' rows.
    "Gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 20.0,
    },
}
LORA = LoRAConfig(rank=4, alpha=8.0)


def of_family(
    family: str, *, tied: bool, dtype: torch.dtype = torch.float64, seed: int = 0, cpu_kernels: bool = True, **more: Any
) -> LanguageModel:
    settings = {**SMALL, "tie_word_embeddings": tied, **FAMILIES.get(family, {}), **more}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{family}Config")(**settings)
        config.initializer_range = 0.25
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    # Only the weights: `model.to` would also round the rotary frequencies, which loading in bfloat16 leaves in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if dtype == torch.float64:
        model.double()
        exact_norms(model)
    return LanguageModel(model, TOKENIZER, cpu_kernels=cpu_kernels)


def is_fast(model: LanguageModel) -> bool:
    """Return whether the model now uses the fast forward pass."""
    return isinstance(model.forward_pass, CPULlamaForward)


def lively(model: LanguageModel, name: str = "policy", *, seed: int = 5) -> LanguageModel:
    """Return the model with a LoRA adapter that has an effect: a fresh one has B = 0."""
    adapted = model.with_adapter(name, LORA, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=drawn))
    return adapted
