"""What a caller is told while a run or an evaluation goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selfcorrect.evaluation.evaluator import Evaluation
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.zoo.registry import Progress


@dataclass(frozen=True)
class Callbacks:
    """What a caller wants to be told; every member may be left out.

    ``should_stop`` is asked after every step and every chunk of an evaluation: a signal's number (or True) makes
    the run save and raise `InterruptedRun`.
    """

    on_step: Callable[[StepRecord], None] | None = None
    on_eval: Callable[[str, Evaluation], None] | None = None
    on_progress: Progress | None = None
    should_stop: Callable[[], int | None] = lambda: None
