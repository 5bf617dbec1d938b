"""How far updates lead from the policy that they began with. Pure functions, docs/method.md, "Control of the step"."""

from __future__ import annotations

from torch import Tensor

from selfcorrect.method.objective import KLEstimator, kl_loss


def divergence(old_S: Tensor, new_S: Tensor) -> Tensor:
    """Return estimates [S] of the KL(old || new) of every token's distribution, in nats, from tokens that ``old`` sampled.

    With r = new / old, a token's estimate is r - 1 - log r ("k3", Schulman 2020): never negative, and unbiased.

    >>> import torch
    >>> divergence(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.5, 0.25]).log()).round(decimals=4).tolist()
    [0.0, 0.1931]
    """
    return kl_loss(KLEstimator.K3, old_S.double(), new_S.double())
