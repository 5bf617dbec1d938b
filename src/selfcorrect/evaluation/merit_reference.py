"""What H and M1 of a comparison mean: they need a single-turn reference, so it matters what A was trained on.

``H = b1 - Acc@t1`` and ``M1 = Acc@t2 - b1`` of B, with b1 the first attempts of single-turn training (docs/measuring.md). If A
is the base, its first attempts stand in for b1. Training them does not make them worse, so H is then a lower bound and M1 an
upper one. Against any other trained model the two have no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import load_config
from selfcorrect.errors import SelfCorrectError
from selfcorrect.evaluation.compared import Side
from selfcorrect.storage.seal import read_summary
from selfcorrect.zoo.resolve import named_run

BASE = "base"


class Reference(StrEnum):
    """What A is as a reference for H and M1."""

    SINGLE_TURN = "single-turn training"
    BASE = "the base"
    OTHER = "other training"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Merit:
    """Whether H and M1 are computed, and in words what they mean, or why they are not."""

    reference: Reference
    computed: bool
    text: str


MEANING = "H is A's first attempt less B's (held back), M1 is B's second less A's first, and B's delta = H + M1."
"""The definition of both for the reader of a comparison."""


def merit_of(a: Side, b: Side, *, second_attempts: bool) -> Merit:
    """Return what H and M1 of B against A mean; ``second_attempts``: B has some."""
    reference = _reference(a, b)
    if not second_attempts:
        return Merit(reference, False, "No H and M1: B has no second attempts.")
    if b.settings.get("plan.drafts") is not None:
        return Merit(
            reference, False, "No H and M1: the first attempts are drafts of a shared pool, not the models' own."
        )
    if reference is Reference.OTHER:
        swap = " Swap A and B for the base as a reference." if _reference(b, a) is Reference.BASE else ""
        return Merit(
            reference,
            False,
            f"No H and M1: A was trained on more than its first attempts. They need single-turn training as A.{swap}",
        )
    if reference is Reference.BASE:
        why = "A is the base. Single-turn training, the reference of both, answers no worse at first"
        return Merit(reference, True, f"{MEANING} {why}, so H is at least, and M1 at most, what stands here.")
    if reference is Reference.SINGLE_TURN:
        return Merit(reference, True, f"A is single-turn training: {MEANING}")
    return Merit(reference, True, f"If A is single-turn training: {MEANING}")


def _reference(a: Side, b: Side) -> Reference:
    found = _trained_as(a)
    if found is not None:
        run, stage = found
        return _kind(load_config(run / "config.toml"), stage)
    other = _trained_as(b)
    digest = a.settings.get("model.digest")
    if other is not None and digest is not None and digest == _digests(other[0]).get(BASE):
        return Reference.BASE
    return Reference.UNKNOWN


def _trained_as(side: Side) -> tuple[Path, str] | None:
    """Return the run and the stage whose model was evaluated; None where it is no model of a run that is there."""
    if side.stage is not None:
        return side.path, side.stage
    try:
        run, stage = named_run(str(side.settings.get("model.source", "")))
        if run is None:
            return None
        stage = stage or [BASE, *load_config(run / "config.toml").stages][-1]
        same = _digests(run).get(stage) == side.settings.get("model.digest")
    except SelfCorrectError:
        return None
    return (run, stage) if same else None


def _digests(run: Path) -> Mapping[str, Any]:
    digests: Mapping[str, Any] = read_summary(run).get("provenance", {}).get("model_digests", {})
    return digests


def _kind(config: Config, stage: str) -> Reference:
    """Return what the model after a stage was trained on, in that stage and all before it."""
    if stage == BASE:
        return Reference.BASE
    names = [*config.stages]
    taken = [config.stages[name] for name in names[: names.index(stage) + 1]]
    single = all(
        isinstance(each, ReinforcementStage)
        and not (any(each.reward_weights[1:]) or each.bonus or each.verifies_drafts)
        for each in taken
    )
    return Reference.SINGLE_TURN if single else Reference.OTHER
