"""Warnings when a run goes wrong; a pure reader of its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.storage.files import read_jsonl

log = logging.getLogger("selfcorrect")

COPY_LIMIT = 0.02
"""Below this share of changed answers the second attempt is a copy of the first."""

TRUNCATION_LIMIT = 0.5
"""Above this share of cut-off answers the token limit decides what is right."""

FALL_LIMIT = 0.05
"""Warn when greedy t1 on the development problems fell by more since its first look."""


class HealthMonitor:
    """Warns when a run goes wrong; a pure reader of its metrics."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._first_t1: float | None = None
        self._cut_off: set[tuple[str, str]] = set()

    def look_back(self, log: Path) -> None:
        """Take the first look at the development problems from the log of a run that goes on."""
        looks = (line["dev"] for line in (read_jsonl(log) if log.exists() else []) if line.get("dev") is not None)
        self._first_t1 = next((dev["acc_t1"] for dev in looks if dev["answer_change_rate"] is not None), None)

    def look(self, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that this step's metrics call for; they are logged too."""
        found = []
        where = f"{metrics['stage']} step {metrics['step']}"
        if metrics.get("max_logprob_diff", 0.0) > self.config.rollout.gap_warning:
            found.append(
                f"{where}: engine and policy differ by {metrics['max_logprob_diff']:.2g} nats on a token's log-probability"
            )
        for name, value in metrics.items():
            if name.startswith("kl_") and "_token_" not in name and value > self.config.kl.warn_above:
                found.append(f"{where}: {name} = {value:.1f} nats, above kl.warn_above = {self.config.kl.warn_above}")
            if (
                name.startswith("truncated_t")
                and value > TRUNCATION_LIMIT
                and (metrics["stage"], name) not in self._cut_off
            ):
                self._cut_off.add((metrics["stage"], name))
                found.append(
                    f"{where}: {value:.0%} of the answers of turn {name.removeprefix('truncated_t')} are cut off at "
                    f"rollout.max_tokens = {self.config.rollout.max_tokens}: raise it"
                )
        dev = metrics.get("dev")
        if dev is not None and dev["answer_change_rate"] is not None:
            if self._first_t1 is None:
                self._first_t1 = dev["acc_t1"]
            if dev["answer_change_rate"] < COPY_LIMIT:
                found.append(
                    f"{where}: only {dev['answer_change_rate']:.1%} of the answers change: the second attempt copies the first"
                )
            if dev["acc_t1"] < self._first_t1 - FALL_LIMIT:
                found.append(
                    f"{where}: greedy t1 fell from {self._first_t1:.1%} to {dev['acc_t1']:.1%} on the development problems"
                )
        for message in found:
            log.warning(message)
        return found
