"""What a tracker is, and what it learns about a run."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from selfcorrect.documents import read_json
from selfcorrect.errors import DataError
from selfcorrect.storage.files import TRACKING, json_page, refusals, write_atomically

ID = re.compile(r"[A-Za-z0-9_-]{1,40}-[0-9a-f]{8}")


@dataclass(frozen=True, eq=False)
class TrackedRun:
    """A run as a tracker sees it.

    Attributes:
        path: the run's directory.
        project: the project, or experiment, under which to file the run.
        settings: all settings of the run, nested.
    """

    path: Path
    project: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return a name for people; two runs may have the same."""
        return self.path.resolve().name

    @cached_property
    def id(self) -> str:
        """Return a name that no other run has, and that the run keeps when it is resumed or moved: ``mine-0123abcd``.

        The first tracker that asks makes it; ``tracking.json`` in the run's directory holds it. It has at most 49 letters,
        digits, - and _.
        """
        file = self.path / TRACKING
        try:
            stored = read_json(file)
        except (OSError, DataError):
            stored = None
        known = stored.get("id") if isinstance(stored, dict) else None
        if isinstance(known, str) and ID.fullmatch(known):
            return known
        made = f"{re.sub('[^A-Za-z0-9_-]', '-', self.name)[:40] or 'run'}-{secrets.token_hex(4)}"
        with refusals(self.path):
            write_atomically(file, json_page({"id": made}))
        return made


class Tracker(Protocol):
    """A place where curves are drawn.

    The setting ``log.trackers`` names a callable that makes one without arguments, such as the class itself. The callable
    must raise, best a `ConfigError`, if the tracker cannot work here: a run makes each of its trackers once before any
    work. Later errors never end a run; it warns once and continues without the tracker.
    """

    @property
    def where(self) -> str:
        """Return where the curves are: an address, or the command that shows them. Read after `start`."""

    def start(self, run: TrackedRun) -> int:
        """Begin a run, or continue one with the same ``run.id``; return the last step that the tracker has of it, or 0."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; steps come in order, and count through all stages."""

    def finish(self) -> None:
        """Write what is left, and close."""
