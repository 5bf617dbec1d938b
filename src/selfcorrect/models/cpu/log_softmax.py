"""The gradient of a log-softmax through torch's kernel: one pass over the logits; the public operators take three."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_log_softmax_gradient(grad_SV: Tensor, logp_SV: Tensor) -> Tensor:
    """Return the gradient of the logits [S, V] from the log-probabilities [S, V] and their gradient."""
    found: Tensor = torch.ops.aten._log_softmax_backward_data(grad_SV, logp_SV, -1, logp_SV.dtype)
    return found
