"""Make tiny Llamas with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.zoo.addition import make_tokenizer


def tiny_model(
    seed: int = 0, *, dtype: torch.dtype = torch.float64, tokenizer: Any = None, spread: float = 0.25, **settings: Any
) -> LanguageModel:
    """Return a Llama of two layers with random weights; a ``spread`` of 0.25 makes its distributions far from uniform."""
    tokenizer = tokenizer or make_tokenizer()
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": spread,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.to(dtype)
    if dtype == torch.float64:
        exact_norms(model)
    return LanguageModel(model, tokenizer)


def exact_norms(model: Any) -> None:
    """Replace a family's norms, which always compute in float32: tolerances of 1e-10 need float64 everywhere."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                epsilon = getattr(child, "variance_epsilon", None) or child.eps
                norm = torch.nn.RMSNorm(len(child.weight), eps=epsilon, dtype=torch.float64)
                norm.load_state_dict(child.state_dict())
                if type(child).__name__.startswith("Gemma"):
                    norm.weight.data += 1.0  # Gemma's norm multiplies by 1 + weight
                setattr(parent, name, norm)
