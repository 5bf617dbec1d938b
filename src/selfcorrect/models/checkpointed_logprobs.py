"""Token log-probabilities, entropies and KL from calls of the head alone: the reference for `chunked_logprobs`.

The code never reads the head's weight, so the weight may be sharded (FSDP2 gathers its DTensors only while the modules
run). It is slower than `chunked_logprobs` and, in bfloat16, rounds the gradient of the head's weight once per chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfcorrect.models.chunked_logprobs import Targets, chunks, temperate_logits
from selfcorrect.models.scorable import Scorable


def logprobs_entropy_kl(model: Scorable, hidden_SD: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi [S], entropy [S] and the exact KL(pi || r) [R, S] for each of R references r.

    The entropy has no gradient. The backward pass recomputes the logits chunk by chunk, so only one chunk is in memory.
    """
    parts = [
        checkpoint(_of_chunk, model, hidden_SD[chunk], targets, chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks(model, len(hidden_SD))
    ]
    logp, entropy, kl = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy), torch.cat(kl, 1)


def _of_chunk(model: Scorable, hidden_SD: Tensor, targets: Targets, chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
    logp_SV = torch.log_softmax(temperate_logits(model, hidden_SD, targets.temperature), -1)
    p_SV = logp_SV.exp()
    kl_RS = []
    for reference, its_hidden_SD in targets.references:
        with torch.no_grad():
            its_logits_SV = temperate_logits(reference, its_hidden_SD[chunk], targets.temperature)
        kl_RS.append((p_SV * (logp_SV - torch.log_softmax(its_logits_SV, -1))).sum(-1))
    logp_S = logp_SV.gather(-1, targets.target_S[chunk, None])[:, 0]
    with torch.no_grad():
        entropy_S = -(p_SV * logp_SV).sum(-1)
    return logp_S, entropy_S, torch.stack(kl_RS) if kl_RS else logp_S.new_zeros((0, len(logp_S)))
