"""SCoRe (arXiv 2409.12917). Both stages, every ablation and any number of turns are values of a stage's settings.

| stage | reward_weights | bonus | kl_coefs |
|---|---|---|---|
| Stage I | (0, 1) | 0 | base: (beta1 + beta2, beta1) |
| Stage II | (1, 1) | alpha | base: (beta1, beta1) |
| Stage I(b) of three turns | (0, 0, 1) | 0 | base and Stage I(a)'s model on turns 1 and 2 |

Verification turns (docs/method.md, section 10) earn ``verification.weight``; a skipped turn earns nothing.

``config/builtin/score.toml`` and ``three_turns.toml`` are these stages with the paper's coefficients.
"""

from __future__ import annotations

from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.objective import (
    leave_one_out,
    less_fitted_verdict,
    lone_advantages,
    returns,
    shaped_rewards,
)
from selfcorrect.types import Role


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return SCoRe's advantages [N, K]: reward, shaped reward, credit (less the KL penalty), return, leave-one-out.

    With trees, the second attempts that revise one first attempt are each other's baseline.
    """
    returns_NK = returns(credit(outcome, stage), stage.discount)
    if stage.baseline == "none":
        return returns_NK * outcome.online_NK
    if stage.baseline == "fitted":
        returns_NK = less_fitted_verdict(returns_NK, outcome.rewards_NK, outcome.group, outcome.online_NK)
    advantages_NK = leave_one_out(returns_NK, outcome.group, outcome.online_NK)
    if outcome.revisions > 1:
        advantages_NK[:, 1:] = leave_one_out(returns_NK, outcome.revisions, outcome.online_NK)[:, 1:]
    if outcome.present_NK is not None:
        advantages_NK = advantages_NK + lone_advantages(returns_NK, outcome.group, outcome.online_NK)
    return advantages_NK


def credit(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return what every turn earns [N, K]: its shaped reward less the KL penalty, and 0 where it was skipped."""
    attempts = outcome.columns(Role.ATTEMPT)
    credit_NK = outcome.rewards_NK * stage.verified.weight
    credit_NK[:, attempts] = shaped_rewards(outcome.rewards_NK[:, attempts], stage.reward_weights, stage.bonus)
    credit_NK = credit_NK - outcome.penalty_NK
    return credit_NK if outcome.present_NK is None else credit_NK * outcome.present_NK
