"""Token log-probabilities, entropies and KL from hidden states, with a handwritten backward pass.

Logits [tokens, vocabulary] are computed in chunks. A single chunk keeps its log-probabilities for the backward pass;
with several chunks the backward pass recomputes them. Chunks reuse the same buffers, and the gradient of the head's
weight accumulates in one tensor, so memory does not grow with tokens x vocabulary.
Logits must be finite: entropy is undefined here where a model masks a token with -inf.

`selfcorrect.models.checkpointed_logprobs` computes the same in a dozen lines and serves as the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfcorrect.models.cpu.log_softmax import fused_log_softmax_gradient
from selfcorrect.models.cpu.onednn_linear import input_gradient
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.scorable import Scorable

CHUNK_ELEMENTS = 2**25
"""Logits per chunk on a CPU (tokens x vocabulary): 128 MiB in float32."""
GPU_TIMES = 4
"""Chunk size on a GPU relative to a CPU. Larger chunks pay off: each one reads the head's weights and writes their gradient."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The scored tokens: their ids [S], the temperature, and the frozen references, each with its hidden states [S, D]."""

    target_S: Tensor
    temperature: float
    references: Sequence[tuple[Scorable, Tensor]] = ()


def logprobs_entropy_kl(model: Scorable, hidden_SD: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi [S], entropy [S] and the exact KL(pi || r) [R, S] for each of R references r.

    The entropy has no gradient.
    """
    logp_S, entropy_S, kl_RS = _LogprobsEntropyKL.apply(model, targets, hidden_SD, *model.head_parameters())
    return logp_S, entropy_S, kl_RS


@torch.no_grad()
def token_logprobs(model: Scorable, hidden_SD: Tensor, targets: Targets) -> Tensor:
    """Return only log pi [S], without gradients. The head is called as a module, so its weight may be sharded."""
    buffers = Buffers()
    found = [
        _log_softmax(temperate_logits(model, hidden_SD[chunk], targets.temperature), buffers, "log pi")
        .gather(-1, targets.target_S[chunk, None])
        .squeeze(1)
        for chunk in chunks(model, len(hidden_SD))
    ]
    return torch.cat(found)


@dataclass(eq=False)
class Buffers:
    """Buffers [tokens, vocabulary] by purpose, which each chunk reuses from the one before."""

    held: dict[str, Tensor] = field(default_factory=dict)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """Return a buffer of the tensor's shape; an earlier chunk's contents are overwritten."""
        if name not in self.held or len(self.held[name]) < len(tensor):
            self.held[name] = torch.empty_like(tensor)
        return self.held[name][: len(tensor)]


class _LogprobsEntropyKL(torch.autograd.Function):
    """`logprobs_entropy_kl`: chunked in both directions, with the gradient of the logits [chunk, V] in closed form."""

    @staticmethod
    def forward(
        ctx: Any, model: Scorable, targets: Targets, hidden_SD: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        # The parameters are arguments only so that autograd requests their gradients; the head itself uses them.
        all_chunks, buffers = list(chunks(model, len(hidden_SD))), Buffers()
        kept: tuple[Tensor, ...] = ()
        parts = []
        for chunk in all_chunks:
            logp_SV, ratios_SV = _distributions(model, targets, hidden_SD, chunk, buffers)
            p_SV = torch.exp(logp_SV, out=buffers.like("pi", logp_SV))
            logp_S = logp_SV.gather(-1, targets.target_S[chunk, None])[:, 0]
            kl_RS = [(p_SV * ratio_SV).sum(-1) for ratio_SV in ratios_SV]
            entropy_S = -p_SV.mul_(logp_SV).sum(-1)  # overwrites pi, so the KL comes first
            parts.append((logp_S, entropy_S, torch.stack(kl_RS) if kl_RS else logp_S.new_zeros((0, len(logp_S)))))
            if len(all_chunks) == 1:
                kept = logp_SV, *ratios_SV
        logp, entropy, kl = zip(*parts, strict=True)
        found = torch.cat(logp), torch.cat(entropy), torch.cat(kl, 1)  # [S], [S], [R, S]
        ctx.model, ctx.targets = model, targets
        ctx.save_for_backward(hidden_SD, found[2], *kept)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp_S: Tensor, _: Tensor, grad_kl_RS: Tensor) -> tuple[Tensor | None, ...]:
        hidden_SD, kl_RS, *kept = ctx.saved_tensors
        targets, buffers, head = ctx.targets, Buffers(), _HeadGradients(ctx.model, hidden_SD)
        for chunk in chunks(ctx.model, len(hidden_SD)):
            logp_SV, ratios_SV = (
                (kept[0], kept[1:]) if kept else _distributions(ctx.model, targets, hidden_SD, chunk, buffers)
            )
            # log pi is read only at the target, so its gradient has one entry per row and zeros elsewhere.
            grad_SV = buffers.like("gradient", logp_SV).zero_()
            grad_SV.scatter_(1, targets.target_S[chunk, None], grad_logp_S[chunk, None])
            grad_SV = log_softmax_gradient(grad_SV, logp_SV)  # from here on: gradient of the logits [S, V]
            for ratio_SV, kl_S, grad_kl_S in zip(ratios_SV, kl_RS[:, chunk], grad_kl_RS[:, chunk], strict=True):
                # d KL / d z_b = pi(b) (log pi(b) - log r(b) - KL). The kept tensors must not be overwritten: a second
                # backward pass reads them again.
                grad_SV.addcmul_(logp_SV.exp().mul_(grad_kl_S[:, None]), ratio_SV - kl_S[:, None])
            head.add(chunk, grad_SV if targets.temperature == 1 else grad_SV.div_(targets.temperature))
        return None, None, head.grad_hidden_SD, *head.grad_parameters


class _HeadGradients:
    """Gradients of the hidden states [S, D] and the head's trained parameters, accumulated chunk by chunk.

    Parameter gradients add up in float32 or better, because rounding to bfloat16 after every chunk would lose the small
    contributions.
    """

    def __init__(self, model: Scorable, hidden_SD: Tensor) -> None:
        self.model, self.hidden_SD = model, hidden_SD
        self.parameters = model.head_parameters()
        self.grad_hidden_SD = torch.empty_like(hidden_SD)
        self._totals = [
            torch.zeros_like(parameter, dtype=torch.float32 if parameter.dtype in ROUNDED else parameter.dtype)
            for parameter in self.parameters
        ]

    @property
    def grad_parameters(self) -> list[Tensor]:
        """The accumulated gradients, rounded once to the parameters' dtype."""
        return [total.to(parameter.dtype) for total, parameter in zip(self._totals, self.parameters, strict=True)]

    def add(self, chunk: slice, grad_SV: Tensor) -> None:
        """Propagate one chunk's gradient of the logits [S, V] through the head."""
        head = self.model.plain_head
        if head is None:
            self._add_by_autograd(chunk, grad_SV)
            return
        grad_SV = grad_SV.to(head.weight.dtype)
        self.grad_hidden_SD[chunk] = input_gradient(head, grad_SV)  # [S, V] @ [V, D]
        for total_VD in self._totals:  # the head's weight; none if it is frozen
            if total_VD.dtype == grad_SV.dtype:
                total_VD.addmm_(grad_SV.t(), self.hidden_SD[chunk])
            else:
                total_VD.add_(grad_SV.t() @ self.hidden_SD[chunk])

    def _add_by_autograd(self, chunk: slice, grad_SV: Tensor) -> None:
        with torch.enable_grad():
            hidden_SD = self.hidden_SD[chunk].detach().requires_grad_()
            logits_SV = self.model.logits(hidden_SD)
        grad_hidden_SD, *grad_parameters = torch.autograd.grad(
            logits_SV, [hidden_SD, *self.parameters], grad_SV, allow_unused=True
        )
        self.grad_hidden_SD[chunk] = grad_hidden_SD
        for total, gradient in zip(self._totals, grad_parameters, strict=True):
            if gradient is not None:
                total.add_(gradient)


def _distributions(
    model: Scorable, targets: Targets, hidden_SD: Tensor, chunk: slice, buffers: Buffers
) -> tuple[Tensor, list[Tensor]]:
    """Return log pi of a chunk's tokens and, for every reference r, log pi - log r, each [S, V]."""
    logp_SV = _log_softmax(temperate_logits(model, hidden_SD[chunk], targets.temperature), buffers, "log pi")
    ratios_SV = []
    for r, (reference, its_hidden_SD) in enumerate(targets.references):
        its_logits_SV = temperate_logits(reference, its_hidden_SD[chunk], targets.temperature)
        its_logp_SV = _log_softmax(its_logits_SV, buffers, f"log r {r}")
        ratios_SV.append(torch.sub(logp_SV, its_logp_SV, out=its_logp_SV))
    return logp_SV, ratios_SV


def temperate_logits(model: Scorable, hidden_SD: Tensor, temperature: float) -> Tensor:
    """Return logits [S, V] divided by the temperature."""
    logits_SV = model.logits(hidden_SD)
    return logits_SV if temperature == 1 else logits_SV / temperature


def log_softmax_gradient(grad_SV: Tensor, logp_SV: Tensor) -> Tensor:
    """Return the gradient of logits [S, V], g - pi sum(g), from the gradient g of log pi [S, V], which may be overwritten."""
    if grad_SV.device.type == "cpu":
        return fused_log_softmax_gradient(grad_SV, logp_SV)
    return grad_SV.addcmul_(logp_SV.exp(), grad_SV.sum(-1, keepdim=True), value=-1)


def _log_softmax(logits_SV: Tensor, buffers: Buffers, name: str) -> Tensor:
    return torch.log_softmax(logits_SV, -1, out=buffers.like(name, logits_SV))


def chunks(model: Scorable, count: int) -> Iterator[slice]:
    """Split tokens into chunks whose logits fit `CHUNK_ELEMENTS`; without tokens, yield one empty chunk."""
    elements = CHUNK_ELEMENTS * (1 if model.device.type == "cpu" else GPU_TIMES)
    size = max(1, elements // model.vocabulary)
    return (slice(start, start + size) for start in range(0, max(1, count), size))
