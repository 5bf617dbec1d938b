"""Settings that a stage may have as a group of their own: adaptive beta2, replay, and how verifications are rewarded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selfcorrect.config.settings import LARGE, MAX_BATCH, Coefficient, Settings, Weight
from selfcorrect.script import MAX_TURNS


class AdaptiveConfig(Settings):
    """Bounded control of turn 1's additional coefficient (beta2); see `selfcorrect.method.kl_controller.adapted`."""

    reference: str = "base"
    """The reference whose coefficient is controlled."""
    turn: int = Field(1, ge=1, le=MAX_TURNS)
    """The turn whose coefficient is controlled (1 = first)."""
    target: float = Field(1.0, gt=0, le=LARGE)
    """Target ratio of the KL term to the last turn's policy term."""
    rate: float = Field(0.1, gt=0, le=1)
    """Speed at which the coefficient adapts."""
    minimum: float = Field(0.01, gt=0, le=LARGE)
    """Lower bound of the coefficient."""
    maximum: float = Field(10.0, gt=0, le=LARGE)
    """Upper bound of the coefficient."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveConfig:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} is above maximum = {self.maximum}: set minimum <= maximum")
        return self


class ReplayConfig(Settings):
    """Stored first attempts that second attempts revise (docs/method.md, "Replay"): as many incorrect as correct ones."""

    share: float = Field(0.25, gt=0, lt=1)
    """Fraction of a step's groups in which all episodes revise a stored first attempt, as context only."""
    pool: Literal["base", "policy"] = "policy"
    """Who made them: `policy`, the trained model in earlier steps of the stage; `base`, the base model, before the first step."""
    size: int = Field(256, ge=1, le=MAX_BATCH)
    """The most that are stored of each kind, incorrect and correct, the newest ones. With `base`, twice as many are sampled,
    one a problem as long as there are enough problems."""


class VerificationConfig(Settings):
    """What the model earns where it says whether an attempt is correct: in verification turns (`task.revise`), of its last
    attempt; with `self_verification`, of the step's drafts."""

    weight: Weight = 1.0
    """Weight of its reward: 1 if it says what the verifier says, else 0."""
    kl_coefs: dict[str, Coefficient] = {}
    """The KL coefficient of each reference on these turns: `base` or an earlier stage."""
