"""Provide an engine whose completions the test decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfcorrect.engines import Completion, Request, Sampling
from selfcorrect.types import StopReason


@dataclass
class ScriptedEngine:
    """An engine that answers every request with ``answer(request)`` and records the requests."""

    answer: Callable[[Request], Sequence[int]]
    end_id: int
    asked: list[Request] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        self.asked.extend(requests)
        done = []
        for request in requests:
            ids = tuple(self.answer(request))[: sampling.max_tokens]
            stop = StopReason.END if ids[-1] == self.end_id else StopReason.LENGTH
            done.append(Completion(ids, (-0.25,) * len(ids), stop))
        return done

    def load_weights(self, policy: Any) -> None:
        pass

    def close(self) -> None:
        pass
