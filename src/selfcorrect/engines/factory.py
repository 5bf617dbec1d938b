"""The one place that picks an engine: training, evaluations and `selfcorrect eval` all open theirs here.

An engine from outside the package takes one file and no change here. Name it in a configuration as
``rollout.engine = "my_engine:open_mine"``, or offer it to others under the entry-point group ``selfcorrect.engines``:

    # my_engine.py
    from selfcorrect.engines import Completion, EngineSettings

    class MyEngine:                                   # the members of `selfcorrect.engines.Engine`
        def __init__(self, model, options): ...
        def generate(self, requests, sampling, *, keep=False): ...   # -> a Completion for each request, in order
        def load_weights(self, policy): ...           # sample from these weights from now on
        def close(self): ...

    def open_mine(model, settings: EngineSettings) -> MyEngine:
        return MyEngine(model, settings.options)      # the group [rollout.engine_options]

What is named is a function ``(model, settings) -> engine``, or an `EngineKind`, which can also check settings before any
work and say that its engines compute with the model's own weights.

What an engine promises: it samples from the full softmax at ``sampling.temperature`` (0 is greedy), it ends a turn with
the model's end token, at ``sampling.max_tokens`` or with a text of ``sampling.stop``, and the log-probabilities in a
`Completion` are those of the tokens it sampled, in nats. The draws should depend on ``request.key`` alone: then a resumed
run samples what an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfcorrect.config.engine_names import BUILTIN, HF, check_engine_name, offered_engines
from selfcorrect.engines.base import Engine, EngineKind, EngineSettings
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel

MEMBERS = ("generate", "load_weights", "close")
"""What every engine has."""


def open_engine(settings: EngineSettings, model: LanguageModel) -> Engine:
    """Open an engine that samples from ``model``; close it after use.

    Raises:
        ConfigError: the engine cannot be had, or refuses its settings.
    """
    engine = check_engine(settings).open(model, settings)
    lacking = [name for name in MEMBERS if not callable(getattr(engine, name, None))]
    if lacking:
        raise ConfigError(
            f"engine {settings.name!r} opened a {type(engine).__name__}, which has no {', '.join(lacking)}: an engine has "
            f"{', '.join(MEMBERS)} (see selfcorrect.engines.Engine)."
        )
    return engine


def open_second_engine(settings: EngineSettings, model: LanguageModel) -> Engine:
    """Open an engine for a second model that is sampled in turn with the first.

    An engine that copies weights holds those of one model, so the second model is then sampled by `hf`.
    """
    return open_engine(settings if engine_kind(settings.name).shares_weights else settings.renamed(HF), model)


def check_engine(settings: EngineSettings) -> EngineKind:
    """Return the kind of engine that is asked for, before a model is loaded for nothing.

    Raises:
        ConfigError: the engine cannot be had, or refuses its settings.
    """
    kind = engine_kind(settings.name)
    kind.check(settings)
    return kind


def engine_kind(name: str) -> EngineKind:
    """Return the kind of engine that a name means.

    Raises:
        ConfigError: there is none of that name, or it cannot be imported.
    """
    try:
        check_engine_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    place = BUILTIN.get(name) or (name if ":" in name else offered_engines()[name].value)
    found = _imported(name, place)
    return found if isinstance(found, EngineKind) else EngineKind(found)


def _imported(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        with _working_directory_importable():
            importlib.invalidate_caches()  # the module may have been written a moment ago
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs other people's code
        raise ConfigError(
            f"engine {name!r} cannot be imported ({type(error).__name__}: {error}). The module is looked for in "
            f"{Path.cwd()} and among the installed packages, {attribute!r} in the module."
        ) from error
    if not isinstance(found, EngineKind) and not callable(found):
        raise ConfigError(
            f"engine {name!r} is {type(found).__name__}: name a function (model, settings) -> engine, or an EngineKind."
        )
    return found


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)


class EnginePool:
    """Engines of one kind for one model after another.

    An engine that copies weights is opened once, and every further model's weights are loaded into it; vLLM allows one in
    a process. An engine that computes with the model's own weights is opened for each model.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._opened: Engine | None = None

    def engine(self, model: LanguageModel) -> Engine:
        """Return an engine that samples from ``model``; what the pool returned before may sample from it too now."""
        if engine_kind(self.settings.name).shares_weights:
            return open_engine(self.settings, model)
        if self._opened is None:
            self._opened = open_engine(self.settings, model)
        else:
            self._opened.load_weights(model)
        return self._opened

    def close(self) -> None:
        """Close the engine that was opened once."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
