"""Trackio: local files unless its own environment variables name a Space or a server (``TRACKIO_SPACE_ID``, ...)."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from selfcorrect.extras import require
from selfcorrect.runs.trackers.base import TrackedRun


class TrackioTracker:
    """A run of Trackio, which a resumed run continues."""

    def __init__(self) -> None:
        self._package = require("trackio", extra="trackio", why="log.trackers = trackio")
        self._run: Any = None
        self._project = ""

    @property
    def where(self) -> str:
        remote = self._run.url
        if not remote:
            return f"trackio show --project {shlex.quote(self._project)}"
        return str(remote) if "://" in remote else f"https://huggingface.co/spaces/{remote}"

    def start(self, run: TrackedRun) -> int:
        self._project = run.project
        with _printing_to_stderr():
            self._run = self._package.init(
                project=run.project,
                name=run.id,
                resume="allow",
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return int(self._run._next_step) - 1  # it has no public name for the step that it expects next

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        with _printing_to_stderr():
            self._package.finish()  # of the run object alone would print again at exit


def _printing_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Keep what the package prints out of a command's results."""
    return contextlib.redirect_stdout(sys.stderr)
