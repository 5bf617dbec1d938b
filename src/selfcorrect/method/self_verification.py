"""Self-verification: learning to solve problems and to verify drafts in one batch (RISE, arXiv 2505.13445; also 2602.07594).

A step samples episodes as `score` does, which solve problems. From their first attempts it chooses drafts, one for every group
of episodes. A draft is shown on a prompt of its own, next to its problem, and a group of verifications judges it:

    R_k = w_k r_k + alpha (r_k - r_{k-1})  in an episode,    R_v = w_v [v says what the verifier says of the draft]

The verification is a task of its own: nothing depends on it, and the draft earns nothing from it. With groups of G, a step of B
episodes has B / G drafts and B verifications. Half of the drafts are correct and half incorrect, as far as there are both, so
that a model that always says the same earns half of the reward. Each of the two tasks is a mean over its own samples:

    J = E[sum_k R_k - KL_k] + E_draft E_v[R_v - KL_v]

with the choice of the draft, and its tokens, held fixed (docs/method.md, section 10).

Where this differs from the papers: leave-one-out in groups takes the place of PPO's critic (RISE); the verdict is one of two
phrases and not a score in a box; drafts are balanced, and a text that several attempts share is chosen again only when there is
no other; and RISE's ratio of verifications to solutions is fixed at one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from torch import Tensor

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method import score
from selfcorrect.method.base import StepOutcome


def advantages(outcome: StepOutcome, stage: ReinforcementStage) -> Tensor:
    """Return the advantages [N, K]: leave-one-out in every group, which is either of episodes or of one draft's verifications.

    In a group of verifications the draft is context, so that its column is not online; in a group of episodes the
    verification's column was skipped.
    """
    return score.advantages(outcome, stage)


def balanced(correct: Sequence[bool], texts: Sequence[Hashable], count: int, rng: np.random.Generator) -> list[int]:
    """Return the positions of ``count`` attempts to verify, in order: random ones, half correct and half incorrect.

    If ``count`` is odd, one more is incorrect. Where one kind is too rare, the other takes its place. A text is chosen again
    only if no other of its kind is left.

    >>> balanced([True, True, True, False], "aabc", 2, np.random.default_rng(0))
    [2, 3]
    """
    order = [int(i) for i in rng.permutation(len(correct))]
    first = {texts[i]: i for i in reversed(order)}
    order.sort(key=lambda i: first[texts[i]] != i)  # stable
    right, wrong = ([i for i in order if correct[i] is kind] for kind in (True, False))
    taken = min(len(right), max(count // 2, count - len(wrong)))
    return sorted([*right[:taken], *wrong[: count - taken]])
