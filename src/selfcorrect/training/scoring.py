"""Log-probabilities, entropy and KL of sampled tokens, computed independently of the engine that sampled them.

Logits exist only for scored positions and only one chunk at a time, in the backward pass too
(`selfcorrect.models.chunked_logprobs`), because the full [S, vocabulary] matrix would dominate memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.models import checkpointed_logprobs, chunked_logprobs
from selfcorrect.models.chunked_logprobs import Targets, token_logprobs
from selfcorrect.models.scorable import HeadPass, Scorable
from selfcorrect.training.batch import MicroBatch

HEAD_PASSES = {
    HeadPass.CHUNKED: chunked_logprobs.logprobs_entropy_kl,
    HeadPass.CHECKPOINTED: checkpointed_logprobs.logprobs_entropy_kl,
}


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Per scored token, in nats: log pi [S], the entropy of its distribution [S], and the full KL(pi || reference r) [R, S]."""

    logprobs_S: Tensor
    entropy_S: Tensor
    kl_RS: Tensor


@dataclass(frozen=True, eq=False)
class ReferenceLogprobs:
    """A frozen model's log-probabilities [S] of the same tokens, in nats; ``hidden_SD`` is kept for the full KL, else None."""

    model: Scorable
    logprobs_S: Tensor
    hidden_SD: Tensor | None


def score(
    model: Scorable,
    rows: MicroBatch,
    temperature: float,
    references: Sequence[ReferenceLogprobs] = (),
    *,
    full_kl: bool = False,
) -> TokenScores:
    """Score the sampled tokens of ``rows`` under ``model`` at the sampling temperature, with gradients."""
    against = [(r.model, r.hidden_SD) for r in references if full_kl and r.hidden_SD is not None]
    targets = Targets(rows.tokens_BT[rows.scored], temperature, against)
    logprobs_entropy_kl = HEAD_PASSES[model.head_pass]
    found = model.as_forward(lambda: logprobs_entropy_kl(model, model.forward_pass.hidden(rows), targets))
    return TokenScores(*found)


@torch.no_grad()
def score_reference(
    model: Scorable, rows: MicroBatch, temperature: float, *, keep_hidden: bool = False
) -> ReferenceLogprobs:
    """Score the sampled tokens under a frozen model; ``keep_hidden`` keeps its hidden states, which the full KL needs."""
    targets = Targets(rows.tokens_BT[rows.scored], temperature)

    def scored() -> tuple[Tensor, Tensor]:
        hidden_SD = model.forward_pass.hidden(rows)
        return hidden_SD, token_logprobs(model, hidden_SD, targets)

    hidden_SD, logprobs_S = model.as_forward(scored)
    return ReferenceLogprobs(model, logprobs_S, hidden_SD if keep_hidden else None)
