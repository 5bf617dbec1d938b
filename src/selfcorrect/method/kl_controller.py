"""The adaptive KL coefficient of the first turn (the paper names it and gives no formula; this one is ours)."""

from __future__ import annotations

import math

from selfcorrect.config.schema import AdaptiveConfig, ReinforcementStage


def adapted(coefficient: float, kl_term: float, policy_term: float, settings: AdaptiveConfig) -> float:
    """Return the next value of an adaptive KL coefficient b (docs/method.md, section 6).

    With K = b * (mean log-ratio of the turn, nats) and P = mean over episodes of |A log pi| of the last turn:

        b <- clip( b * exp(rate * clip(log(target * P / K), -1, 1)), minimum, maximum )

    so b rises while the KL term is smaller than ``target`` times the policy term. A step without a measurable
    ratio (P = 0 or K <= 0) leaves b alone.
    """
    if policy_term <= 0 or kl_term <= 0:
        return coefficient
    push = max(-1.0, min(1.0, math.log(settings.target * policy_term / kl_term)))
    return max(settings.minimum, min(settings.maximum, coefficient * math.exp(settings.rate * push)))


def initial_coefficient(stage: ReinforcementStage) -> float | None:
    """Return the coefficient with which the controller starts; None without one."""
    if stage.adaptive is None:
        return None
    return stage.kl_coefs[stage.adaptive.turn - 1][stage.adaptive.reference]
