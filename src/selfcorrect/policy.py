"""Log-probabilities, entropy and KL of sampled tokens, computed apart from the engine that sampled them.

Logits are made only for scored positions and only a chunk at a time, in the backward pass too, so memory
does not grow with batch x vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfcorrect.batch import Rows
from selfcorrect.modeling import LanguageModel

CHUNK_ELEMENTS = 2**25
"""Logits held at once, tokens x vocabulary: 128 MiB in float32. Fewer are kept for backward, more recomputed."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """For every scored token: log pi, the entropy of its distribution, and KL(pi || reference r) in full, in nats."""

    logprobs_S: Tensor
    entropy_S: Tensor
    kl_RS: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceScores:
    """What a frozen model thinks of the same tokens; ``hidden_SD`` is kept where the full KL is wanted."""

    model: LanguageModel
    logprobs_S: Tensor
    hidden_SD: Tensor | None


def hidden_states(model: LanguageModel, rows: Rows) -> Tensor:
    """The hidden state that predicts each scored token, [S, D].

    This is the one place where positions are shifted: logprobs[b, t] = log p(tokens[b, t] | tokens[b, :t]), so
    the token at t is predicted from the hidden state at t - 1.
    """
    row_S, position_S = rows.scored
    # Positions count tokens, so padding on the left moves nothing.
    places_BT = (rows.mask_BT.cumsum(1) - 1).clamp(min=0)
    output = model.decode(rows.tokens_BT, rows.mask_BT, position_ids=places_BT, use_cache=False)
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD[row_S, position_S - 1]


def score(
    model: LanguageModel,
    rows: Rows,
    temperature: float,
    references: Sequence[ReferenceScores] = (),
    *,
    full_kl: bool = False,
) -> TokenScores:
    """Score the sampled tokens of ``rows`` under ``model`` at the sampling temperature."""
    hidden_SD = hidden_states(model, rows)
    target_S = rows.tokens_BT[rows.scored]
    against = [reference for reference in references if full_kl]
    size = max(1, CHUNK_ELEMENTS // model.vocabulary)
    recompute = torch.is_grad_enabled() and len(target_S) > size

    def chunk(hidden: Tensor, target: Tensor, *reference_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logp = torch.log_softmax(model.logits(hidden) / temperature, -1)
        p = logp.exp()
        others = [
            torch.log_softmax(reference.model.logits(h) / temperature, -1)
            for reference, h in zip(against, reference_hidden, strict=True)
        ]
        kl = [(p * (logp - other)).sum(-1) for other in others]
        stacked = torch.stack(kl) if kl else logp.new_zeros((0, len(target)))
        return logp.gather(-1, target[:, None])[:, 0], -(p * logp).sum(-1).detach(), stacked

    parts = []
    for start in range(0, len(target_S), size):
        piece = slice(start, start + size)
        hidden_of = [reference.hidden_SD[piece] for reference in against if reference.hidden_SD is not None]
        arguments = (hidden_SD[piece], target_S[piece], *hidden_of)
        parts.append(checkpoint(chunk, *arguments, use_reentrant=False) if recompute else chunk(*arguments))
    logprobs, entropy, kl = zip(*parts, strict=True)
    return TokenScores(torch.cat(logprobs), torch.cat(entropy), torch.cat(kl, 1))


@torch.no_grad()
def score_reference(
    model: LanguageModel, rows: Rows, temperature: float, *, keep_hidden: bool = False
) -> ReferenceScores:
    """Score the sampled tokens under a frozen model; its hidden states are kept for the full KL."""
    hidden_SD = hidden_states(model, rows)
    target_S = rows.tokens_BT[rows.scored]
    size = max(1, CHUNK_ELEMENTS // model.vocabulary)
    logprobs = [
        torch.log_softmax(model.logits(hidden) / temperature, -1).gather(-1, target[:, None])[:, 0]
        for hidden, target in zip(hidden_SD.split(size), target_S.split(size), strict=True)
    ]
    return ReferenceScores(model, torch.cat(logprobs), hidden_SD if keep_hidden else None)
