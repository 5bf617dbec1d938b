"""What differs between families of models, and is asked of a model once, when it is wrapped."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from selfcorrect.errors import ModelError
from selfcorrect.models.chat_template import end_of_turn, note_unknown_end

FAMILY_ERRORS = LookupError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, AssertionError
"""What the code of a family raises if it is called in a way that it does not support."""


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the ids that end a turn: those that tokenizer and generation settings name, and the chat template's own."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
    if not found:
        raise ModelError("the tokenizer has no end-of-sequence token, so no attempt can end: set tokenizer.eos_token.")
    note_unknown_end(tokenizer)
    return frozenset(int(i) for i in {*found, end_of_turn(tokenizer)} - {None})


def context_limit(config: Any) -> int:
    """Return the longest sequence of tokens that a model's settings allow."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2**31)


def slots_limit(config: Any) -> int | None:
    """Return the number of cache slots a sliding window covers (it counts slots, not tokens), or None without a window.

    Families with identical layers (Mistral, Phi-3) list no layer types.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    return window if window and (not kinds or "sliding_attention" in kinds) else None


def cache_argument(decoder: Any) -> str:
    """Return the name of the decoder's cache argument, which ``transformers`` renamed in 5.24."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Reject a tokenizer with ids for which the model has no embedding.

    Raises:
        ModelError: there are some; the message names them.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        some = ", ".join(f"{token!r} ({i})" for i, token in beyond[:3]) + (", ..." if len(beyond) > 3 else "")
        raise ModelError(
            f"the tokenizer has {len(beyond):,} tokens without an embedding: ids below {rows:,} have one, and {some} do not. "
            "It belongs to another model, or tokens were added to it alone: use the model's own tokenizer, or enlarge the "
            "embedding with model.resize_token_embeddings(len(tokenizer)), and save both."
        )


@contextlib.contextmanager
def refusing(model: Any, what: str) -> Iterator[None]:
    """Within the block, turn an error of a family's own code into a refusal of the model with the reason ``what``.

    Raises:
        ModelError: the block failed, but not for lack of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except FAMILY_ERRORS as error:
        if "can't allocate memory" in str(error):
            raise
        raise ModelError(
            f"{type(model).__name__} is not supported: {what} ({type(error).__name__}: {error}). Decoder-only models whose "
            "every layer attends to keys and values work, such as Llama, Qwen, Gemma, Mistral and Phi."
        ) from error
