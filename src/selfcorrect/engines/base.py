"""The engine protocols and their value types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from selfcorrect.config.engine_names import HF
from selfcorrect.config.sampling import VLLMConfig
from selfcorrect.config.schema import Config
from selfcorrect.errors import ConfigError
from selfcorrect.rng import SampleKey
from selfcorrect.types import StopReason


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample: from the full softmax at ``temperature`` (0 = greedy), at most ``max_tokens`` per turn.

    A turn also ends with the token that completes one of the ``stop`` texts, which stays part of the turn.

    A model's own generation settings (top-p, top-k, repetition penalty) are ignored on purpose: the samples would come
    from another distribution than the trained one (docs/method.md, section 1).
    """

    temperature: float
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A request to continue ``ids``. ``parent`` is the handle of an earlier completion that they extend, or None."""

    ids: tuple[int, ...]
    key: SampleKey
    parent: Any = None


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled ids, including the end token where one was sampled, with their log-probabilities in nats.

    The log-probabilities come from the sampling distribution, at its temperature (for greedy decoding: at 1).
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: StopReason
    handle: Any = None


class Engine(Protocol):
    """A sampler of token ids."""

    def generate(self, requests: Sequence[Request], sampling: Sampling, *, keep: bool = False) -> list[Completion]:
        """Return one completion per request, in order. ``keep`` asks for handles that later requests may name."""
        ...

    def load_weights(self, policy: Any) -> None:
        """Sample from the policy's current weights from now on."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings from which an engine is built, in addition to the model.

    The engine works on at most ``max_num_seqs`` requests at a time. ``max_length`` is the longest episode in tokens, prompt and
    all turns; None means that the model's context is the limit. ``options`` belong to a third-party engine, ``vllm`` to
    the engine `vllm`.
    """

    name: str = HF
    max_num_seqs: int = 512
    max_length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    vllm: VLLMConfig = field(default_factory=VLLMConfig)

    @classmethod
    def of(cls, config: Config, *, max_length: int | None = None) -> EngineSettings:
        """Return the engine settings of a run's configuration."""
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

    ``open`` makes an engine that samples from a `LanguageModel`. ``check`` runs before a model is loaded and raises a
    ConfigError for settings under which no engine could be opened. An engine that ``shares_weights`` computes with the
    model's own weights, so nothing is copied and each model can have its own engine. With ``several_processes``, each of the
    processes that share the work opens an engine.
    """

    open: Callable[[Any, EngineSettings], Engine]
    check: Callable[[EngineSettings], None] = _nothing_to_check
    shares_weights: bool = False
    several_processes: bool = True


def refuse_options(settings: EngineSettings) -> None:
    """Reject third-party options, which a built-in engine does not read.

    Raises:
        ConfigError: options are set.
    """
    if settings.options:
        raise ConfigError(
            f"engine_options sets {', '.join(settings.options)}, but engine {settings.name!r} takes no options: remove the group."
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply. ``counted`` is the number of sampled tokens that it reported, or None.

    In the completions protocol the reply is ``ids``, with the log-probabilities that the server reported (of its full
    softmax at temperature 1, unless it was started differently), and no text. ``reasoning`` is what a chat server reported
    apart from the text. ``other_model`` is the name under which it answered, if that is not the requested one.

    Where there was none, ``stop`` is `StopReason.FAILED` and ``failure`` says why.
    """

    text: str
    stop: StopReason
    counted: int | None
    failure: str = ""
    other_model: str | None = None
    reasoning: str | None = None
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    def under(self, other_model: str | None) -> Reply:
        """Return the same reply with the name under which the server answered."""
        return self if other_model is None else replace(self, other_model=other_model)


Prompt_contra = TypeVar("Prompt_contra", contravariant=True)


class ChatEngine(Protocol[Prompt_contra]):
    """A sampler of replies to a prompt (messages, or token ids), used within ``async with``."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def check(self, prompt: Prompt_contra, sampling: Sampling) -> None:
        """Make sure that the server answers such a request; fail soon if it does not."""
        ...

    async def reply(self, prompt: Prompt_contra, sampling: Sampling, seed: int) -> Reply:
        """Return the continuation of the prompt."""
        ...
