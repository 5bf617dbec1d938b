"""A small data set of sums, and how tests write one to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUMS: list[dict[str, Any]] = [{"prompt": f"What is {n} + 1?", "answer": n + 1} for n in range(60)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
