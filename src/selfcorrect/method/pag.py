"""PAG, "policy as generative verifier" (Jiang et al., arXiv 2506.10406), with this package's baseline.

The script of a stage is `Script.with_verification`: an attempt y1, a verification v, and a second attempt y2 only if v says
that y1 is wrong. Every turn is paid for itself alone (discount 0), and there is no KL:

    R_1 = r_1,    R_v = [v says what the verifier says of y1],    R_2 = r_2 + (r_2 - r_1)

These are values of a stage: ``reward_weights = [1, 1]``, ``bonus = 1``, ``verification.weight = 1``, empty ``kl_coefs``. The
advantages are whitened per role: attempts have one scale, verifications another.

Where this differs from the paper: leave-one-out takes the place of a critic, and whitening counts turns, not tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.errors import ConfigError
from selfcorrect.method import score
from selfcorrect.method.base import StepOutcome
from selfcorrect.types import TRAINED_ROLES, Role


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return PAG's advantages [N, K]: those of `score.advantages`, whitened per role.

    Raises:
        ConfigError: the script asks for no verification.
    """
    if not outcome.columns(Role.VERIFICATION):
        raise ConfigError(
            'method = "pag" trains verifications, but task.revise asks for none: set it to two turns, '
            '{ text = ..., role = "verification" } and { text = ..., when = "wrong" }.'
        )
    advantages_NK = score.advantages(outcome, stage)
    for role in TRAINED_ROLES:
        columns = outcome.columns(role)
        advantages_NK[:, columns] = whitened(advantages_NK[:, columns], outcome.online_NK[:, columns])
    return advantages_NK


def whitened(values_NK: Tensor, online_NK: Tensor) -> Tensor:
    """Return the values where ``online_NK`` holds, less their mean and over their standard deviation; 0 elsewhere.

    Equal values become 0.

    >>> whitened(torch.tensor([[3.0, 0.0], [-1.0, 5.0]]), torch.tensor([[True, False], [True, False]])).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    chosen = values_NK[online_NK]
    if not len(chosen):
        return torch.zeros_like(values_NK)
    scale = chosen.std(correction=0)
    return torch.where(online_NK & (scale > 0), (values_NK - chosen.mean()) / torch.where(scale > 0, scale, 1.0), 0.0)
