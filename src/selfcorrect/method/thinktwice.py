"""ThinkTwice (Jiao et al., arXiv 2604.01591): steps that train first attempts alone, and steps that train revisions alone.

Steps come in pairs (docs/method.md, section 13):

    first step     G first attempts of each problem          A = R_1 - mean of the problem's other first attempts
    second step    one of them, the draft, is revised G times    A = R_2 - mean of the draft's other revisions

with R_k = w_k r_k less the KL penalty of turn k. In the second step the draft is context: it was sampled, and learnt, in the
step before. Both steps are those of group-relative policy optimisation, whose groups are the samples of one context.

Where this differs from the paper:
1. The mean leaves the attempt itself out, which multiplies the paper's advantage by G / (G - 1).
2. A step takes one update, without clipping, unless `optimizer.num_iterations` says otherwise; the paper takes four, on a
   quarter of the problems each, with clipped ratios.
3. The loss is a mean over attempts, not over tokens.
"""

from __future__ import annotations

from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.objective import leave_one_out, shaped_rewards


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return the advantages of a step [N, K]: K = 1 in the first step of a pair, and 2 in the second, with 0 for the draft.

    All episodes of a group have one draft, so the group is what the revisions of this draft are compared with.
    """
    weights = stage.reward_weights[: outcome.rewards_NK.shape[1]]
    credit_NK = shaped_rewards(outcome.rewards_NK, weights, bonus=0.0) - outcome.penalty_NK
    return leave_one_out(credit_NK, outcome.group, outcome.online_NK)
