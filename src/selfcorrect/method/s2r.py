"""S2R's process-level credit (Ma et al., arXiv 2502.12853, section 2.3.2), for the script of PAG.

The script of a stage is `Script.with_verification`: an attempt y1, a verification v, and a second attempt y2 only if v says
that y1 is wrong. Every turn is paid for itself alone (discount 0, no bonus):

    R_1 = r_1,    R_v = [v says what the verifier says of y1],    R_2 = r_2

Turns with the same *reward context*, the rewards of all turns before them, knew about as much when they began: that a first
attempt failed, say, and that the model saw it. A turn's baseline is the mean of what the step's other turns with its reward
context earn, whatever their problem. The context is known before the turn begins and the turn itself is left out, so the
expected gradient is that of the objective without a baseline (docs/method.md, section 10).

Where this differs from the paper:
1. The paper's mean (equation 4) holds the turn itself. Here it is left out, or the gradient would shrink for small groups. A
   turn without another of its context has the baseline 0, as the released code has it for fewer than ten.
2. The paper pays 1 and -1, this package 1 and 0. The baseline removes the difference up to a factor of 2.
3. A KL that is part of the reward (`kl.placement`) is part of what others earn too, so that the baseline holds their mean KL.
4. The paper divides an episode's terms by its number of turns, and starts from a model that was fine-tuned on trajectories
   with verifications, which is also the reference of its KL.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method import score
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.objective import returns

STATES = 3
"""What a reward context holds of a turn: it was skipped, it earned nothing, it earned its reward."""


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return S2R's advantages [N, K]: each turn's return less the mean of the step's other turns of its reward context."""
    returns_NK = returns(score.credit(outcome, stage), stage.discount)
    contexts_NK = reward_contexts(outcome.rewards_NK, outcome.present_NK)
    return less_mean_of_others(returns_NK, contexts_NK, outcome.online_NK)


def reward_contexts(rewards_NK: Tensor, present_NK: Tensor | None = None) -> Tensor:
    """Return a number [N, K] for the rewards before each turn: equal where all earlier turns were made and rewarded alike.

    >>> reward_contexts(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])).tolist()
    [[0, 2, 8], [0, 1, 5], [0, 1, 5]]
    """
    states_NK = 1 + (rewards_NK > 0).long()
    if present_NK is not None:
        states_NK = states_NK * present_NK
    contexts_NK = torch.zeros_like(states_NK)
    for k in range(1, states_NK.shape[1]):
        contexts_NK[:, k] = STATES * contexts_NK[:, k - 1] + states_NK[:, k - 1]
    return contexts_NK


def less_mean_of_others(returns_NK: Tensor, contexts_NK: Tensor, online_NK: Tensor) -> Tensor:
    """Return the returns [N, K], less the mean of the *other* episodes' turns in the same column and context.

    ``online_NK`` is False where the policy did not sample the turn: such a turn gets advantage 0 and enters no baseline. The
    baseline of a turn without others is 0.

    >>> returns_NK = torch.tensor([[4.0], [1.0], [3.0], [7.0]])
    >>> less_mean_of_others(returns_NK, torch.tensor([[0], [0], [0], [5]]), torch.ones(4, 1, dtype=torch.bool)).flatten().tolist()
    [2.0, -2.5, 0.5, 7.0]
    """
    taken_NK = online_NK.to(returns_NK)
    advantages_NK = torch.zeros_like(returns_NK)
    for k in range(returns_NK.shape[1]):
        kinds, kind_N = contexts_NK[:, k].unique(return_inverse=True)
        own_N, taken_N = (returns_NK * taken_NK)[:, k], taken_NK[:, k]
        sums_N = own_N.new_zeros(len(kinds)).index_add(0, kind_N, own_N)[kind_N]
        counts_N = own_N.new_zeros(len(kinds)).index_add(0, kind_N, taken_N)[kind_N]
        others_N = torch.where(counts_N > 1, (sums_N - own_N) / (counts_N - 1).clamp(min=1), 0.0)
        advantages_NK[:, k] = (returns_NK[:, k] - others_N) * taken_N
    return advantages_NK
