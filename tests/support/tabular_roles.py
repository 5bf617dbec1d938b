"""Enumerate every conversation with a verification: an attempt, what the policy says of it, and a second attempt.

The second attempt is made in all conversations, or only after a verification that says wrong. As in `tabular.py`, the true
gradients are sums over conversations without a line of the package's objective.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.script import Script, UserTurn
from selfcorrect.types import Episode, Judgement, Problem, Role, StopReason, Turn
from support.episodes import verdict
from support.tabular import END, GLUE, PROMPT, RIGHT, Answer, Tabular, answers

VERIFY = UserTurn("Is it correct?", Role.VERIFICATION)
ALWAYS, IF_WRONG = Script(revise=(VERIFY, "Again.")), Script(revise=(VERIFY, UserTurn("Again.", when=Judgement.WRONG)))
SAYS = {1: Judgement.WRONG, 2: Judgement.CORRECT, END: None}
"""What a verification says, by its first token."""

Conversation = tuple[Answer, ...]
"""An attempt, a verification and, where it was made, a second attempt."""


@dataclass(frozen=True)
class VerifiedWorld:
    """A policy, a reference and every conversation that ``limits`` allow, one limit per turn."""

    policy: Tabular
    reference: Tabular
    script: Script
    played: list[Conversation]

    @staticmethod
    def make(limits: Sequence[int], script: Script) -> VerifiedWorld:
        played: list[Conversation] = []
        for first, said in itertools.product(answers(limits[0]), answers(limits[1])):
            goes_on = not script.conditional or SAYS[said[0]] is Judgement.WRONG
            played += [(first, said, again) for again in answers(limits[2])] if goes_on else [(first, said)]
        return VerifiedWorld(Tabular(limits, 1), Tabular(limits, 2), script, played)

    def episode(self, played: Conversation, sample: int = 0) -> Episode:
        """Return the episode as a rollout would have recorded it."""
        turns: list[Turn] = []
        for k, (answer, role) in enumerate(zip(played, (Role.ATTEMPT, Role.VERIFICATION, Role.ATTEMPT), strict=False)):
            logprobs = tuple(logp[token].item() for logp, token in self.policy.token_logprobs(played, k))
            stop = StopReason.END if answer[-1] == END else StopReason.LENGTH
            found = verdict(float(answer in RIGHT)) if role is Role.ATTEMPT else None
            said = SAYS[answer[0]] if role is Role.VERIFICATION else None
            turns.append(
                Turn((GLUE if k else PROMPT,), answer, logprobs, str(answer), stop, found, role=role, said=said)
            )
        if len(played) < 3:
            turns.append(Turn.not_taken(Role.ATTEMPT, turns))
        return Episode(Problem("p", "", ""), sample, tuple(turns))

    def probability(self, played: Conversation) -> float:
        return sum(self.policy.turn_logprob(played, k) for k in range(len(played))).exp().item()


def rewards(played: Conversation) -> list[float]:
    """Return r_1, whether the verification is right about it, and r_2 where there is a second attempt."""
    first = played[0] in RIGHT
    judged = SAYS[played[1][0]] is (Judgement.CORRECT if first else Judgement.WRONG)
    return [float(first), float(judged), *(float(again in RIGHT) for again in played[2:])]


def true_gradient(world: VerifiedWorld, value: Callable[[Conversation, int], Tensor | float]) -> Tensor:
    """Return the gradient of sum_k E[c_k ~ sg(pi)] E[y_k ~ pi(.|c_k)] value(conversation, k) over the turns that are made."""
    total = torch.zeros((), dtype=torch.float64)
    for played in world.played:
        logprobs = [world.policy.turn_logprob(played, k) for k in range(len(played))]
        for k in range(len(played)):
            parts = [p if j == k else p.detach() for j, p in enumerate(logprobs)]
            total = total + sum(parts).exp() * value(played, k)
    return torch.autograd.grad(total, world.policy.table)[0].flatten()
