"""A run that is killed from within, in a process of its own."""

from __future__ import annotations

import itertools
import os
import signal
from typing import Any

from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.paper.plan import RunSpec


def finish_until_killed(spec: RunSpec, steps: int) -> None:
    """Finish a run, but kill this process after N steps."""
    count = itertools.count(1)

    def on_step(*_: Any) -> None:
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    spec.finish(Callbacks(on_step=on_step))
