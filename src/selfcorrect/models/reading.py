"""The boundary to the libraries that read and write models' files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from selfcorrect.errors import ModelError, SelfCorrectError


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Within the block, turn every error of a library into a `ModelError` that says ``what`` could not be loaded.

    Raises:
        ModelError: the block failed, but not for lack of memory.
    """
    try:
        yield
    except (SelfCorrectError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, tokenizers, safetensors, peft and torch have no common root
        if "can't allocate memory" in str(error):
            raise
        plain = isinstance(error, OSError | ValueError)
        reason = str(error) if plain else f"{type(error).__name__}: {error}"
        raise ModelError(f"{what} could not be loaded: {reason}") from error


def share_weights(directory: Path) -> None:
    """Give a model's weights the permissions of the files next to them: safetensors lets only their owner read them."""
    beside = next((file for file in sorted(directory.glob("*.json")) if not file.is_symlink()), None)
    if beside is not None:
        for file in directory.glob("*.safetensors"):
            file.chmod(beside.stat().st_mode & 0o777)


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer of a model directory or a hub id.

    Raises:
        ModelError: it cannot be loaded; the message gives the reason from ``transformers``.
    """
    from transformers import AutoTokenizer

    with readable(f"the tokenizer of {str(source)!r}"):
        return AutoTokenizer.from_pretrained(source)


@contextlib.contextmanager
def silent_bars() -> Iterator[None]:
    """Hide the progress bars of ``transformers`` within the block, then restore its setting."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
