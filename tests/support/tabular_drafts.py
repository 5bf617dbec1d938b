"""Enumerate every step that solves a problem and verifies drafts on prompts of their own.

As in `tabular.py`, the true gradient is a sum over steps without a line of the package's objective; which attempts are drafts is
asked of the package, because any choice has a gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfcorrect.method.self_verification import balanced
from selfcorrect.types import Episode, Judgement, Problem, Role, StopReason, Turn
from support.episodes import turn, verdict
from support.tabular import END, GLUE, PROMPT, RIGHT, Answer, Tabular, answers
from support.tabular_roles import SAYS

ASKED = 5
"""The id before a draft; `GLUE` follows it."""
Step = tuple[tuple[Answer, ...], tuple[Answer, ...]]
"""The attempts of a step, and its verifications, a group of them for each draft."""


def shown(draft: Answer) -> tuple[int, ...]:
    """Return the prompt of a draft's verification."""
    return (ASKED, *(token for token in draft if token != END), GLUE)


class DraftTabular(Tabular):
    """A table that also has a row of logits for every prompt with a draft."""

    def __init__(self, limit: int, seed: int) -> None:
        super().__init__((limit,), seed)
        for draft in answers(limit):
            self.contexts.setdefault(shown(draft), len(self.contexts))
        start = torch.randn(len(self.contexts), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = torch.nn.Parameter(start)

    def logprob(self, prompt: tuple[int, ...], answer: Answer) -> Tensor:
        rows = [self.table[self.contexts[(*prompt, *answer[:t])]] for t in range(len(answer))]
        return torch.stack([torch.log_softmax(row, 0)[token] for row, token in zip(rows, answer, strict=True)]).sum()


@dataclass(frozen=True)
class DraftWorld:
    """A policy, a reference and all steps of two groups of ``group`` episodes and two of verifications, of a draft each.

    Verifications are single tokens.
    """

    policy: DraftTabular
    reference: DraftTabular
    limit: int
    group: int

    @staticmethod
    def make(limit: int, group: int) -> DraftWorld:
        return DraftWorld(DraftTabular(limit, 1), DraftTabular(limit, 2), limit, group)

    def drafts(self, made: Sequence[Answer]) -> list[Answer]:
        """Return the attempts that a step verifies."""
        right = [answer in RIGHT for answer in made]
        return [made[i] for i in balanced(right, list(map(str, made)), 2, np.random.default_rng(3))]

    def steps(self) -> list[Step]:
        ones = [(token,) for token in (END, 1, 2)]
        attempts = list(itertools.product(answers(self.limit), repeat=2 * self.group))
        return [(made, said) for made in attempts for said in itertools.product(ones, repeat=2 * self.group)]

    def probability(self, step: Step) -> Tensor:
        made, said = step
        drafts = [draft for draft in self.drafts(made) for _ in range(self.group)]
        logprobs = [self.policy.logprob((PROMPT,), answer) for answer in made]
        logprobs += [self.policy.logprob(shown(draft), v) for draft, v in zip(drafts, said, strict=True)]
        return torch.stack(logprobs).sum().exp()

    def episodes(self, step: Step) -> list[Episode]:
        """Return the episodes of a step as the sampler makes them: a group that solves, a group that verifies, and again."""
        made, said = step
        drafts = [draft for draft in self.drafts(made) for _ in range(self.group)]
        solved = [self._solved(answer) for answer in made]
        verified = [self._verified(draft, v) for draft, v in zip(drafts, said, strict=True)]
        parts = (slice(i, i + self.group) for i in (0, self.group))
        return [each for part in parts for kind in (solved, verified) for each in kind[part]]

    def _solved(self, answer: Answer) -> Episode:
        logprobs = self._logprobs((PROMPT,), answer)
        stop = StopReason.END if answer[-1] == END else StopReason.LENGTH
        attempt = turn([PROMPT], answer, float(answer in RIGHT), logprobs=logprobs, stop=stop)
        return Episode(Problem("p", "", ""), 0, (attempt, Turn.not_taken(Role.VERIFICATION, [attempt])))

    def _verified(self, draft: Answer, said: Answer) -> Episode:
        shown_draft = Turn(
            shown(draft), (), (), "", StopReason.END, verdict(float(draft in RIGHT)), online=False, copied=True
        )
        logprobs = tuple(self._logprobs(shown(draft), said))
        judged = Turn((), said, logprobs, "", StopReason.LENGTH, None, role=Role.VERIFICATION, said=SAYS[said[0]])
        return Episode(Problem("p", "", ""), 0, (shown_draft, judged))

    def _logprobs(self, prompt: tuple[int, ...], answer: Answer) -> list[float]:
        sums = [0.0, *(float(self.policy.logprob(prompt, answer[:t]).detach()) for t in range(1, len(answer) + 1))]
        return [after - before for before, after in itertools.pairwise(sums)]

    def true_gradient(self, weight: float, verdict_weight: float, held: float, verdict_held: float) -> Tensor:
        """Return the gradient of E[w r - KL] of one attempt, plus the mean over the drafts of E[w_v [v = r] - KL]."""
        attempts = answers(self.limit)
        total = torch.zeros((), dtype=torch.float64)
        for answer in attempts:
            ours, theirs = (model.logprob((PROMPT,), answer) for model in (self.policy, self.reference))
            total = total + ours.exp() * (weight * (answer in RIGHT) - held * (ours - theirs.detach()))
        for made in itertools.product(attempts, repeat=2 * self.group):
            chance = torch.stack([self.policy.logprob((PROMPT,), answer).detach() for answer in made]).sum().exp()
            for draft in self.drafts(made):
                total = total + chance / 2 * self._worth(draft, verdict_weight, verdict_held)
        return torch.autograd.grad(total, self.policy.table)[0].flatten()

    def _worth(self, draft: Answer, weight: float, held: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        true = Judgement.CORRECT if draft in RIGHT else Judgement.WRONG
        for said in (END, 1, 2):
            ours, theirs = (model.logprob(shown(draft), (said,)) for model in (self.policy, self.reference))
            total = total + ours.exp() * (weight * (SAYS[said] is true) - held * (ours - theirs.detach()))
        return total
