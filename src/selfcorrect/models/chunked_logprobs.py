"""What a model's head makes of hidden states: log-probabilities, entropies and KL of tokens, with a backward pass of its own.

Logits [tokens, vocabulary] are made a chunk at a time. Where one chunk holds all, its log-probabilities are kept for the
backward pass; otherwise they are made again there. What is kept longest of a chunk lies in buffers that the next one takes
over, and the gradient of the head's weights adds up in one tensor, so memory does not grow with tokens x vocabulary. Logits
must be finite: a token that a model rules out with -inf has no entropy here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfcorrect.models.cpu.onednn_linear import input_gradient
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.language_model import LanguageModel

CHUNK_ELEMENTS = 2**25
"""Logits held at once on a CPU, tokens x vocabulary: 128 MiB in float32."""
GPU_TIMES = 4
"""So many times as many on a GPU. Every chunk reads the head's weights and writes their gradient."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Tokens that are scored: their ids [S], the temperature, and frozen models, each with its hidden states [S, D]."""

    target_S: Tensor
    temperature: float
    references: Sequence[tuple[LanguageModel, Tensor]] = ()


def logprobs_entropy_kl(model: LanguageModel, hidden_SD: Tensor, scored: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """log pi [S], entropy [S] and KL(pi || r) [R, S] in full, for each of R references r. The entropy has no gradient."""
    logp_S, entropy_S, kl_RS = _Terms.apply(model, scored, hidden_SD, *model.head_parameters())
    return logp_S, entropy_S, kl_RS


@torch.no_grad()
def token_logprobs(model: LanguageModel, hidden_SD: Tensor, scored: Targets) -> Tensor:
    """log pi [S] alone, without gradients."""
    buffers = Buffers()
    found = [
        _log_softmax(_logits(model, hidden_SD[piece], scored.temperature), buffers, "log pi")
        .gather(-1, scored.target_S[piece, None])
        .squeeze(1)
        for piece in _pieces(model, len(hidden_SD))
    ]
    return torch.cat(found)


@dataclass(eq=False)
class Buffers:
    """Memory [tokens, vocabulary] that one chunk leaves to the next, by purpose."""

    held: dict[str, Tensor] = field(default_factory=dict)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A buffer of the tensor's shape; what an earlier chunk wrote there is lost."""
        if name not in self.held or len(self.held[name]) < len(tensor):
            self.held[name] = torch.empty_like(tensor)
        return self.held[name][: len(tensor)]


class _Terms(torch.autograd.Function):
    """`logprobs_entropy_kl`."""

    @staticmethod
    def forward(
        ctx: Any, model: LanguageModel, scored: Targets, hidden_SD: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        pieces, buffers = list(_pieces(model, len(hidden_SD))), Buffers()
        kept: tuple[Tensor, ...] = ()
        parts = []
        for piece in pieces:
            logp_SV, gaps_SV = _distributions(model, scored, hidden_SD, piece, buffers)
            p_SV = torch.exp(logp_SV, out=buffers.like("pi", logp_SV))
            logp_S = logp_SV.gather(-1, scored.target_S[piece, None])[:, 0]
            kl_RS = [(p_SV * gap_SV).sum(-1) for gap_SV in gaps_SV]
            entropy_S = -p_SV.mul_(logp_SV).sum(-1)
            parts.append((logp_S, entropy_S, torch.stack(kl_RS) if kl_RS else logp_S.new_zeros((0, len(logp_S)))))
            if len(pieces) == 1:
                kept = logp_SV, *gaps_SV
        logp, entropy, kl = zip(*parts, strict=True)
        found = torch.cat(logp), torch.cat(entropy), torch.cat(kl, 1)
        ctx.model, ctx.scored = model, scored
        ctx.save_for_backward(hidden_SD, found[2], *kept)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logp_S: Tensor, _: Tensor, of_kl_RS: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SD, kl_RS, *kept = ctx.saved_tensors
        scored, buffers, head = ctx.scored, Buffers(), _HeadGradients(ctx.model, hidden_SD)
        for piece in _pieces(ctx.model, len(hidden_SD)):
            logp_SV, gaps_SV = (
                (kept[0], kept[1:]) if kept else _distributions(ctx.model, scored, hidden_SD, piece, buffers)
            )
            grad_SV = buffers.like("gradient", logp_SV).zero_()
            grad_SV.scatter_(1, scored.target_S[piece, None], of_logp_S[piece, None])
            grad_SV = torch.ops.aten._log_softmax_backward_data(grad_SV, logp_SV, -1, logp_SV.dtype)
            for gap_SV, kl_S, of_kl_S in zip(gaps_SV, kl_RS[:, piece], of_kl_RS[:, piece], strict=True):
                # d KL / d z_b = pi(b) (log pi(b) - log r(b) - KL)
                grad_SV.addcmul_(logp_SV.exp().mul_(of_kl_S[:, None]), gap_SV - kl_S[:, None])
            head.add(piece, grad_SV if scored.temperature == 1 else grad_SV.div_(scored.temperature))
        return None, None, head.of_hidden_SD, *head.of_parameters


class _HeadGradients:
    """Gradients of hidden states [S, D] and of the head's trained parameters, from those of the logits, chunk by chunk."""

    def __init__(self, model: LanguageModel, hidden_SD: Tensor) -> None:
        self.model, self.hidden_SD = model, hidden_SD
        self.parameters = model.head_parameters()
        self.of_hidden_SD = torch.empty_like(hidden_SD)
        self._totals = [
            torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in ROUNDED else parameter.dtype)
            for parameter in self.parameters
        ]

    @property
    def of_parameters(self) -> list[Tensor]:
        """Added up in float32 at the least, and then rounded once."""
        return [total.to(parameter.dtype) for total, parameter in zip(self._totals, self.parameters, strict=True)]

    def add(self, piece: slice, grad_SV: Tensor) -> None:
        head = self.model.plain_head
        if head is None:
            self._add_by_autograd(piece, grad_SV)
            return
        grad_SV = grad_SV.to(head.weight.dtype)
        self.of_hidden_SD[piece] = input_gradient(head, grad_SV)
        for total in self._totals:
            if total.dtype == grad_SV.dtype:
                total.addmm_(grad_SV.t(), self.hidden_SD[piece])
            else:
                total.add_(grad_SV.t() @ self.hidden_SD[piece])

    def _add_by_autograd(self, piece: slice, grad_SV: Tensor) -> None:
        with torch.enable_grad():
            hidden = self.hidden_SD[piece].detach().requires_grad_()
            logits_SV = self.model.logits(hidden)
        of_hidden, *of_parameters = torch.autograd.grad(
            logits_SV, [hidden, *self.parameters], grad_SV, allow_unused=True
        )
        self.of_hidden_SD[piece] = of_hidden
        for total, gradient in zip(self._totals, of_parameters, strict=True):
            if gradient is not None:
                total.add_(gradient)


def _distributions(
    model: LanguageModel, scored: Targets, hidden_SD: Tensor, piece: slice, buffers: Buffers
) -> tuple[Tensor, list[Tensor]]:
    """Of some tokens log pi, and log pi - log r for every reference r, each [S, V]."""
    logp_SV = _log_softmax(_logits(model, hidden_SD[piece], scored.temperature), buffers, "log pi")
    gaps_SV = []
    for r, (reference, its_hidden_SD) in enumerate(scored.references):
        other_SV = _log_softmax(_logits(reference, its_hidden_SD[piece], scored.temperature), buffers, f"log r {r}")
        gaps_SV.append(torch.sub(logp_SV, other_SV, out=other_SV))
    return logp_SV, gaps_SV


def _logits(model: LanguageModel, hidden_SD: Tensor, temperature: float) -> Tensor:
    logits_SV = model.logits(hidden_SD)
    return logits_SV if temperature == 1 else logits_SV / temperature


def _log_softmax(logits_SV: Tensor, buffers: Buffers, name: str) -> Tensor:
    return torch.log_softmax(logits_SV, -1, out=buffers.like(name, logits_SV))


def _pieces(model: LanguageModel, count: int) -> Iterator[slice]:
    """Chunks of so many tokens; one that is empty where there are none."""
    elements = CHUNK_ELEMENTS * (1 if model.device.type == "cpu" else GPU_TIMES)
    size = max(1, elements // model.vocabulary)
    return (slice(start, start + size) for start in range(0, max(1, count), size))
