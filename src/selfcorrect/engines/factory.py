"""The one place that picks an engine: training, evaluations and `selfcorrect eval` all open theirs here.

A third-party engine takes one file and no change here. Name it in a configuration as
``rollout.engine = "my_engine:open_mine"``, or publish it under the entry-point group ``selfcorrect.engines``:

    # my_engine.py
    from selfcorrect.engines import Completion, EngineSettings

    class MyEngine:                                   # the members of `selfcorrect.engines.Engine`
        def __init__(self, model, options): ...
        def generate(self, requests, sampling, *, keep=False): ...   # -> a Completion for each request, in order
        def load_weights(self, policy): ...           # sample from these weights from now on
        def close(self): ...

    def open_mine(model, settings: EngineSettings) -> MyEngine:
        return MyEngine(model, settings.options)      # the group [rollout.engine_options]

The name must lead to a function ``(model, settings) -> engine`` or to an `EngineKind`. An `EngineKind` can also check
settings before any work, and declare that its engines compute with the model's own weights.

An engine must sample from the full softmax at ``sampling.temperature`` (0 is greedy). It must end a turn with the model's
end token, at ``sampling.max_tokens``, or with a text of ``sampling.stop``. The log-probabilities in a `Completion` belong
to its sampled tokens, in nats. The draws should depend on ``request.key`` alone: a resumed run then samples what an
uninterrupted one does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from selfcorrect.config.engine_names import ENGINES, HF
from selfcorrect.engines.base import Engine, EngineKind, EngineSettings
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel

MEMBERS = ("generate", "load_weights", "close")
"""The methods that every engine must have."""


def open_engine(settings: EngineSettings, model: LanguageModel) -> Engine:
    """Open an engine that samples from ``model``; close it after use.

    Raises:
        ConfigError: the engine is not available, or rejects its settings.
    """
    opened = check_engine(settings).open(model, settings)
    engine: Engine = ENGINES.with_members(settings.name, opened, MEMBERS, "selfcorrect.engines.Engine")
    return engine


def open_second_engine(settings: EngineSettings, model: LanguageModel) -> Engine:
    """Open an engine for a second model, sampled alternately with the first.

    An engine that copies weights holds one model's weights at a time, so `hf` then samples the second model.
    """
    return open_engine(settings if engine_kind(settings.name).shares_weights else settings.renamed(HF), model)


def computing_models(settings: EngineSettings, model: LanguageModel) -> list[LanguageModel]:
    """Return the model if the engine computes with its own weights; nothing if the engine has a copy of them."""
    return [model] if engine_kind(settings.name).shares_weights else []


def check_engine(settings: EngineSettings, *, processes: int = 1) -> EngineKind:
    """Return the requested kind of engine; call this before loading a model in vain.

    Raises:
        ConfigError: the engine is not available, rejects its settings, or cannot run in several processes.
    """
    kind = engine_kind(settings.name)
    check_processes(settings.name, kind, processes)
    kind.check(settings)
    return kind


def check_processes(name: str, kind: EngineKind, processes: int) -> None:
    """Reject an engine that cannot run in several processes.

    Raises:
        ConfigError: several processes are to share the work.
    """
    if processes > 1 and not kind.several_processes:
        raise ConfigError(
            f"engine = {name!r} runs in one process, but {processes} are to share the work: start one, without torchrun "
            f"or --processes, or take engine = {HF!r}, of which each process has one."
        )


def engine_kind(name: str) -> EngineKind:
    """Return the kind of engine with a name.

    Raises:
        ConfigError: the name is unknown, or its engine cannot be imported.
    """
    found = ENGINES.load(name)
    if isinstance(found, EngineKind):
        return found
    if not callable(found):
        raise ConfigError(
            f"engine {name!r} is {type(found).__name__}: name a function (model, settings) -> engine, or an EngineKind."
        )
    return EngineKind(found)


class EnginePool:
    """Engines of one kind for one model after another.

    An engine that copies weights is opened once, and each further model's weights are loaded into it, because vLLM allows
    one engine per process. An engine that computes with the model's own weights is opened for each model.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._opened: Engine | None = None

    def engine(self, model: LanguageModel) -> Engine:
        """Return an engine that samples from ``model``; engines returned earlier may sample from it too now."""
        if engine_kind(self.settings.name).shares_weights:
            return open_engine(self.settings, model)
        if self._opened is None:
            self._opened = open_engine(self.settings, model)
        else:
            self._opened.load_weights(model)
        return self._opened

    def whole(self, model: LanguageModel) -> AbstractContextManager[None]:
        """Hold a model's weights whole within the block, in which its engine samples, unless that has a copy of them."""
        return model.placement.whole() if computing_models(self.settings, model) else nullcontext()

    def close(self) -> None:
        """Close the engine that was opened once."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
