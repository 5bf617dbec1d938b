"""The data files of the documentation's examples, which come with the package."""

from __future__ import annotations

from importlib import resources

NAMES = ("competition.jsonl", "science.csv")
"""Competition problems whose answers are integers; multiple-choice questions. Ten lines each."""


def example_files() -> dict[str, bytes]:
    """Return the content of every example file by its name."""
    folder = resources.files("selfcorrect.tasks.dataset") / "example_data"
    return {name: (folder / name).read_bytes() for name in NAMES}
