"""Callbacks that report the progress of a run or an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selfcorrect.evaluation.evaluation import Evaluation
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.zoo.registry import Progress


@dataclass(frozen=True)
class Callbacks:
    """Functions to call during a run or an evaluation; every member is optional.

    ``should_stop`` is called after every step and every chunk of an evaluation. If it returns a signal's number (or
    True), the run saves and raises `InterruptedRun`.

    ``on_partial`` is called by an evaluation that stops half-way, before its error is raised, with what it has so far and
    the number of problems that it was to have. ``on_left`` gets the estimated seconds left of an evaluation, all its parts
    together, before each call of ``on_progress``.
    """

    on_step: Callable[[StepRecord], None] | None = None
    on_eval: Callable[[str, Evaluation], None] | None = None
    on_partial: Callable[[Evaluation, int], None] | None = None
    on_progress: Progress | None = None
    on_left: Callable[[float], None] | None = None
    should_stop: Callable[[], int | None] = lambda: None
