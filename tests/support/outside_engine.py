"""Provide an engine as a user of the package would write one: it copies weights, and samples what `hf` samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfcorrect.engines import Completion, EngineKind, EngineSettings, HFEngine, Request, Sampling
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel

OPENED: list[OutsideEngine] = []
"""Every engine that was opened, in order."""


class OutsideEngine:
    """An engine that samples from a copy of the weights and records its calls."""

    def __init__(self, model: LanguageModel, settings: EngineSettings) -> None:
        self.settings, self.loads, self.requests, self.closed = settings, 0, 0, False
        self.inner = HFEngine(model.frozen_copy(), max_num_seqs=settings.max_num_seqs)
        OPENED.append(self)

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        assert not self.closed
        self.requests += len(requests)
        return self.inner.generate(requests, sampling, keep=keep)

    def load_weights(self, policy: Any) -> None:
        assert not self.closed
        self.loads += 1
        self.inner.load_weights(policy)

    def close(self) -> None:
        self.closed = True


def open_outside(model: LanguageModel, settings: EngineSettings) -> OutsideEngine:
    return OutsideEngine(model, settings)


def _picky(settings: EngineSettings) -> None:
    if settings.options.get("speed") == "impossible":
        raise ConfigError("speed = 'impossible': choose another.")


KIND = EngineKind(open_outside, _picky)
ALONE_KIND = EngineKind(open_outside, several_processes=False)
NOT_AN_ENGINE = 3


def open_nothing(model: LanguageModel, settings: EngineSettings) -> object:
    return object()
