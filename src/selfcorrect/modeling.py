"""A causal language model as the package uses it: loading, hidden states, logits of chosen positions, saving.

Decoder and head are called apart so that logits exist only where a token is sampled or scored; that
they compose to the model's own forward pass is checked once, when a model is wrapped.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class LanguageModel:
    """A Hugging Face causal LM with its tokenizer.

    Args:
        model: any ``AutoModelForCausalLM`` with a decoder and an output embedding.
        tokenizer: its tokenizer.

    Raises:
        ModelError: decoder and head do not give the model's own logits, or there is no end token.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()  # dropout off, in training too: sampled and trained log-probabilities must agree
        self.tokenizer = tokenizer
        self.end_ids = _end_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.end_ids)
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.width = int(config.hidden_size)
        self.context_limit = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._check_head()

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def decode(self, ids_BT: Tensor, mask_BT: Tensor | None = None, **kwargs: Any) -> Any:
        """The decoder's output for ids and a 0/1 mask of the valid positions; ``.last_hidden_state`` is [B, T, D]."""
        mask = None if mask_BT is None or bool(mask_BT.all()) else mask_BT.long()
        return self.model.get_decoder()(input_ids=ids_BT, attention_mask=mask, **kwargs)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Next-token logits of hidden states [..., D] -> [..., V], in float32 or better."""
        logits: Tensor = self.model.get_output_embeddings()(hidden_SD)
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        logits = logits * self._scale if self._scale != 1.0 else logits
        return self._softcap * torch.tanh(logits / self._softcap) if self._softcap else logits

    def frozen_copy(self) -> LanguageModel:
        """A reference model: the same weights now, never trained."""
        twin = copy.deepcopy(self.model)
        twin.requires_grad_(False)
        return LanguageModel(twin, self.tokenizer)

    def load_weights(self, other: LanguageModel) -> None:
        """Take over another model's weights, in place."""
        self.model.load_state_dict(other.model.state_dict())

    def save(self, directory: Path) -> None:
        """Write a plain Hugging Face directory, which ``transformers`` loads as it is."""
        with _no_bars():
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)

    def digest(self) -> str:
        """SHA-256 of all weights, names and shapes; equal digests mean equal bits."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    @torch.no_grad()
    def _check_head(self) -> None:
        count = min(8, self.vocabulary)
        ids = torch.arange(count, device=self.device)[None] % self.vocabulary
        ours = self.logits(self.decode(ids).last_hidden_state).float()
        theirs = self.model(input_ids=ids).logits.float()
        gap = float((ours - theirs).abs().max())
        if not gap <= 1e-2 * max(1.0, float(theirs.abs().max())):
            raise ModelError(
                f"{type(self.model).__name__}: decoder plus output embedding differ from the model's own logits by {gap:.3g}; "
                "this architecture treats its logits in a way that is not supported yet."
            )


def load_model(source: str | Path, *, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """Load a model directory or hub id (remote code is never run).

    Raises:
        ModelError: nothing loadable is there; the message carries the reason of ``transformers``.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _no_bars():
            model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype])
            tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {str(source)!r} could not be loaded: {error}") from error
    return LanguageModel(model.to(device), tokenizer)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Silence the bars that ``transformers`` draws around loading and saving, and put its setting back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    if not found:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so no attempt could end: set tokenizer.eos_token."
        )
    return frozenset(int(i) for i in found)
