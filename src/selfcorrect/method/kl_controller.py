"""The adaptive KL coefficient of the first turn. The paper names it without a formula; this formula is ours."""

from __future__ import annotations

import math

from selfcorrect.config.stage_parts import AdaptiveConfig
from selfcorrect.config.stages import ReinforcementStage


def adapted(coefficient: float, kl_term: float, policy_term: float, settings: AdaptiveConfig) -> float:
    """Return the next value of an adaptive KL coefficient b (docs/method.md, section 6).

    With K = b * (mean log-ratio of the turn, nats) and P = mean over episodes of |A log pi| of the last turn:

        b <- clip( b * exp(rate * clip(log(target * P / K), -1, 1)), minimum, maximum )

    so b rises while the KL term is smaller than ``target`` times the policy term. A step without a measurable ratio
    (P = 0 or K <= 0) leaves b unchanged.
    """
    if policy_term <= 0 or kl_term <= 0:
        return coefficient
    push = max(-1.0, min(1.0, math.log(settings.target * policy_term / kl_term)))
    return max(settings.minimum, min(settings.maximum, coefficient * math.exp(settings.rate * push)))


def initial_coefficient(stage: ReinforcementStage) -> float | None:
    """Return the controller's first coefficient, or None if the stage has no controller."""
    if stage.adaptive is None:
        return None
    return stage.kl_coefs[stage.adaptive.turn - 1][stage.adaptive.reference]
