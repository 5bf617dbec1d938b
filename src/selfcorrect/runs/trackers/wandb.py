"""Weights & Biases. Its own environment variables say where to (``WANDB_MODE=offline``, ``WANDB_BASE_URL``, ...)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.extras import require
from selfcorrect.runs.trackers.base import TrackedRun


class WandbTracker:
    """A run of Weights & Biases, which a resumed run continues."""

    def __init__(self) -> None:
        self._package = require("wandb", extra="wandb", why="log.trackers = wandb")
        self._run: Any = None

    @property
    def where(self) -> str:
        url = self._run.url
        return str(url) if url else f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def start(self, run: TrackedRun) -> int:
        self._run = self._package.init(
            project=run.project, name=run.name, id=run.id, resume="allow", config=dict(run.settings)
        )
        return int(self._run.step) - 1  # the step that it expects next

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()
