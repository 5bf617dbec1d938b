"""SCoRe (arXiv 2409.12917). Both stages, every ablation and any number of turns are values of a stage's settings.

| stage | reward_weights | bonus | kl_coefs |
|---|---|---|---|
| Stage I | (0, 1) | 0 | base: (beta1 + beta2, beta1) |
| Stage II | (1, 1) | alpha | base: (beta1, beta1) |
| Stage I(b) of three turns | (0, 0, 1) | 0 | base and Stage I(a)'s model on turns 1 and 2 |

``config/builtin/score.toml`` and ``three_turns.toml`` are these stages with the paper's coefficients.
"""

from __future__ import annotations

from torch import Tensor

from selfcorrect.config.schema import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.objective import leave_one_out, less_fitted_verdict, returns, shaped_rewards


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return SCoRe's advantages [N, K]: reward, shaped reward, credit (less the KL penalty), return, leave-one-out.

    With trees, the second attempts that revise one first attempt are each other's baseline.
    """
    credit_NK = shaped_rewards(outcome.rewards_NK, stage.reward_weights, stage.bonus) - outcome.penalty_NK
    returns_NK = returns(credit_NK, stage.discount)
    if stage.baseline == "none":
        return returns_NK * outcome.online_NK
    if stage.baseline == "fitted":
        returns_NK = less_fitted_verdict(returns_NK, outcome.rewards_NK, outcome.group, outcome.online_NK)
    advantages_NK = leave_one_out(returns_NK, outcome.group, outcome.online_NK)
    if outcome.revisions > 1:
        advantages_NK[:, 1:] = leave_one_out(returns_NK, outcome.revisions, outcome.online_NK)[:, 1:]
    return advantages_NK
