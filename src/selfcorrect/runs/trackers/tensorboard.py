"""TensorBoard: event files in the run's directory, rewritten when the run is resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.runs.trackers.base import TrackedRun
from selfcorrect.storage.files import remove_tree


class TensorBoardTracker:
    """A writer of TensorBoard's files."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"log.trackers names tensorboard, which cannot be imported ({error}). Install it: pip install tensorboard; "
                "or leave it out: log.trackers = []."
            ) from error
        self._open: Any = SummaryWriter
        self._writer: Any = None
        self._folder = Path()

    @property
    def where(self) -> str:
        return f"tensorboard --logdir {shlex.quote(str(self._folder))}"

    def start(self, run: TrackedRun) -> int:
        self._folder = run.path / "tensorboard"
        remove_tree(self._folder)
        self._writer = self._open(str(self._folder))
        return 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
