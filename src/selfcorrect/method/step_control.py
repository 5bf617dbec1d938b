"""How far updates lead from the policy that they began with. Pure functions, docs/method.md, "Control of the step"."""

from __future__ import annotations

from torch import Tensor

from selfcorrect.config.optimizer import KLControlConfig
from selfcorrect.method.objective import KLEstimator, kl_loss

CHANGE = 1.5
"""A step changes the factor of the learning rate by at most this ratio."""
RANGE = 2.0
"""A KL between the target divided and multiplied by this is as wanted."""


def divergence(old_S: Tensor, new_S: Tensor) -> Tensor:
    """Return estimates [S] of the KL(old || new) of every token's distribution, in nats, from tokens that ``old`` sampled.

    With r = new / old, a token's estimate is r - 1 - log r ("k3", Schulman 2020): never negative, and unbiased.

    >>> import torch
    >>> divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log()).round(decimals=4).tolist()
    [0.0, 0.1931]
    """
    return kl_loss(KLEstimator.K3, old_S.double(), new_S.double())


def next_factor(factor: float, kl: float, settings: KLControlConfig) -> float:
    """Return the factor of the learning rate after a step that led ``kl`` nats per token away from the policy before it.

    PPO's adaptive rule for the KL's coefficient, with the constants of Heess et al. (arXiv 1707.02286), for the rate instead.
    A KL that is not a number is too large.

    >>> [next_factor(0.9, kl, KLControlConfig(target=0.1, maximum=1.2)) for kl in (0.3, 0.2, 0.05, 0.01, float("nan"))]
    [0.6, 0.9, 0.9, 1.2, 0.6]
    """
    if not kl <= RANGE * settings.target:
        factor /= CHANGE
    elif kl < settings.target / RANGE:
        factor *= CHANGE
    return max(settings.minimum, min(settings.maximum, factor))


def goes_too_far(kl: float, settings: KLControlConfig) -> bool:
    """Return whether a step that led ``kl`` nats per token away is to be undone."""
    return settings.limit is not None and not kl <= settings.limit
