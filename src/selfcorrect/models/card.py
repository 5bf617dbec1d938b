"""What can be known of a model before its weights are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfcorrect.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True, eq=False)
class ModelCard:
    """A model's tokenizer and the tokens that its context holds: what tells whether the problems fit it."""

    tokenizer: Any
    context_limit: int

    @classmethod
    def of(cls, model: LanguageModel) -> ModelCard:
        """Return the card of a model that is there."""
        return cls(model.tokenizer, model.context_limit)
