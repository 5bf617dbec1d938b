"""Enumerate every episode of a softmax policy with a free parameter for every context and token.

The vocabulary is the end token and two others (``V`` = 3); the prompt and the observation are ids beyond it. The true
gradients are computed here without a line of the package's objective: section 2 of docs/method.md, written out as sums
over episodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor

from selfcorrect.models.forward import ForwardPass, GeneralForward
from selfcorrect.models.placement import LOCAL
from selfcorrect.models.scorable import HeadPass
from selfcorrect.types import Episode, Problem, StopReason
from support.episodes import turn

END, PROMPT, GLUE, V = 0, 3, 4, 3
T = TypeVar("T")
Answer = tuple[int, ...]
RIGHT: frozenset[Answer] = frozenset({(1, END), (2, 1), (2,), (1, 1, END)})
"""The answers that the verifier accepts, some of them truncated."""


def answers(limit: int) -> list[Answer]:
    """Return all answers of at most ``limit`` tokens: finished ones, then truncated ones."""
    ended = [(*head, END) for n in range(limit) for head in itertools.product((1, 2), repeat=n)]
    return ended + list(itertools.product((1, 2), repeat=limit))


class Tabular:
    """A trainable `Scorable`: the hidden state of a position is its context's row of logits.

    It is also a `Decoder`, so the general forward pass reads its rows.

    ``row_weights``, if set, scales each row's gradient and leaves its value unchanged. With the probabilities of
    the groups as weights, one backward pass over every possible group gives the expected gradient.
    """

    vocabulary, pad_id, device = V, END, torch.device("cpu")
    slots_limit = 0  # no cache: rows are read in one piece, with their prompts
    takes_masks = False
    plain_head, head_pass, placement = None, HeadPass.CHUNKED, LOCAL

    def __init__(self, limits: Sequence[int], seed: int) -> None:
        self.limits = tuple(limits)
        contexts: dict[tuple[int, ...], int] = {}
        for played in itertools.product(*(answers(limit) for limit in limits)):
            ids = row_ids(played)
            for stop in range(1, len(ids)):
                contexts.setdefault(ids[:stop], len(contexts))
        self.contexts = contexts
        start = torch.randn(len(contexts), V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.table = torch.nn.Parameter(start)
        self.row_weights: Tensor | None = None

    @property
    def forward_pass(self) -> ForwardPass:
        return GeneralForward(self)

    def as_forward(self, function: Callable[[], T]) -> T:
        return function()

    def head_parameters(self) -> list[torch.nn.Parameter]:
        return []

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.table]

    def decode(self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, cache: Any = None, **_: Any) -> SimpleNamespace:
        assert cache is None
        rows = ids_BT.tolist()
        places = [[self.contexts.get(tuple(row[: t + 1]), 0) for t in range(len(row))] for row in rows]
        hidden_BTD = self.table[torch.tensor(places)]
        if self.row_weights is not None:
            weighted = hidden_BTD * self.row_weights[:, None, None]
            hidden_BTD = weighted + (hidden_BTD - weighted).detach()
        return SimpleNamespace(last_hidden_state=hidden_BTD)

    def window_masks(self, full_BSL: Tensor, sliding_BSL: Tensor) -> Any:
        raise NotImplementedError  # it has no window

    def logits(self, hidden_SD: Tensor) -> Tensor:
        return hidden_SD

    def token_logprobs(self, played: Sequence[Answer], k: int) -> list[tuple[Tensor, int]]:
        """Return, for every token of turn k, the log-probabilities of the whole vocabulary in its context, and the token."""
        before = (*row_ids(played[:k]), GLUE if k else PROMPT)
        found = []
        for t, token in enumerate(played[k]):
            logits = self.table[self.contexts[(*before, *played[k][:t])]]
            found.append((torch.log_softmax(logits, 0), token))
        return found

    def turn_logprob(self, played: Sequence[Answer], k: int) -> Tensor:
        return torch.stack([logp[token] for logp, token in self.token_logprobs(played, k)]).sum()


def row_ids(played: Sequence[Answer]) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    for k, answer in enumerate(played):
        ids += ((GLUE if k else PROMPT), *answer)
    return ids


@dataclass(frozen=True)
class World:
    """A policy, a reference and every episode that ``limits`` allow."""

    policy: Tabular
    reference: Tabular
    played: list[tuple[Answer, ...]]

    @staticmethod
    def make(*limits: int) -> World:
        return World(Tabular(limits, 1), Tabular(limits, 2), list(itertools.product(*(answers(n) for n in limits))))

    @property
    def turns(self) -> int:
        return len(self.policy.limits)

    def episode(self, played: Sequence[Answer], sample: int, online: bool = True) -> Episode:
        """Return the episode as an engine that samples from the policy would have recorded it."""
        turns = []
        for k, answer in enumerate(played):
            logprobs = [logp[token].item() for logp, token in self.policy.token_logprobs(played, k)]
            stop = StopReason.END if answer[-1] == END else StopReason.LENGTH
            right = float(answer in RIGHT)
            made_here = online or k > 0
            turns.append(turn([GLUE if k else PROMPT], answer, right, logprobs=logprobs, stop=stop, online=made_here))
        return Episode(Problem("p", "", ""), sample, tuple(turns))

    def probability(self, played: Sequence[Answer], first: Tabular | None = None) -> float:
        """Return p(episode); ``first`` may be another model that made the first attempt."""
        models = [first or self.policy] + [self.policy] * (self.turns - 1)
        return sum(model.turn_logprob(played, k) for k, model in enumerate(models)).exp().item()


def rewards(played: Sequence[Answer]) -> list[float]:
    return [float(answer in RIGHT) for answer in played]


Value = Callable[[Sequence[Answer], int], Tensor | float]
"""A function that returns the value of turn k of an episode."""


def true_gradient(world: World, value: Value, *, gamma_one: bool = False) -> Tensor:
    """Return the gradient of sum_k E[c_k ~ sg(pi)] E[y_k ~ pi(.|c_k)] E[later ~ sg(pi)] value(episode, k), by autograd.

    ``gamma_one`` lets the gradient through the probabilities of earlier turns too.
    """
    total = torch.zeros((), dtype=torch.float64)
    for played in world.played:
        logprobs = [world.policy.turn_logprob(played, k) for k in range(world.turns)]
        for k in range(world.turns):
            parts = [p if j == k or gamma_one else p.detach() for j, p in enumerate(logprobs)]
            total = total + sum(parts).exp() * value(played, k)
    return torch.autograd.grad(total, world.policy.table)[0].flatten()


def log_ratio(world: World, played: Sequence[Answer], k: int) -> Tensor:
    """Return sum_t log(pi / pi_ref) over the tokens of turn k."""
    return world.policy.turn_logprob(played, k) - world.reference.turn_logprob(played, k).detach()


def token_kl_gradient(world: World, coefficients: Sequence[float], *, reverse: bool) -> Tensor:
    """Return the gradient of sum_k lambda_k E[prefix ~ sg(pi)] sum_t KL of the next token's distribution.

    The KL is KL(pi || ref), or KL(ref || pi) with ``reverse``; contexts are fixed.
    """
    total = torch.zeros((), dtype=torch.float64)
    for played in world.played:
        p = world.probability(played)
        for k, coefficient in enumerate(coefficients):
            ours, theirs = world.policy.token_logprobs(played, k), world.reference.token_logprobs(played, k)
            for (logp, _), (reference, _) in zip(ours, theirs, strict=True):
                logq = reference.detach()
                kl = (logq.exp() * (logq - logp)).sum() if reverse else (logp.exp() * (logp - logq)).sum()
                total = total + p * coefficient * kl
    return torch.autograd.grad(total, world.policy.table)[0].flatten()
