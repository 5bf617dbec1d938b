"""Extra evaluations for the report's figures: more than two attempts, and many samples, of a few rows' models.

DIR/further/ROW-attempts/seed-S/   10 greedy attempts at test problems, or as many as the model's context holds
DIR/further/ROW-samples/seed-S/    32 samples of two attempts at T = 0.7, for majority votes (docs/method.md, section 9)

They use the first seed only and run after all rows; the comparison of the rows does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfcorrect.distributed.world import joined
from selfcorrect.errors import ContextError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.paper.plan import RunSpec
from selfcorrect.storage.consent import names_of_config
from selfcorrect.storage.evaluation_dir import IDENTITY, read_identity
from selfcorrect.tasks.base import model_turns

BOTH = ("attempts", "samples")
ROWS = {"base": BOTH, "score": BOTH, "three-turns": BOTH, "single-turn": ("samples",)}
"""The rows, and what of each: votes among a single-turn model's samples are what its correction has to beat."""
ATTEMPTS, SAMPLES, TEMPERATURE = 10, 32, 0.7
FEWEST = 2
PROBLEMS = 1000, 200
"""Maximum number of test problems for more attempts, and for many samples."""


@dataclass(frozen=True, slots=True)
class ExtraEvaluation:
    """One extra evaluation of a finished run's model; a job like a `RunSpec`."""

    name: str
    run: Path
    path: Path
    task: str
    arguments: Mapping[str, Any]
    model_turns: int
    parent: Path | None = None
    steps: ClassVar[int] = 0
    done: ClassVar[int] = 0

    @property
    def completions(self) -> int:
        """Return the most completions that it samples, feedback and verifications included."""
        given = self.arguments
        return int(given["limit"] * self.model_turns * given.get("samples", 1))

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").is_file()

    def finish(self, callbacks: Callbacks) -> None:
        """Evaluate what is left, with fewer attempts if the context does not hold them all."""
        with joined() as world:
            turns = world.from_first(self._turns_begun)
            while True:
                try:
                    given = {**self.arguments, "turns": turns}
                    evaluate(str(self.run), self.task, out=self.path, callbacks=callbacks, world=world, **given)
                    return
                except ContextError:  # which every process finds by itself
                    turns -= 1
                    if turns < FEWEST:
                        raise

    def _turns_begun(self) -> int:
        """Return the number of attempts with which the evaluation began, or is to begin."""
        begun = (self.path / IDENTITY).is_file()
        return int(read_identity(self.path)["plan"]["turns"] if begun else self.arguments["turns"])


def extra_evaluations(specs: Sequence[RunSpec], out: Path, *, planned: bool = False) -> list[ExtraEvaluation]:
    """Return the extra evaluations of the finished runs of `ROWS`, with the first seed of the specs.

    ``planned`` includes runs that are not finished yet.
    """
    found = []
    seeds = [spec.config.seed for spec in specs]
    for row, kinds in ROWS.items():
        spec = next((c for c in specs if c.path == out / row / f"seed-{seeds[0]}"), None)
        if spec is None or not (planned or spec.finished):
            continue
        limits = [min(limit, spec.config.eval.problems) for limit in PROBLEMS]
        of_row: dict[str, dict[str, Any]] = {
            "attempts": {"turns": ATTEMPTS, "limit": limits[0]},
            "samples": {"turns": 2, "limit": limits[1], "samples": SAMPLES, "temperature": TEMPERATURE},
        }
        for kind in kinds:
            arguments = of_row[kind]
            path = out / "further" / f"{row}-{kind}" / f"seed-{seeds[0]}"
            model = spec.config.model
            how = {"dtype": model.dtype, "device": model.device, "trust_remote_code": model.trust_remote_code,
                   "allow_code": names_of_config(spec.config)}  # fmt: skip
            given = {**arguments, **how, "seed": seeds[0]}
            turns = model_turns(spec.config, arguments["turns"])
            found.append(
                ExtraEvaluation(f"{kind} of {spec.name}", spec.path, path, spec.config.task.name, given, turns)
            )
    return found
