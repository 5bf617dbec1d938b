"""Causal attention by plain products in bfloat16, for learning on a processor that multiplies in it.

The fused kernel computes each head's products by the BLAS in float32, at about a tenth of the rate of oneDNN's batched
products in bfloat16. Weights are kept for the backward pass here, so rows must be short (`LONGEST`). As in the `eager`
attention of `transformers`, scores and weights are rounded, and the softmax between them is computed in float32.

Letters in shapes: P prompts of L tokens, G rows of R tokens per prompt (without prompts P rows, G = 1), J key heads, each with
S query heads; head dimension d. The order P, J, G, S, R makes the rows' own products and those with the prompt views of the
same queries: [P J G, S R, d] and [P J, G S R, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 256
"""The most slots, prompt included, that a token attends to by products; beyond, the kept weights would take much memory."""


def attention_by_products(queries: Tensor, keys: Tensor, values: Tensor, scale: float, *prefix: Tensor) -> Tensor:
    """Return what `selfcorrect.models.cpu.prefix_attention.causal_attention` returns, whose arguments these are."""
    rows, length, heads, width = queries.shape
    prompts = len(prefix[0]) if prefix else rows
    # [P G, R, J S, d] -> [P, G, R, J, S, d] -> [P, J, G, S, R, d], and twice [P G, R, J, d] -> [P, J, G, R, d]
    q = (queries * scale).view(prompts, -1, length, keys.shape[2], heads // keys.shape[2], width)
    k, v = (tensor.view(prompts, -1, *tensor.shape[1:]).permute(0, 3, 1, 2, 4) for tensor in (keys, values))
    shared = (tensor.transpose(1, 2) for tensor in prefix)  # [P, J, L, d]
    out: Tensor = _Products.apply(q.permute(0, 3, 1, 4, 2, 5), k, v, *shared)
    return out.permute(0, 2, 4, 1, 3, 5).reshape(queries.shape)


class _Products(torch.autograd.Function):
    """Attention of scaled queries [P, J, G, S, R, d] to keys and values [P, J, G, R, d], and to prompts' [P, J, L, d]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, *given: Tensor) -> Tensor:
        queries, *pieces = (tensor.contiguous() for tensor in (queries, *given))
        weights = _weights(queries, pieces[::2])
        out = torch.zeros_like(queries)
        for of_piece, values in zip(weights, pieces[1::2], strict=True):
            out += torch.bmm(of_piece, _flat(values)).view(out.shape)
        ctx.save_for_backward(queries, out, *pieces, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        queries, out, *saved = ctx.saved_tensors
        grad = grad.contiguous()
        mean = (grad.float() * out).sum(-1, keepdim=True)  # of the weights' gradients, by the weights
        count = len(saved) // 3
        grad_queries, found = torch.zeros_like(queries), []
        for keys, values, weights in zip(*(saved[: 2 * count][i::2] for i in (0, 1)), saved[2 * count :], strict=True):
            q, g = _beside(queries, keys), _beside(grad, keys)
            grad_scores = torch.bmm(g, _flat(values).transpose(1, 2)).float().sub_(_beside(mean, keys)).mul_(weights)
            grad_scores = grad_scores.to(q.dtype)
            grad_queries += torch.bmm(grad_scores, _flat(keys)).view(queries.shape)
            found.append(torch.bmm(grad_scores.transpose(1, 2), q).view(keys.shape))
            found.append(torch.bmm(weights.transpose(1, 2), g).view(values.shape))
        return grad_queries, *found


def _weights(queries: Tensor, keys: Sequence[Tensor]) -> list[Tensor]:
    """Return each piece's weights as matrices: [P J G, S R, R] of the rows themselves, then [P J, G S R, L] of prompts."""
    scores = [torch.bmm(_beside(queries, k), _flat(k).transpose(1, 2)).view(*queries.shape[:-1], -1) for k in keys]
    length = queries.shape[-2]
    scores[0] += queries.new_full((length, length), -torch.inf).triu_(1)
    weights = torch.softmax(torch.cat(scores, -1).float(), -1).to(queries.dtype)
    split = weights.split([piece.shape[-1] for piece in scores], -1)
    return [_beside(piece, k) for piece, k in zip(split, keys, strict=True)]


def _beside(rows: Tensor, keys: Tensor) -> Tensor:
    """Return rows [P, J, G, S, R, x] as matrices, one for each of the keys': [P J G, S R, x] or, of prompts, [P J, G S R, x]."""
    return rows.reshape(keys.shape[:-2].numel(), -1, rows.shape[-1])


def _flat(keys: Tensor) -> Tensor:
    """Return keys or values as matrices: [P J G, R, d], or [P J, L, d] of prompts."""
    return keys.flatten(0, -3)
