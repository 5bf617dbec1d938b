"""The paper in one file: shaped rewards, returns, leave-one-out, KL, policy loss. Pure functions of tensors.

The objective (docs/method.md, section 2), where c_k is the context of turn k, with no gradient through its sampling:

    J = sum_k E_{c_k} E_{y_k ~ pi(.|c_k)} [ R_k - lambda_k * sum_t log( pi(y_kt|.) / pi_ref(y_kt|.) ) ]

Where this differs from the paper, or fills what the paper leaves open:
1. By default, a turn's KL is subtracted from its reward before leave-one-out, because no other common estimator has an
   unbiased gradient for the sequence KL. The others are settings; see `kl_loss`.
2. Leave-one-out is taken per turn, over the turns that the policy sampled.
3. The loss is divided by the number of episodes, without length normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class KLEstimator(StrEnum):
    """An estimator of the per-token KL between policy and reference; ``FULL`` sums over the vocabulary."""

    K1 = "k1"
    K2 = "k2"
    K3 = "k3"
    FULL = "full"


def shaped_rewards(rewards_NK: Tensor, weights: Sequence[float], bonus: float) -> Tensor:
    """Return R_k = w_k r_k + alpha (r_k - r_{k-1}), [N, K]; the bonus starts at the second turn (paper, section 5.2).

    >>> r = torch.tensor([[0., 0.], [0., 1.], [1., 0.], [1., 1.]])
    >>> shaped_rewards(r, (1.0, 1.0), bonus=10.0)[:, 1].tolist()
    [0.0, 11.0, -10.0, 1.0]
    """
    shaped_NK = rewards_NK * rewards_NK.new_tensor(list(weights))
    shaped_NK[:, 1:] += bonus * (rewards_NK[:, 1:] - rewards_NK[:, :-1])
    return shaped_NK


def returns(credit_NK: Tensor, discount: float) -> Tensor:
    """Return ret_k = sum over j >= k of discount^(j - k) credit_j, [N, K]. With discount 0, the default, ret_k = credit_k.

    >>> returns(torch.tensor([[1., 2.]]), discount=0.5).tolist()
    [[2.0, 2.0]]
    """
    result_NK = credit_NK.clone()
    for k in range(credit_NK.shape[1] - 2, -1, -1):
        result_NK[:, k] += discount * result_NK[:, k + 1]
    return result_NK


def leave_one_out(returns_NK: Tensor, group: int, online_NK: Tensor) -> Tensor:
    """Return RLOO advantages [N, K] (Ahmadian et al., arXiv 2402.14740): the return less the mean of the *other* episodes.

    The ``group`` episodes of a problem are adjacent. ``online_NK`` is False where the policy did not sample the turn: such a
    turn gets advantage 0 and enters no baseline. A turn that is alone in its group has no baseline and gets 0.

    With n online episodes, r - mean of the others = (r - mean of all) * n / (n - 1), so no pairwise sums are needed.
    """
    shape = (-1, group, returns_NK.shape[1])
    returns_PGK, online_PGK = returns_NK.view(shape), online_NK.view(shape).to(returns_NK)
    count_P1K = online_PGK.sum(1, keepdim=True)
    mean_P1K = (returns_PGK * online_PGK).sum(1, keepdim=True) / count_P1K.clamp(min=1)
    scale_P1K = torch.where(count_P1K > 1, count_P1K / (count_P1K - 1).clamp(min=1), 0.0)
    return ((returns_PGK - mean_P1K) * scale_P1K * online_PGK).reshape(returns_NK.shape)


def lone_advantages(returns_NK: Tensor, group: int, online_NK: Tensor) -> Tensor:
    """Return the advantages [N, K] of turns that are alone in their group, 0 elsewhere (docs/method.md, section 10).

    Conditional turns may leave a group with one. `leave_one_out` would drop it, and so weight a problem by the chance that
    another of its episodes has the turn. The baseline here is the mean over the step's other problems, or 0 if they have no
    such turn: neither depends on the turn itself.
    """
    shape = (-1, group, returns_NK.shape[1])
    returns_PGK, online_PGK = returns_NK.view(shape), online_NK.view(shape).to(returns_NK)
    sums_PK, counts_PK = (returns_PGK * online_PGK).sum(1), online_PGK.sum(1)
    others_PK = (sums_PK.sum(0) - sums_PK) / (counts_PK.sum(0) - counts_PK).clamp(min=1)
    lone_PGK = online_PGK * (counts_PK == 1)[:, None]
    return ((returns_PGK - others_PK[:, None]) * lone_PGK).reshape(returns_NK.shape)


def less_fitted_verdict(returns_NK: Tensor, rewards_NK: Tensor, group: int, online_NK: Tensor) -> Tensor:
    """Return the returns [N, K], less what the previous attempt's verdict r_{k-1} predicts of them (docs/method.md, section 5).

    The verdict of turn k - 1 is known before turn k begins, so any multiple of it is a baseline of turn k. This one subtracts
    s r_{k-1}, with s the slope of turn k's returns on r_{k-1} within problems, pooled over the *other* problems of the step.
    A slope that knew the own problem's returns would bias the gradient. Without another problem whose verdicts differ, s is 0.
    """
    shape = (-1, group, returns_NK.shape[1])
    returns_PGK, online_PGK = returns_NK.view(shape)[..., 1:], online_NK.view(shape)[..., 1:].to(returns_NK)
    before_PGK = rewards_NK.view(shape)[..., :-1].to(returns_NK)
    count_P1K = online_PGK.sum(1, keepdim=True).clamp(min=1)

    def centred(values_PGK: Tensor) -> Tensor:
        return (values_PGK - (values_PGK * online_PGK).sum(1, keepdim=True) / count_P1K) * online_PGK

    verdicts_PGK = centred(before_PGK)
    products_PK, squares_PK = (verdicts_PGK * centred(returns_PGK)).sum(1), verdicts_PGK.square().sum(1)
    others_PK, of_PK = products_PK.sum(0) - products_PK, squares_PK.sum(0) - squares_PK
    some_PK = of_PK > 1e-9  # sums of squares of binary verdicts: far from 0, or 0 but for rounding
    slope_PK = torch.where(some_PK, others_PK / torch.where(some_PK, of_PK, 1.0), 0.0)
    result_NK = returns_NK.clone()
    result_NK[:, 1:] -= (slope_PK[:, None] * before_PGK).reshape(len(returns_NK), -1)
    return result_NK


def kl_loss(estimator: KLEstimator, logprobs_S: Tensor, reference_S: Tensor, full_S: Tensor | None = None) -> Tensor:
    """Return per-token KL terms [S] to minimise as a *loss*, with the token's context held fixed.

    With d = log pi - log pi_ref on the sampled token, the terms and their expected gradients are:

    - ``k1``, d: zero, the mean of the score. The configuration rejects it.
    - ``k2``, d^2 / 2: the gradient of KL(pi || ref) of this token's distribution.
    - ``k3``, exp(-d) - 1 + d: the gradient of KL(ref || pi), the other direction.
    - ``full``, KL(pi || ref) of this token's distribution, summed over the vocabulary: as k2, without its noise.

    k2, k3 and full ignore how this token changes the contexts of later ones: low variance, a small bias.
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
    """Return the policy-gradient loss [S] of every token, and whether its importance ratio was clipped [S].

    Without ``clip``, the loss is -A * log pi, whose gradient is REINFORCE's. With it, for several updates per rollout, the
    loss is PPO's -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) with ratio = pi / pi_sampled. Both have the same gradient
    until the policy moves.
    """
    if clip is None:
        return -advantages_S * logprobs_S, torch.zeros_like(logprobs_S, dtype=torch.bool)
    ratio_S = torch.exp(logprobs_S - sampled_S)
    limited_S = ratio_S.clamp(1 - clip, 1 + clip)
    clipped_S = limited_S * advantages_S < ratio_S * advantages_S
    return -torch.minimum(ratio_S * advantages_S, limited_S * advantages_S), clipped_S


def truncated_weights(policy_S: Tensor, engine_S: Tensor, cap: float) -> Tensor:
    """Return truncated importance weights [S], min(pi / pi_engine, cap) per token, from log-probabilities in nats.

    The engine that draws the tokens may compute differently from the policy, whose gradient is taken. The weights correct
    for this per token, and ignore how a token changes the contexts of later ones. The cap bounds the variance. No gradient
    flows through the weights.

    >>> truncated_weights(torch.tensor([0.5, 0.2]).log(), torch.tensor([0.4, 0.05]).log(), cap=2.0).tolist()
    [1.25, 2.0]
    """
    return torch.exp(policy_S.detach() - engine_S).clamp(max=cap)
