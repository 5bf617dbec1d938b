"""Dynamic sampling (DAPO, arXiv 2503.14476): which groups of a step have a signal, and which of them are learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.objective import returns, shaped_rewards


def informative_groups(rewards_NK: Tensor, online_NK: Tensor, group: int, stage: ReinforcementStage) -> list[bool]:
    """Return, for each group, whether the verdicts give any of its attempts an advantage under leave-one-out.

    They do if the returns of some turn differ among the episodes that are each other's baseline: the group's, and from turn 2
    on, with trees, those that revise one first attempt. With the fitted baseline, it is enough that the verdicts on the turn
    before differ, for the baseline does. Attempts that are not ``online`` are not trained and do not count.

    >>> stage = ReinforcementStage(steps=1, reward_weights=(0, 1), kl_coefs=({}, {}))
    >>> rewards_NK = torch.tensor([[0., 1.], [1., 1.], [0., 1.], [0., 0.]])
    >>> informative_groups(rewards_NK, torch.ones(4, 2, dtype=torch.bool), 2, stage)
    [False, True]
    """
    returns_NK = returns(shaped_rewards(rewards_NK, stage.reward_weights, stage.bonus), stage.discount)
    varied_PK = [
        _varied(values_NK[:, k], online_NK[:, k], group, stage.revisions if k and stage.revisions > 1 else group)
        for values_NK in (returns_NK, *([_turn_before(rewards_NK)] if stage.baseline == "fitted" else []))
        for k in range(stage.turns)
    ]
    found: list[bool] = torch.stack(varied_PK).any(0).tolist()
    return found


def _turn_before(rewards_NK: Tensor) -> Tensor:
    """Return each turn's previous reward [N, K]; 0 before the first turn."""
    return torch.cat([torch.zeros_like(rewards_NK[:, :1]), rewards_NK[:, :-1]], 1)


def _varied(values_N: Tensor, online_N: Tensor, group: int, peers: int) -> Tensor:
    """Return, for each group [P], whether online values differ within adjacent ``peers``."""
    shape = (-1, group // peers, peers)
    values_PTB, online_PTB = values_N.view(shape), online_N.view(shape)
    highest_PT = values_PTB.masked_fill(~online_PTB, -torch.inf).amax(2)
    lowest_PT = values_PTB.masked_fill(~online_PTB, torch.inf).amin(2)
    return (highest_PT > lowest_PT).any(1)


def kept_groups(informative: Sequence[bool], count: int) -> list[int]:
    """Return the positions of ``count`` groups in their order: the first informative ones, then the first others.

    >>> kept_groups([False, True, False, False, True, True], 2), kept_groups([False, True, False, False], 3)
    ([1, 4], [0, 1, 2])
    """
    ranked = sorted(range(len(informative)), key=lambda place: not informative[place])  # stable
    return sorted(ranked[:count])
