"""The gradient of a log-softmax by torch's own kernel: one pass over the logits, where the public operators take three."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_log_softmax_gradient(grad_SV: Tensor, logp_SV: Tensor) -> Tensor:
    """Return the gradient of the logits [S, V], given that of their log-probabilities and these themselves."""
    found: Tensor = torch.ops.aten._log_softmax_backward_data(grad_SV, logp_SV, -1, logp_SV.dtype)
    return found
