"""Causal attention on a CPU over rows that may share a prefix, without masks.

A softmax over two sets of keys follows from the softmaxes over each. With their log-sums l1 and l2 and
l = log(e^l1 + e^l2), the output is o1 e^(l1 - l) + o2 e^(l2 - l). The backward pass needs nothing else: the kernel
computes the weights e^(score - l) and the dot product of the output with its gradient, so given the merged output and l,
it is correct for either set. A shared prompt therefore keeps one set of keys and values. The queries of all its rows
attend to it in one call, and their gradients add up in it.

Query heads that share a key head (grouped-query attention) are handled one set after another, so no key is copied.

Rounded to bfloat16, queries, keys and values are read as float32 while learning: the kernel's backward pass is twice as
fast in it. If the processor has bfloat16, short rows attend by products in it (`selfcorrect.models.cpu.causal_products`).
Sampling then attends to its cache by them too: half the bytes are read.

Letters in shapes: N rows of at most R tokens, B sampled rows, P prompts of L tokens, G rows per prompt, Q queries; H query
heads, J key heads, head dimension d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfcorrect.models.cpu.causal_products import LONGEST, attention_by_products
from selfcorrect.models.cpu.instructions import has_bfloat16
from selfcorrect.models.dtypes import ROUNDED

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

FEW_QUERIES = 8
"""The most queries per key head for which two plain products beat the fused kernel, which has more overhead."""


def takes_products(dtype: torch.dtype, queries: int) -> bool:
    """Return whether ``queries`` queries per key head attend to a cache of this dtype by plain products."""
    return queries <= FEW_QUERIES and (dtype not in ROUNDED or (dtype == torch.bfloat16 and has_bfloat16()))


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, prefix: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Let each token attend to its row up to itself, and to the row's whole prefix.

    Args:
        queries: [N, R, H, d]; shorter rows are padded on the right, and the padding is never read.
        keys: [N, R, J, d] with J key heads, H a multiple of J; query head h uses key head h // (H / J).
        values: shaped like the keys.
        scale: the factor on the scores.
        prefix: keys and values [P, L, J, d]; each prefix belongs to N / P consecutive rows.

    Returns:
        The attention output [N, R, H, d].
    """
    slots = keys.shape[1] + (prefix[0].shape[1] if prefix else 0)
    if queries.dtype == torch.bfloat16 and has_bfloat16() and slots <= LONGEST:
        return attention_by_products(queries, keys, values, scale, *(prefix or ()))
    found: Tensor = _Attention.apply(queries, keys, values, scale, *(prefix or (None, None)))
    return found


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """Keys and values [P, J, L, d] of prompts that precede the rows' own; rows with the same prompt share one copy.

    Attributes:
        keys: [P, J, L, d].
        values: shaped like the keys.
        mask: the additive mask [P, L] on the scores, -inf where there is no token; None: no mask.
        of_B: each row's prompt.
        group: G, the largest number of rows with the same prompt.
        place_B: each row's index among the P x G slots; None if the rows fill them in order.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    of_B: Tensor
    group: int
    place_B: Tensor | None

    def scores(self, queries: Tensor) -> Tensor:
        """Return the scores [B, J, Q, L] of scaled queries [B, J, Q, d]."""
        # [P J, G Q, d] @ [P J, d, L]: a prompt's keys are read once for all its rows
        found = _scores(self._by_prompt(queries), self.keys)
        if self.mask is not None:
            found.unflatten(0, self.keys.shape[:2]).add_(self.mask[:, None, None])  # [P, J, G Q, L] + [P, 1, 1, L]
        return self._by_row(found, queries.shape[2])

    def mixed(self, weights: Tensor) -> Tensor:
        """Return the sums [B, J, Q, d] of the values with weights [B, J, Q, L]."""
        return self._by_row(_mixed(self._by_prompt(weights), self.values), weights.shape[2])

    def before(self, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Copy each row's prompt in front of its own keys and values [B, J, M, d] and mask [B, 1, Q, M].

        The results have L + M slots. The fused kernel needs them in one tensor.
        """
        if mask is not None or self.mask is not None:
            rows, queries = len(keys), 1 if mask is None else mask.shape[2]
            own_B1QM = keys.new_zeros(rows, 1, queries, keys.shape[2]) if mask is None else mask
            shared_PL = own_B1QM.new_zeros(len(self.keys), self.keys.shape[2]) if self.mask is None else self.mask
            mask = torch.cat([shared_PL[self.of_B, None, None].expand(-1, -1, queries, -1), own_B1QM], -1)
        return torch.cat([self.keys[self.of_B], keys], 2), torch.cat([self.values[self.of_B], values], 2), mask

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """Group rows [B, J, Q, X] by prompt: [P J, G Q, X]."""
        prompts = len(self.keys)
        if self.place_B is not None:  # empty slots are computed too, but never read
            rows = rows.new_zeros(prompts * self.group, *rows.shape[1:]).index_copy_(0, self.place_B, rows)
        # [P G, J, Q, X] -> [P, G, J, Q, X] -> [P, J, G, Q, X] -> [P, J, G Q, X] -> [P J, G Q, X]
        by_prompt: Tensor = rows.unflatten(0, (prompts, self.group)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return by_prompt

    def _by_row(self, found: Tensor, queries: int) -> Tensor:
        """Undo `_by_prompt`: [P J, G Q, X] -> [B, J, Q, X]."""
        # [P J, G, Q, X] -> [P, J, G, Q, X] -> [P, G, J, Q, X] -> [P G, J, Q, X]
        rows: Tensor = (
            found.unflatten(1, (self.group, queries)).unflatten(0, self.keys.shape[:2]).transpose(1, 2).flatten(0, 1)
        )
        return rows if self.place_B is None else rows[self.place_B]


def cached_attention(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None, shared: SharedPrefix | None = None
) -> Tensor:
    """Let new tokens [B, H, S, d] attend to all slots of a cache [B, J, L, d], with an additive mask [B, 1, S, L].

    Query heads that share a key head are stacked, so the cache is read once. The ``shared`` slots come before the rows'
    own. Returns [B, H, S, d], without gradients.
    """
    rows, heads, length, width = queries.shape
    sets = heads // keys.shape[1]
    together = queries.reshape(rows, keys.shape[1], sets * length, width)  # [B, J, Q, d], Q = (H / J) S
    if mask is not None and sets > 1:
        mask = mask.repeat(1, 1, sets, 1)  # [B, 1, Q, L]
    if takes_products(queries.dtype, sets * length):
        found = _by_products(together * scale, keys, values, mask, shared)
    else:
        if shared is not None:
            keys, values, mask = shared.before(keys, values, mask)
        found = _FORWARD(together, keys, values, 0.0, False, attn_mask=mask, scale=scale)[0]
    return found.reshape(rows, heads, length, width)


def _by_products(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, shared: SharedPrefix | None
) -> Tensor:
    """Let scaled queries [B, J, Q, d] attend to keys and values [B, J, L, d]; return [B, J, Q, d].

    In bfloat16, scores and weights are rounded to it, as in the `eager` attention of `transformers`.
    """
    scores_BJQL = _scores(queries.flatten(0, 1), keys).unflatten(0, queries.shape[:2])
    if mask is not None:
        scores_BJQL += mask
    if shared is None:
        return _mixed(torch.softmax(scores_BJQL, -1).flatten(0, 1), values).view(queries.shape)
    # One softmax over the prompt's slots and the row's own; only the products with keys and values are separate.
    weights = torch.softmax(torch.cat([shared.scores(queries), scores_BJQL], -1), -1)
    of_shared, of_own = weights.split([shared.keys.shape[2], keys.shape[2]], -1)
    return _mixed(of_own.flatten(0, 1), values).view(queries.shape).add_(shared.mixed(of_shared))


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the products [B J, Q, L] of queries [B J, Q, d] with the keys [B, J, L, d] of a cache."""
    return torch.bmm(queries, _flat_slots(keys).transpose(1, 2))[..., : keys.shape[2]]


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sums [B J, Q, d] of a cache's values [B, J, L, d] with weights [B J, Q, L]; its free slots get the weight 0."""
    values = _flat_slots(values)
    if (free := values.shape[1] - weights.shape[2]) > 0:
        weights = nn.functional.pad(weights, (0, free))
    return torch.bmm(weights, values)


def _flat_slots(cached: Tensor) -> Tensor:
    """Return keys or values [B, J, L, d] of a cache as [B J, M, d] with M >= L slots, without a copy.

    Flattening the first L slots of larger buffers is a view. oneDNN, which multiplies in bfloat16, would copy such a view
    at every product, so it gets the whole buffer. The cache has finite numbers in its free slots.
    """
    rows, heads, slots, width = cached.shape
    room = cached.stride(1) // width
    first_slots = cached.stride() == (heads * room * width, room * width, width, 1) and room > slots
    first_slots = first_slots and cached.storage_offset() % (room * width) == 0
    if cached.dtype != torch.bfloat16 or not first_slots:
        return cached.flatten(0, 1)
    return cached.as_strided((rows * heads, room, width), (room * width, width, 1))


class _Attention(torch.autograd.Function):
    """`causal_attention`, one set of query heads after another.

    Saves the merged output and, for every set, the log-sums [N, J, R] over all keys: all that backward needs.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, *prefix: Any) -> Tensor:
        given = queries.contiguous(), keys.contiguous(), values.contiguous(), *prefix
        queries, keys, values = map(_wide, given[:3])
        prefix = tuple(map(_wide, prefix))
        out = torch.empty_like(queries)
        sums = []  # for every set, the log-sums [N, J, R] over all keys
        for of_heads, result in zip(_sets(queries, keys), _sets(out, keys), strict=True):  # views [N, R, J, d]
            own, lse_NJR = _FORWARD(_heads(of_heads), _heads(keys), _heads(values), 0.0, True, scale=scale)
            if prefix[0] is None:
                result.copy_(_heads(own))
                sums.append(lse_NJR)
                continue
            # View all rows of a prefix as one long row of queries: [N, R, J, d] -> [P, N R / P, J, d]. Not causal, because
            # every token comes after the whole prefix.
            many = (len(prefix[0]), -1, *of_heads.shape[2:])
            other, other_lse = _FORWARD(_heads(of_heads.view(many)), *map(_heads, prefix), 0.0, False, scale=scale)
            sums.append(_merge(own, lse_NJR, other, other_lse, result))
        ctx.scale = scale
        out = out.to(given[0].dtype)
        ctx.save_for_backward(*given, out, *sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dtype, sums = grad.dtype, ctx.saved_tensors[6:]
        queries, keys, values, *prefix, out, grad = map(_wide, (*ctx.saved_tensors[:6], grad.contiguous()))
        grad_queries = torch.empty_like(queries)
        totals: list[list[Tensor]] = []  # for every set: gradients of keys, values, prefix keys, prefix values
        for of_heads, result, g, into, lse_NJR in zip(
            *(_sets(tensor, keys) for tensor in (queries, out, grad, grad_queries)), sums, strict=True
        ):  # views [N, R, J, d]
            # Only the row's own keys, but the output and log-sums over both pieces, so the weights are those of the full softmax.
            grads = _BACKWARD(
                _heads(g), _heads(of_heads), _heads(keys), _heads(values), _heads(result),
                lse_NJR, 0.0, True, scale=ctx.scale,
            )  # fmt: skip
            into.copy_(_heads(grads[0]))
            found = [_heads(grads[1]), _heads(grads[2])]
            if prefix[0] is not None:
                count = len(prefix[0])
                many = (count, -1, *of_heads.shape[2:])
                # [N, J, R] -> [N, R, J] -> [P, N R / P, J] -> [P, J, N R / P]
                lse_PJQ = lse_NJR.transpose(1, 2).reshape(count, -1, lse_NJR.shape[1]).transpose(1, 2).contiguous()
                grads = _BACKWARD(
                    _heads(g.view(many)), _heads(of_heads.view(many)), *map(_heads, prefix), _heads(result.view(many)),
                    lse_PJQ, 0.0, False, scale=ctx.scale,
                )  # fmt: skip
                into.add_(_heads(grads[0]).reshape(into.shape))
                found += [_heads(grads[1]), _heads(grads[2])]  # [P, L, J, d]: the kernel has summed over the rows
            totals.append(found)
        # All sets of query heads attend to the same keys, so the gradients add up.
        added = [pieces[0] if len(pieces) == 1 else sum(pieces[1:], pieces[0]) for pieces in zip(*totals, strict=True)]
        of_keys, of_values, *of_prefix = (tensor.to(dtype) for tensor in added)
        return grad_queries.to(dtype), of_keys, of_values, None, *(of_prefix or (None, None))


def _merge(own: Tensor, lse_NJR: Tensor, other: Tensor, other_lse: Tensor, out: Tensor) -> Tensor:
    """Write the attention over both pieces into ``out`` [N, R, J, d]; return the log-sums over both, [N, J, R].

    ``own`` is [N, J, R, d] and ``other`` [P, J, N R / P, d], with log-sums [N, J, R] and [P, J, N R / P].
    """
    lse_NRJ = lse_NJR.transpose(1, 2)
    other_NRJ = other_lse.transpose(1, 2).reshape(lse_NRJ.shape)
    both_NRJ = torch.logaddexp(lse_NRJ, other_NRJ)
    torch.mul(_heads(own), (lse_NRJ - both_NRJ).exp_()[..., None].to(own), out=out)
    out.addcmul_(_heads(other).reshape(out.shape), (other_NRJ - both_NRJ).exp_()[..., None].to(own))
    return both_NRJ.transpose(1, 2).contiguous()


def _sets(tensor: Tensor, keys: Tensor) -> list[Tensor]:
    """Return H / J views [N, R, J, d] of [N, R, H, d]; view i holds the i-th query head of every key head."""
    heads = keys.shape[2]
    parts = tensor.view(*tensor.shape[:2], heads, -1, tensor.shape[3])
    return [parts[:, :, :, i] for i in range(parts.shape[3])]


def _wide(tensor: Tensor | None) -> Any:
    """Return the tensor in float32 or better; None stays None."""
    return tensor if tensor is None or tensor.dtype not in ROUNDED else tensor.float()


def _heads(tensor: Tensor) -> Tensor:
    """Swap heads and tokens: [N, R, J, d] <-> [N, J, R, d]."""
    return tensor.transpose(1, 2)
