"""Causal attention over rows that may share a prefix, on a CPU, in pieces that are never padded with masks.

A softmax over two sets of keys is made of the softmaxes over each: with their log-sums l1 and l2 and l = log(e^l1 + e^l2),
the output is o1 e^(l1 - l) + o2 e^(l2 - l). Backward needs no more: the kernel's own backward pass, given the whole
output and l, is right for either piece. So a prompt that several rows share keeps one set of keys and values; all the
rows' queries look at it in one call, and their gradients add up in it.

Query heads that share a key head (grouped-query attention) are taken one set after another, so no key is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

FEW_QUERIES = 8
"""So many queries a key head look at a cache by two products; the fused kernel has more to do around them than in them."""


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, prefix: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Attention of each row's tokens to those before them in the row, and to all of the row's prefix.

    Args:
        queries: [N, R, H, d]; rows that are shorter are padded on the right, and what stands there is never read.
        keys: [N, R, J, d] of J key heads, H a multiple of J; head h looks at key head h // (H / J).
        values: as the keys.
        scale: of the scores.
        prefix: keys and values [P, L, J, d] of prefixes, each of N / P rows that stand side by side.

    Returns:
        [N, R, H, d].
    """
    found: Tensor = _Attention.apply(queries, keys, values, scale, *(prefix or (None, None)))
    return found


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Keys and values [P, J, L, d] which rows look at before their own; those who have the same ones look at them together.

    Attributes:
        keys: of P prompts.
        values: as the keys.
        mask: what is added to the scores [P, L], -inf where there is no token; None: nothing.
        of_B: of every row its prompt.
        group: G, so many rows at the most have the same prompt.
        place_B: of every row its place among P x G; None if the rows fill them in order.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    of_B: Tensor
    group: int
    place_B: Tensor | None

    def scores(self, queries: Tensor) -> Tensor:
        """[B, J, Q, L] of scaled queries [B, J, Q, d]."""
        found = torch.bmm(self._by_prompt(queries), self.keys.flatten(0, 1).transpose(1, 2))
        if self.mask is not None:
            found.unflatten(0, self.keys.shape[:2]).add_(self.mask[:, None, None])
        return self._by_row(found, queries.shape[2])

    def mixed(self, weights: Tensor) -> Tensor:
        """What weights [B, J, Q, L] make of the values: [B, J, Q, d]."""
        return self._by_row(torch.bmm(self._by_prompt(weights), self.values.flatten(0, 1)), weights.shape[2])

    def before(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Copies for every row, in front of its own keys, values and mask [B, 1, Q, L]."""
        if mask is not None or self.mask is not None:
            rows, queries = len(keys), 1 if mask is None else mask.shape[2]
            own = keys.new_zeros(rows, 1, queries, keys.shape[2]) if mask is None else mask
            shared = own.new_zeros(len(self.keys), self.keys.shape[2]) if self.mask is None else self.mask
            mask = torch.cat([shared[self.of_B, None, None].expand(-1, -1, queries, -1), own], -1)
        return torch.cat([self.keys[self.of_B], keys], 2), torch.cat([self.values[self.of_B], values], 2), mask

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[P J, G Q, X] of [B, J, Q, X]."""
        prompts = len(self.keys)
        if self.place_B is not None:
            rows = rows.new_zeros(prompts * self.group, *rows.shape[1:]).index_copy_(0, self.place_B, rows)
        by_prompt: Tensor = rows.unflatten(0, (prompts, self.group)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return by_prompt

    def _by_row(self, found: Tensor, queries: int) -> Tensor:
        """Back."""
        rows: Tensor = (
            found.unflatten(1, (self.group, queries)).unflatten(0, self.keys.shape[:2]).transpose(1, 2).flatten(0, 1)
        )
        return rows if self.place_B is None else rows[self.place_B]


def cached_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None, shared: SharedPrefix | None = None
) -> Tensor:
    """Attention of new tokens [B, H, S, d] to all slots of a cache [B, J, L, d], with what the mask adds [B, 1, S, L].

    The queries of the heads that share a key head go together, so a cache is read once. Slots that are ``shared`` come
    before the rows' own. No gradients.
    """
    rows, heads, length, width = queries.shape
    sets = heads // keys.shape[1]
    together = queries.reshape(rows, keys.shape[1], sets * length, width)
    if mask is not None and sets > 1:
        mask = mask.repeat(1, 1, sets, 1)
    if sets * length <= FEW_QUERIES and queries.dtype in (torch.float32, torch.float64):
        found = _by_products(together * scale, keys, values, mask, shared)
    else:
        if shared is not None:
            keys, values, mask = shared.before(keys, values, mask)
        found = _FORWARD(together, keys, values, 0.0, False, attn_mask=mask, scale=scale)[0]
    return found.reshape(rows, heads, length, width)


def _by_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, shared: SharedPrefix | None
) -> Tensor:
    """Attention of scaled queries [B, J, Q, d] to keys and values [B, J, L, d], whose first two dimensions are never copied."""
    scores = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(0, queries.shape[:2])
    if mask is not None:
        scores += mask
    if shared is None:
        found = torch.bmm(torch.softmax(scores, -1).flatten(0, 1), values.flatten(0, 1))
        return found.view(queries.shape)
    weights = torch.softmax(torch.cat([shared.scores(queries), scores], -1), -1)
    of_shared, of_own = weights.split([shared.keys.shape[2], keys.shape[2]], -1)
    found = torch.bmm(of_own.flatten(0, 1), values.flatten(0, 1))
    return found.view(queries.shape).add_(shared.mixed(of_shared))


class _Attention(torch.autograd.Function):
    """`causal_attention`, set of query heads by set of query heads."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, *prefix: Any) -> Tensor:
        queries, keys, values = queries.contiguous(), keys.contiguous(), values.contiguous()
        out = torch.empty_like(queries)
        sums = []
        for of_heads, result in zip(_sets(queries, keys), _sets(out, keys), strict=True):
            own, lse = _FORWARD(_heads(of_heads), _heads(keys), _heads(values), 0.0, True, scale=scale)
            if prefix[0] is None:
                result.copy_(_heads(own))
                sums.append(lse)
                continue
            many = (len(prefix[0]), -1, *of_heads.shape[2:])
            other, other_lse = _FORWARD(_heads(of_heads.view(many)), *map(_heads, prefix), 0.0, False, scale=scale)
            sums.append(_merge(own, lse, other, other_lse, result))
        ctx.scale = scale
        ctx.save_for_backward(queries, keys, values, out, *prefix, *sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, out, *rest = ctx.saved_tensors
        prefix, sums = rest[:2], rest[2:]
        grad = grad.contiguous()
        grad_queries = torch.empty_like(queries)
        totals: list[list[Tensor]] = []
        for of_heads, result, g, into, lse in zip(
            *(_sets(tensor, keys) for tensor in (queries, out, grad, grad_queries)), sums, strict=True
        ):
            grads = _BACKWARD(
                _heads(g),
                _heads(of_heads),
                _heads(keys),
                _heads(values),
                _heads(result),
                lse,
                0.0,
                True,
                scale=ctx.scale,
            )
            into.copy_(_heads(grads[0]))
            found = [_heads(grads[1]), _heads(grads[2])]
            if prefix[0] is not None:
                count = len(prefix[0])
                many = (count, -1, *of_heads.shape[2:])
                lse_PJQ = lse.transpose(1, 2).reshape(count, -1, lse.shape[1]).transpose(1, 2).contiguous()
                grads = _BACKWARD(
                    _heads(g.view(many)), _heads(of_heads.view(many)), *map(_heads, prefix), _heads(result.view(many)),
                    lse_PJQ, 0.0, False, scale=ctx.scale,
                )  # fmt: skip
                into.add_(_heads(grads[0]).reshape(into.shape))
                found += [_heads(grads[1]), _heads(grads[2])]
            totals.append(found)
        added = [pieces[0] if len(pieces) == 1 else sum(pieces[1:], pieces[0]) for pieces in zip(*totals, strict=True)]
        prefixes = added[2:] if prefix[0] is not None else [None, None]
        return grad_queries, added[0], added[1], None, *prefixes


def _merge(own: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor, out: Tensor) -> Tensor:
    """Write the attention over both sets of keys into ``out`` [N, R, J, d]; the log-sum over both, [N, J, R].

    ``own`` is [N, J, R, d] and ``other`` [P, J, N / P R, d], each with its log-sums.
    """
    lse_NRJ = lse.transpose(1, 2)
    other_NRJ = other_lse.transpose(1, 2).reshape(lse_NRJ.shape)
    both_NRJ = torch.logaddexp(lse_NRJ, other_NRJ)
    torch.mul(_heads(own), (lse_NRJ - both_NRJ).exp_()[..., None].to(own), out=out)
    out.addcmul_(_heads(other).reshape(out.shape), (other_NRJ - both_NRJ).exp_()[..., None].to(own))
    return both_NRJ.transpose(1, 2).contiguous()


def _sets(tensor: Tensor, keys: Tensor) -> list[Tensor]:
    """[N, R, H, d] as H / J views [N, R, J, d], the i-th with the i-th head of every key head's."""
    heads = keys.shape[2]
    parts = tensor.view(*tensor.shape[:2], heads, -1, tensor.shape[3])
    return [parts[:, :, :, i] for i in range(parts.shape[3])]


def _heads(tensor: Tensor) -> Tensor:
    """Heads before tokens, or back."""
    return tensor.transpose(1, 2)
