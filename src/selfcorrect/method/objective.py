"""The paper in one file: shaped rewards, returns, leave-one-out, KL, policy loss. Pure functions of tensors.

The objective (docs/method.md, section 2), c_k the context of turn k with no gradient through its sampling:

    J = sum_k E_{c_k} E_{y_k ~ pi(.|c_k)} [ R_k - lambda_k * sum_t log( pi(y_kt|.) / pi_ref(y_kt|.) ) ]

How we differ from the paper, or fill what it leaves open:
1. The KL of a turn is, by default, subtracted from that turn's reward before leave-one-out (the only common
   estimator whose gradient is unbiased for the sequence KL). The others are settings; see `kl_loss`.
2. Leave-one-out is taken per turn. Turns that the policy did not sample itself take no part in it.
3. The loss is divided by the number of episodes; there is no length normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class KLEstimator(StrEnum):
    """How the per-token KL between policy and reference is estimated; ``FULL`` sums over the vocabulary."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    FULL = "full"


def shaped_rewards(rewards_NK: Tensor, weights: Sequence[float], bonus: float) -> Tensor:
    """R_k = w_k r_k + alpha (r_k - r_{k-1}), the bonus from the second turn on (paper, section 5.2).

    >>> r = torch.tensor([[0., 0.], [0., 1.], [1., 0.], [1., 1.]])
    >>> shaped_rewards(r, (1.0, 1.0), bonus=10.0)[:, 1].tolist()
    [0.0, 11.0, -10.0, 1.0]
    """
    shaped_NK = rewards_NK * rewards_NK.new_tensor(list(weights))
    shaped_NK[:, 1:] += bonus * (rewards_NK[:, 1:] - rewards_NK[:, :-1])
    return shaped_NK


def returns(credit_NK: Tensor, discount: float) -> Tensor:
    """ret_k = sum over j >= k of discount^(j - k) credit_j. Discount 0, the default, leaves each turn its own.

    >>> returns(torch.tensor([[1., 2.]]), discount=0.5).tolist()
    [[2.0, 2.0]]
    """
    result_NK = credit_NK.clone()
    for k in range(credit_NK.shape[1] - 2, -1, -1):
        result_NK[:, k] += discount * result_NK[:, k + 1]
    return result_NK


def leave_one_out(returns_NK: Tensor, group: int, online_NK: Tensor) -> Tensor:
    """RLOO advantages (Ahmadian et al., arXiv 2402.14740): the return less the mean of the *other* episodes.

    Episodes of a problem stand side by side, ``group`` of them. ``online_NK`` is False where the turn was
    not sampled by the policy: such a turn gets advantage 0 and is in nobody's baseline. A turn that is alone
    in its group has no baseline and gets 0.
    """
    shape = (-1, group, returns_NK.shape[1])
    returns_PGK, online_PGK = returns_NK.view(shape), online_NK.view(shape).to(returns_NK)
    count_P1K = online_PGK.sum(1, keepdim=True)
    mean_P1K = (returns_PGK * online_PGK).sum(1, keepdim=True) / count_P1K.clamp(min=1)
    scale_P1K = torch.where(count_P1K > 1, count_P1K / (count_P1K - 1).clamp(min=1), 0.0)
    return ((returns_PGK - mean_P1K) * scale_P1K * online_PGK).reshape(returns_NK.shape)


def kl_loss(estimator: KLEstimator, logprobs_S: Tensor, reference_S: Tensor, full_S: Tensor | None = None) -> Tensor:
    """Per-token KL terms to be minimised as a *loss*, all with the context of the token held fixed.

    With d = log pi - log pi_ref on the sampled token:

    - ``k1`` d: zero expected gradient (the score's mean). Refused by the configuration.
    - ``k2`` d^2 / 2: the gradient of KL(pi || ref) of this token's distribution, in expectation.
    - ``k3`` exp(-d) - 1 + d: the gradient of KL(ref || pi), the other direction, in expectation.
    - ``full`` KL(pi || ref) of this token's distribution, summed over the vocabulary: as k2, without its noise.

    k2, k3 and full leave out how this token changes the contexts of later ones: low variance, a small bias.
    """
    difference_S = logprobs_S - reference_S
    if estimator is KLEstimator.K1:
        return difference_S
    if estimator is KLEstimator.K2:
        return difference_S.square() / 2
    if estimator is KLEstimator.K3:
        return torch.exp(-difference_S) - 1 + difference_S
    assert full_S is not None, "the full estimator needs the KL summed over the vocabulary"
    return full_S


def policy_terms(
    logprobs_S: Tensor, sampled_S: Tensor, advantages_S: Tensor, clip: float | None = None
) -> tuple[Tensor, Tensor]:
    """The policy-gradient loss of every token, and whether its importance ratio was clipped.

    Without ``clip``: -A * log pi, whose gradient is REINFORCE's. With it, for more than one update per rollout:
    -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = pi / pi_sampled (PPO), which has the same
    gradient as long as the policy has not moved.
    """
    if clip is None:
        return -advantages_S * logprobs_S, torch.zeros_like(logprobs_S, dtype=torch.bool)
    ratio_S = torch.exp(logprobs_S - sampled_S)
    limited_S = ratio_S.clamp(1 - clip, 1 + clip)
    clipped_S = limited_S * advantages_S < ratio_S * advantages_S
    return -torch.minimum(ratio_S * advantages_S, limited_S * advantages_S), clipped_S


def truncated_weights(policy_S: Tensor, engine_S: Tensor, cap: float) -> Tensor:
    """min(pi / pi_engine, cap) for every sampled token: truncated importance weights, from log-probabilities in nats.

    The tokens are drawn by an engine whose arithmetic may differ from the policy's, while the gradient is the policy's.
    The weights correct for that token by token (what a token does to the contexts of later ones is left out); the cap
    bounds the variance. No gradient flows through them.

    >>> truncated_weights(torch.tensor([0.5, 0.2]).log(), torch.tensor([0.4, 0.05]).log(), cap=2.0).tolist()
    [1.25, 2.0]
    """
    return torch.exp(policy_S.detach() - engine_S).clamp(max=cap)
