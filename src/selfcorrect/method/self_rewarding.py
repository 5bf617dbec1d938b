"""The reinforcement stage of self-rewarding correction (Xiong et al., arXiv 2502.19613, section 3.2).

The script of a stage is `Script.with_verification`: an attempt y1, a verification v, and a second attempt y2 only if v says
that y1 is wrong. The trajectory earns whether its last answer is correct, and every turn earns what the trajectory does:

    u = r_2 if y2 was made, else r_1,    A_1 = A_v = A_2 = u - mean of the group's other trajectories

So a verification is paid for what becomes of it, not for being true. These are values of a stage: ``reward_weights = [0, 1]``
(a skipped attempt repeats the verdict of the one before) and ``verification.weight = 0``. With other weights or a bonus, u is
the sum of the turns' shaped rewards.

Every trajectory has an outcome, so no turn lacks a baseline, and the expected gradient is that of E[u - KL], with the KL of
the whole trajectory (docs/method.md, section 10).

Where this differs from the paper: leave-one-out takes the place of PPO's critic (the paper also tries DPO), and an episode
has at most one revision, whose own verification is left out, as in the paper's simplified setting (section 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.objective import leave_one_out, shaped_rewards
from selfcorrect.types import Role


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return one advantage per trajectory on all turns that the policy sampled in it [N, K], and 0 on the others."""
    earned_N1 = trajectory_rewards(outcome, stage)[:, None]
    shared_N1 = leave_one_out(earned_N1, outcome.group, torch.ones_like(earned_N1, dtype=torch.bool))
    return shared_N1 * outcome.online_NK


def trajectory_rewards(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return what every trajectory earns [N]: its turns' shaped rewards less their KL penalties; 0 for a skipped verification."""
    attempts_NK = outcome.rewards_NK[:, outcome.columns(Role.ATTEMPT)]
    said_NK = outcome.rewards_NK[:, outcome.columns(Role.VERIFICATION)]
    earned_N = shaped_rewards(attempts_NK, stage.reward_weights, stage.bonus).sum(1)
    return earned_N + stage.verified.weight * said_NK.sum(1) - outcome.penalty_NK.sum(1)
