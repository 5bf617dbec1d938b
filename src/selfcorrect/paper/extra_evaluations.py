"""What the report's figures need beyond two attempts: more attempts, and many samples, of a few rows' models.

DIR/further/ROW-attempts/seed-S/   10 greedy attempts at test problems, or as many as the model's context holds
DIR/further/ROW-samples/seed-S/    32 samples of two attempts at T = 0.7, for majority votes (docs/method.md, section 9)

Of the first seed alone, and after all rows: nothing that a row is judged by is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfcorrect.errors import ContextError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.paper.plan import RunSpec
from selfcorrect.storage.evaluation_dir import IDENTITY

ROWS = ("base", "score", "three-turns")
ATTEMPTS, SAMPLES, TEMPERATURE = 10, 32, 0.7
FEWEST = 2
PROBLEMS = 1000, 200
"""At most so many test problems for more attempts, and for many samples."""


@dataclass(frozen=True, slots=True)
class ExtraEvaluation:
    """One further evaluation of a finished cell's model; it is worked through as a cell is."""

    name: str
    run: Path
    path: Path
    task: str
    arguments: Mapping[str, Any]
    parent: Path | None = None
    steps: ClassVar[int] = 0
    done: ClassVar[int] = 0

    @property
    def texts(self) -> int:
        """How many it samples."""
        given = self.arguments
        return int(given["limit"] * given["turns"] * given.get("samples", 1))

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    def finish(self, callbacks: Callbacks) -> None:
        """Evaluate what is left of it, with fewer attempts if the context does not hold so many."""
        begun = self.path / IDENTITY
        turns = json.loads(begun.read_text("utf-8"))["plan"]["turns"] if begun.is_file() else self.arguments["turns"]
        while True:
            try:
                given = {**self.arguments, "turns": turns}
                evaluate(str(self.run), self.task, out=self.path, callbacks=callbacks, **given)
                return
            except ContextError:
                turns -= 1
                if turns < FEWEST:
                    raise


def further(cells: Sequence[RunSpec], out: Path, *, planned: bool = False) -> list[ExtraEvaluation]:
    """The further evaluations of those rows' cells that are finished, of the first seed among the cells.

    ``planned``: those of cells that are still to be finished, too.
    """
    found = []
    seeds = [cell.config.seed for cell in cells]
    for row in ROWS:
        cell = next((c for c in cells if c.path == out / row / f"seed-{seeds[0]}"), None)
        if cell is None or not (planned or cell.finished):
            continue
        limits = [min(limit, cell.config.eval.problems) for limit in PROBLEMS]
        of_row: dict[str, dict[str, Any]] = {
            "attempts": {"turns": ATTEMPTS, "limit": limits[0]},
            "samples": {"turns": 2, "limit": limits[1], "samples": SAMPLES, "temperature": TEMPERATURE},
        }
        for kind, arguments in of_row.items():
            path = out / "further" / f"{row}-{kind}" / f"seed-{seeds[0]}"
            model = cell.config.model
            how = {"dtype": model.dtype, "device": model.device, "trust_remote_code": model.trust_remote_code}
            given = {**arguments, **how, "seed": seeds[0]}
            found.append(ExtraEvaluation(f"{kind} of {cell.name}", cell.path, path, cell.config.task.name, given))
    return found
