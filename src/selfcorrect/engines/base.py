"""The engine protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self

from selfcorrect.config.engine_names import HF
from selfcorrect.config.schema import Config, VLLMConfig
from selfcorrect.errors import ConfigError
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
class EngineSettings:
    """What an engine is built from, in addition to the model.

    ``max_num_seqs`` requests are worked on at a time. ``max_length`` is the number of tokens of the longest episode, prompt
    and all turns; None where it is not known, then the model's context is the limit. ``options`` are a third-party
    engine's own settings, ``vllm`` those of `vllm`.
    """

    name: str = HF
    max_num_seqs: int = 512
    max_length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)

    @classmethod
    def of(cls, config: Config, *, max_length: int | None = None) -> EngineSettings:
        """Return the settings that a run's configuration gives its engine."""
        rollout = config.rollout
        return cls(rollout.engine, rollout.max_num_seqs, max_length, rollout.engine_options, config.vllm)

    def renamed(self, name: str) -> EngineSettings:
        """Return the same settings for another engine."""
        return replace(self, name=name)


def _nothing_to_check(settings: EngineSettings) -> None:
    pass


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind of engine.

    ``open`` makes an engine that samples from a `LanguageModel`. ``check`` raises a ConfigError, before a model is loaded,
    for settings under which no engine could be opened. An engine that ``shares_weights`` computes with the model's own,
    so that nothing has to be copied and each model can have one.
    """

    open: Callable[[Any, EngineSettings], Engine]
    check: Callable[[EngineSettings], None] = _nothing_to_check
    shares_weights: bool = False


def refuse_options(settings: EngineSettings) -> None:
    """Refuse options, which an engine of the package does not read.

    Raises:
        ConfigError: there are some.
    """
    if settings.options:
        raise ConfigError(
            f"engine_options sets {', '.join(settings.options)}, but the engine {settings.name!r} takes none: remove the group."
        )


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
