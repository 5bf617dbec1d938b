"""Second attempts distilled into first attempts (RLTF-SD, Song et al., arXiv 2602.02482), here without feedback from outside.

Both attempts are trained as `score` trains them. In addition, every second attempt, correct or not, is trained once more as
an answer to the bare prompt, without the draft that it was sampled after (docs/method.md, section 15):

    A_i = w_d (r_2i - mean of r_1j over the problem's other episodes j)      on the tokens of y_2i in pi(. | x)

So first attempts learn from revisions that are better than first attempts are on average, and away from those that are not.

Where this differs from the paper:
1. The paper's baseline is the mean over all first attempts. The draft of y_2i is left out here, because its verdict depends on
   y_2i: with it, the expected gradient would depend on the size of the group.
2. In the paper a judge writes a critique of the first attempt, which the second one reads. Here there is the task's instruction
   alone, or the model's own feedback, if the script asks for it.

As in the paper, there are no importance weights between the two contexts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method import score
from selfcorrect.method.base import StepOutcome

FIRST, SECOND, DISTILLED = 0, 1, 2
"""The columns: the attempts in their conversation, and the second attempt once more as an answer to the bare prompt."""


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return the advantages [N, 3] of both attempts, as `score.advantages` has them, and of the distilled second attempt."""
    two = slice(FIRST, DISTILLED)
    conversation = replace(
        outcome,
        rewards_NK=outcome.rewards_NK[:, two],
        penalty_NK=outcome.penalty_NK[:, two],
        online_NK=outcome.online_NK[:, two],
        roles=outcome.roles[two],
    )
    first_N, again_N = outcome.rewards_NK[:, FIRST], outcome.rewards_NK[:, DISTILLED]
    distilled_N = stage.distill_weight * (again_N - mean_of_others(first_N, outcome.group))
    return torch.cat([score.advantages(conversation, stage), distilled_N[:, None]], 1)


def mean_of_others(values_N: Tensor, group: int) -> Tensor:
    """Return, for each episode [N], the mean of the values of the *other* episodes of its group, which are adjacent.

    >>> mean_of_others(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), group=3).tolist()
    [0.0, 0.5, 0.5, 1.0, 1.0, 1.0]
    """
    values_PG = values_N.view(-1, group)
    return ((values_PG.sum(1, keepdim=True) - values_PG) / (group - 1)).flatten()
