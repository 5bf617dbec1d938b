"""Train and measure intrinsic self-correction of language models.

This module exports the public API. Names are imported on first use, so importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcorrect.config.evaluation import EvalSettings
    from selfcorrect.config.schema import Config
    from selfcorrect.config.toml import load_config, make_config
    from selfcorrect.errors import (
        CheckpointError,
        ConfigError,
        ConsentError,
        DataError,
        InterruptedRun,
        ModelError,
        RunDirectoryError,
        SelfCorrectError,
        TrainingError,
        VerifierError,
    )
    from selfcorrect.evaluation.callbacks import Callbacks
    from selfcorrect.evaluation.evaluate import evaluate
    from selfcorrect.evaluation.evaluation import Evaluation
    from selfcorrect.runs.run import Summary, resume, train
    from selfcorrect.script import Script
    from selfcorrect.tasks import Task, get_task
    from selfcorrect.tasks.rows import RowsTask
    from selfcorrect.types import Episode, Outcome, Problem, Split, Verdict

__version__ = "0.1.0"

__all__ = [
    "Callbacks",
    "CheckpointError",
    "Config",
    "ConfigError",
    "ConsentError",
    "DataError",
    "Episode",
    "EvalSettings",
    "Evaluation",
    "InterruptedRun",
    "ModelError",
    "Outcome",
    "Problem",
    "RowsTask",
    "RunDirectoryError",
    "Script",
    "SelfCorrectError",
    "Split",
    "Summary",
    "Task",
    "TrainingError",
    "Verdict",
    "VerifierError",
    "__version__",
    "evaluate",
    "get_task",
    "load_config",
    "make_config",
    "resume",
    "train",
]

_PLACES = {
    "config.evaluation": ("EvalSettings",),
    "config.schema": ("Config",),
    "config.toml": ("load_config", "make_config"),
    "errors": (
        *("CheckpointError", "ConfigError", "ConsentError", "DataError", "InterruptedRun", "ModelError"),
        *("RunDirectoryError", "SelfCorrectError", "TrainingError", "VerifierError"),
    ),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.evaluate": ("evaluate",),
    "script": ("Script",),
    "runs.run": ("Callbacks", "Summary", "resume", "train"),
    "tasks": ("Task", "get_task"),
    "tasks.rows": ("RowsTask",),
    "types": ("Episode", "Outcome", "Problem", "Split", "Verdict"),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
