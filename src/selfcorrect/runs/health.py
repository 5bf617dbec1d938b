"""Warnings when a run goes wrong: once a stage for every kind, in words, with what to change."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stage_labels import stage_label
from selfcorrect.runs.signs import HISTORY, fell, signs

log = logging.getLogger("selfcorrect")


class HealthMonitor:
    """A monitor that reads a run's metrics, step by step, and warns when the run goes wrong.

    All that it knows comes from the metrics, so a resumed run warns as an undisturbed one does.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._first_t1: float | None = None
        self._stage: str | None = None
        self._steps: deque[Mapping[str, Any]] = deque(maxlen=HISTORY)
        self._taken = 0
        self._seen: Counter[str] = Counter()
        self._stopped: dict[str, int] = {}

    @property
    def stopped(self) -> Mapping[str, int]:
        """Return the stages that `log.stop_if_worse` ended, and their last steps."""
        return self._stopped

    def look_back(self, taken: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the steps that a resumed run has taken, by their metrics, without a word."""
        for metrics in taken:
            self._look(metrics)

    def look(self, metrics: Mapping[str, Any], *, aloud: bool = True) -> list[str]:
        """Return the warnings about this step's metrics that the stage has not given yet; log them if ``aloud``."""
        found = self._look(metrics)
        for message in found if aloud else ():
            log.warning(message)
        return found

    def end(self, stage: str) -> str | None:
        """Log and return how often the stage showed each sign that did not pass; None if there was none."""
        lasting = {kind: count for kind, count in self._seen.items() if count > 1} if stage == self._stage else {}
        if not lasting:
            return None
        counted = "; ".join(f"{kind}, at {count}" for kind, count in lasting.items())
        label = stage_label(self.config, stage)
        message = f"{label} is over. What it warned of, and at how many of its {self._taken} steps: {counted}"
        log.warning(message)
        return message

    def _look(self, metrics: Mapping[str, Any]) -> list[str]:
        stage, step, dev = metrics["stage"], metrics["step"], metrics.get("dev")
        if stage != self._stage:
            self._stage, self._taken = stage, 0
            self._steps.clear()
            self._seen.clear()
        self._steps.append(metrics)
        self._taken += 1
        if dev is not None and self._first_t1 is None and dev.get("answer_change_rate") is not None:
            self._first_t1 = dev["acc_t1"]
        if self.config.log.stop_if_worse and dev is not None and fell(dev) is not None:
            self._stopped[stage] = step
        found = []
        for sign in signs(self.config, list(self._steps), self._first_t1):
            if not self._seen[sign.kind]:
                found.append(f"{stage_label(self.config, stage)} step {step}: {sign.found}. Change: {sign.change}")
            self._seen[sign.kind] += 1
        return found
