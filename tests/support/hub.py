"""A stand-in for the hub's client, and rows as the client returns them."""

from __future__ import annotations

from typing import Any

import pytest

SHA = "0123456789abcdef" * 2 + "01234567"
"""A commit."""


class FakeHub:
    """What the hub's client is asked for."""

    def __init__(self, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
        self.configs = configs
        self.asked: list[tuple[str, str | None]] = []

    def get_dataset_config_names(self, name: str, revision: str | None) -> list[str]:
        self.asked.append((name, revision))
        return [*self.configs]

    def load_dataset(self, name: str, config: str | None, split: str | None, revision: str | None) -> Any:
        self.asked.append((name, revision))
        several = self.configs[config or "main"]
        return several if split is None else several[split]


def loaded(rows: list[dict[str, Any]], *files: str) -> Any:
    """Return rows as the hub's client does, which records the addresses of the files."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(rows)
    table.info.download_checksums = {file: {"num_bytes": 1, "checksum": None} for file in files}
    return table
