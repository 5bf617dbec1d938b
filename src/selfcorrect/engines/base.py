"""The engine protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from selfcorrect.rng import SampleKey
from selfcorrect.types import StopReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: the full softmax at ``temperature`` (0 = greedy), at most ``max_tokens`` a turn.

    A turn also ends with the token that completes one of the texts ``stop``; the text stays part of the turn.

    Nothing else: a model's own generation settings (top-p, top-k, repetition penalty) would make the
    samples come from another distribution than the one that is trained (docs/method.md, section 1).
    """

    temperature: float
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """Continue ``ids``. ``parent`` is the handle of an earlier completion whose ids they extend, or None."""

    ids: tuple[int, ...]
    key: SampleKey
    parent: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled ids, the end token included where one was sampled, with their log-probabilities in nats.

    Log-probabilities are those of the sampling distribution (at its temperature; greedy: at 1).
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason
    handle: Any = None


class Engine(Protocol):
    """What a sampler offers."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        """One completion per request, in order. ``keep`` asks for handles that later requests may name."""
        ...

    def load_weights(self, policy: Any) -> None:
        """Sample from the policy's present weights from now on."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a chat server answered. ``counted`` is how many tokens it says it sampled; None where it does not say."""

    text: str
    stop: StopReason
    counted: int | None


class ChatEngine(Protocol):
    """What a sampler of texts offers; open while it is entered."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def check(self, messages: Sequence[Message], sampling: Sampling) -> None:
        """Make sure that a request like this is answered at all, without much patience."""
        ...

    async def reply(self, messages: Sequence[Message], sampling: Sampling, seed: int) -> Reply:
        """The next message of the chat."""
        ...
