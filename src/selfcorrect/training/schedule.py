"""The learning-rate schedule."""

from __future__ import annotations

import math

from selfcorrect.config.optimizer import OptimizerConfig


def scheduled(peak: float, step: int, steps: int, settings: OptimizerConfig) -> float:
    """Return the learning rate of a step, counted from 0, of ``steps``: linear warm-up to ``peak``, then the schedule."""
    warmup = settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "linear":
        return peak * (1 - (1 - settings.min_lr_ratio) * done)
    if settings.schedule == "cosine":
        return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2)
    return peak
