"""The facts about a model that are known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfcorrect.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True, eq=False)
class ModelCard:
    """A model's tokenizer and context limit (in tokens): enough to check whether the problems fit."""

    tokenizer: Any
    context_limit: int

    @classmethod
    def of(cls, model: LanguageModel) -> ModelCard:
        """Return the card of a loaded model."""
        return cls(model.tokenizer, model.context_limit)
