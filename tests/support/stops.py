"""Stop a run after every step, as Ctrl-C does, and resume it each time."""

from __future__ import annotations

from pathlib import Path

from selfcorrect.config.schema import Config
from selfcorrect.errors import InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runs.run import resume, train


def trained_with_stops(config: Config, out: Path, *, most: int = 20) -> int:
    """Train a run that is stopped after each of its steps; return how many steps it took."""
    steps: list[int] = []
    callbacks = Callbacks(
        on_step=lambda record: steps.append(1), should_stop=lambda: 15 if len(steps) > before else None
    )
    for before in range(most):
        try:
            resume(out, callbacks=callbacks) if before else train(config, out, callbacks=callbacks)
            break
        except InterruptedRun:
            assert len(steps) == before + 1
    return len(steps)
