"""Warnings when a run goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.storage.run_dir import read_metrics

log = logging.getLogger("selfcorrect")

COPY_LIMIT = 0.02
"""Below this fraction of changed answers, the second attempt copies the first."""

TRUNCATION_LIMIT = 0.5
"""Above this fraction of truncated answers, the token limit decides what is correct."""

FALL_LIMIT = 0.05
"""Warn when greedy Acc@t1 on the development problems falls by more than this since its first measurement."""


class HealthMonitor:
    """A monitor that reads a run's metrics and warns when the run goes wrong."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._first_t1: float | None = None
        self._cut_off: set[tuple[str, str]] = set()

    def look_back(self, log: Path) -> None:
        """Take the first measurement on the development problems from the log of a resumed run."""
        looks = (line["dev"] for line in read_metrics(log) if isinstance(line.get("dev"), Mapping))
        self._first_t1 = next((dev["acc_t1"] for dev in looks if dev.get("answer_change_rate") is not None), None)

    def look(self, metrics: Mapping[str, Any]) -> list[str]:
        """Log and return the warnings about this step's metrics."""
        found = []
        where = f"{metrics['stage']} step {metrics['step']}"
        if metrics.get("max_logprob_diff", 0.0) > self.config.rollout.gap_warning:
            found.append(
                f"{where}: engine and policy differ by up to {metrics['max_logprob_diff']:.2g} nats in a token's "
                f"log-probability, above rollout.gap_warning = {self.config.rollout.gap_warning}"
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
                    f"{where}: {value:.0%} of the answers of turn {name.removeprefix('truncated_t')} are truncated at "
                    f"rollout.max_tokens = {self.config.rollout.max_tokens}: raise it"
                )
        dev = metrics.get("dev")
        if dev is not None and dev["answer_change_rate"] is not None:
            if self._first_t1 is None:
                self._first_t1 = dev["acc_t1"]
            if dev["answer_change_rate"] < COPY_LIMIT:
                found.append(
                    f"{where}: only {dev['answer_change_rate']:.1%} of the answers change; the second attempt copies the first"
                )
            if dev["acc_t1"] < self._first_t1 - FALL_LIMIT:
                found.append(
                    f"{where}: greedy Acc@t1 on the development problems fell from {self._first_t1:.1%} to {dev['acc_t1']:.1%}"
                )
        for message in found:
            log.warning(message)
        return found
