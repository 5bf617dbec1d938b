"""A run's metrics on their way to its trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from selfcorrect.config.schema import Config
from selfcorrect.runs.trackers.base import TrackedRun, Tracker
from selfcorrect.runs.trackers.factory import make_tracker

log = logging.getLogger("selfcorrect")
T = TypeVar("T")


class MetricLogger:
    """A sender of every step's scalars to all trackers; one that fails is left out from then on, with a warning.

    Attributes:
        curves: where each tracker that could be started has its curves.
    """

    def __init__(self, run: TrackedRun, trackers: Mapping[str, Tracker], before: Mapping[str, int]) -> None:
        self.run, self._trackers, self._before = run, dict(trackers), before
        self.curves: tuple[str, ...] = ()
        self._has: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path, config: Config, *, active: bool = True) -> MetricLogger:
        """Return the logger of a run; one that is not ``active`` sends nothing, because another process does.

        Raises:
            ConfigError: a tracker cannot be made.
        """
        before, total = {}, 0
        for name, stage in config.stages.items():
            before[name] = total
            total += stage.length
        trackers = {name: make_tracker(name) for name in config.log.trackers} if active else {}
        return cls(TrackedRun(path, config.log.project, config.model_dump(mode="json")), trackers, before)

    def start(self, taken: Sequence[Mapping[str, Any]]) -> None:
        """Start every tracker, say where its curves are, and send it the steps that it lacks of those ``taken`` so far."""
        for name in [*self._trackers]:
            where = self._try(name, partial(self._started, name, taken))
            if where is not None:
                log.info(f"curves: {where}")
                self.curves += (where,)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Send the metrics of one step."""
        step, scalars = self._step(metrics), dict(_scalars(metrics))
        for name in [*self._trackers]:
            if step > self._has[name]:  # a resumed run repeats what came after its checkpoint
                self._try(name, lambda tracker: tracker.log(step, scalars))

    def close(self) -> None:
        """Finish every tracker."""
        for name in [*self._trackers]:
            self._try(name, lambda tracker: tracker.finish())
        self._trackers.clear()

    def _started(self, name: str, taken: Sequence[Mapping[str, Any]], tracker: Tracker) -> str:
        """Start a tracker and send it what it lacks: all, or what came after a kill or an outage."""
        self._has[name] = tracker.start(self.run)
        for line in taken:
            if self._step(line) > self._has[name]:
                tracker.log(self._step(line), dict(_scalars(line)))
        return str(tracker.where)

    def _try(self, name: str, work: Callable[[Tracker], T]) -> T | None:
        """Return what the tracker returns; None if it fails, which ends the tracker and not the run."""
        try:
            return work(self._trackers[name])
        except Exception as error:  # other people's code, and their network
            del self._trackers[name]
            said = (str(error).strip().splitlines() or [""])[0][:300]
            log.warning(
                f"tracker {name!r} failed ({type(error).__name__}: {said}). The run continues without it and keeps every step in "
                f"{self.run.path / 'metrics.jsonl'}; when it is resumed, the tracker gets what it lacks."
            )
            return None

    def _step(self, metrics: Mapping[str, Any]) -> int:
        return self._before.get(metrics["stage"], 0) + int(metrics["step"])


def _scalars(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield f"{prefix}{name}", float(value)
