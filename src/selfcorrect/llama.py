"""A forward pass of our own for models of Llama's shape, on a CPU: what scoring and sampling need, and nothing else.

It computes with the model's own layers and weights (adapters too), so nothing has to be copied or saved. What it does
that a general forward pass cannot:

1. Tokens of all rows stand side by side without padding; only attention sees rows (`selfcorrect.attention`).
2. A prompt is read once for all rows that begin with it.
3. The last layer's output is computed only where a token is predicted that somebody wants.
4. Norms and rotations are single steps with backward passes of their own.

Which models: those whose decoder is built as Llama's is, see `LlamaPass.of`; all others take the general way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selfcorrect.attention import cached_attention, causal_attention

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class LlamaPass:
    """The forward pass over a Hugging Face decoder."""

    def __init__(self, decoder: Any, config: Any) -> None:
        self.decoder = decoder
        self.layers = len(decoder.layers)
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads

    @classmethod
    def of(cls, model: Any) -> LlamaPass | None:
        """The pass for this model, or None where its decoder is of another kind."""
        config, decoder = model.config, model.get_decoder()
        if getattr(config, "model_type", None) not in MODEL_TYPES:
            return None
        kinds = getattr(config, "layer_types", None)
        sliding = getattr(config, "sliding_window", None) if kinds is None else set(kinds) != {"full_attention"}
        return None if sliding else cls(decoder, config)

    def hidden(self, layout: Layout, wanted: Tensor) -> Tensor:
        """Hidden states [S, D] of the ``wanted`` places of the layout."""
        hidden_TD: Tensor = self.decoder.embed_tokens(layout.ids_T)
        cos, sin = self._rotations(layout.position_T)
        for i, layer in enumerate(self.decoder.layers):
            queries, keys, values = self._projections(layer, hidden_TD, cos, sin)
            mixed_TX = layout.attend(queries, keys, values, layer.self_attn.scaling).flatten(1)
            if i + 1 == self.layers:
                hidden_TD, mixed_TX = hidden_TD[wanted], mixed_TX[wanted]
            hidden_TD = self._rest_of(layer, hidden_TD, mixed_TX)
        return _norm(self.decoder.norm, hidden_TD)

    def read(
        self, layers: Sequence[Any], ids_BS: Tensor, mask_BL: Tensor, position_BS: Tensor, last_B: Tensor
    ) -> Tensor:
        """Read ids after what the cache's layers hold, and put them there: hidden states [B, D] at ``last_B``.

        ``mask_BL`` marks the cache's slots that hold tokens, the new ones among them. No gradients.
        """
        rows, length = ids_BS.shape
        hidden_TD: Tensor = self.decoder.embed_tokens(ids_BS.flatten())
        cos, sin = self._rotations(position_BS.flatten())
        mask = _mask(mask_BL, length, hidden_TD.dtype)
        wanted = torch.arange(rows, device=ids_BS.device) * length + last_B
        for i, (layer, slots) in enumerate(zip(self.decoder.layers, layers, strict=True)):
            new = self._projections(layer, hidden_TD, cos, sin)
            queries, keys, values = (tensor.unflatten(0, (rows, length)).transpose(1, 2) for tensor in new)
            keys, values = slots.update(keys, values)
            mixed = cached_attention(queries, keys, values, layer.self_attn.scaling, mask)
            mixed_TX = mixed.transpose(1, 2).reshape(rows * length, -1)
            if i + 1 == self.layers and length > 1:
                hidden_TD, mixed_TX = hidden_TD[wanted], mixed_TX[wanted]
            hidden_TD = self._rest_of(layer, hidden_TD, mixed_TX)
        return _norm(self.decoder.norm, hidden_TD)

    def _rotations(self, position_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, d / 2]."""
        like = self.decoder.embed_tokens.weight
        cos, sin = self.decoder.rotary_emb(like, position_T[None])
        half = cos.shape[-1] // 2
        return cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    def _projections(self, layer: Any, hidden_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = layer.self_attn
        inner_TD = _norm(layer.input_layernorm, hidden_TD)
        queries = attention.q_proj(inner_TD).unflatten(-1, (self.heads, -1))
        keys = attention.k_proj(inner_TD).unflatten(-1, (self.key_heads, -1))
        values = attention.v_proj(inner_TD).unflatten(-1, (self.key_heads, -1))
        if hasattr(attention, "q_norm"):
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return _Rotated.apply(queries, cos, sin), _Rotated.apply(keys, cos, sin), values

    def _rest_of(self, layer: Any, hidden_TD: Tensor, mixed_TX: Tensor) -> Tensor:
        hidden_TD = hidden_TD + layer.self_attn.o_proj(mixed_TX)
        mlp = layer.mlp
        inner_TD = _norm(layer.post_attention_layernorm, hidden_TD)
        change_TD: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(inner_TD)) * mlp.up_proj(inner_TD))
        return hidden_TD + change_TD


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows whose prompts are equally long, as many rows for each prompt: places among the prompts and among the rows."""

    prompts: slice
    rows: slice
    length: int


@dataclass(frozen=True, eq=False)
class Block:
    """Rows side by side: where their tokens lie in the flat order, and where in [N, R]."""

    tokens: slice
    count: int
    longest: int
    places: Tensor | None
    """Of every flat token its place among the N x R; None if the rows are all equally long."""

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int) -> Block:
        longest, total = max(lengths), sum(lengths)
        places = None
        if total != longest * len(lengths):
            places = torch.tensor([n * longest + r for n, length in enumerate(lengths) for r in range(length)])
        return cls(slice(begin, begin + total), len(lengths), longest, places)

    def rows(self, flat: Tensor) -> Tensor:
        """[N, R, ...] of [T, ...]."""
        own: Tensor = flat[self.tokens]
        if self.places is not None:
            own = own.new_zeros(self.count * self.longest, *own.shape[1:]).index_copy(0, self.places, own)
        return own.view(self.count, self.longest, *own.shape[1:])

    def flat(self, rows: Tensor) -> Tensor:
        """Back."""
        found = rows.flatten(0, 1)
        return found if self.places is None else found[self.places]


@dataclass(frozen=True, eq=False)
class Layout:
    """Distinct prompts, then what follows them row by row, as one line of T tokens."""

    ids_T: Tensor
    position_T: Tensor
    prompts: Block | None
    rests: Block
    buckets: Sequence[Bucket]
    start_B: Tensor
    """Of every row, in the order given, where what follows its prompt begins."""
    prompt_end_B: Tensor
    """Of every row the place after its prompt's last token."""
    prompt_B: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], prompt_lengths: Sequence[int] | None = None) -> Layout:
        """Of rows of ids that begin with prompts of these lengths, which are read once; None: nothing is shared.

        Every row has more tokens than its prompt.
        """
        lengths = [0] * len(rows) if prompt_lengths is None else list(prompt_lengths)
        members: dict[tuple[int, ...], list[int]] = {}
        for b, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            members.setdefault(tuple(row[:length]), []).append(b)
        # Like prompts side by side, so that a bucket is a slice of them.
        prompts = sorted(members, key=lambda prompt: (len(prompt), len(members[prompt])))
        line = _Line()
        ends = {prompt: line.add(prompt, 0) for prompt in prompts}
        block = Block.of([len(prompt) for prompt in prompts], 0) if line.ids else None
        begin, starts, rests = len(line.ids), [0] * len(rows), []
        for prompt in prompts:
            for b in members[prompt]:
                starts[b] = len(line.ids)
                rests.append(rows[b][len(prompt) :])
                line.add(rests[-1], len(prompt))
        return cls(
            torch.tensor(line.ids),
            torch.tensor(line.positions),
            block,
            Block.of([len(rest) for rest in rests], begin),
            _buckets([(len(prompt), len(members[prompt])) for prompt in prompts]),
            torch.tensor(starts),
            torch.tensor([ends[tuple(row[:length])] for row, length in zip(rows, lengths, strict=True)]),
            torch.tensor(lengths),
        )

    def before(self, row_S: Tensor, position_S: Tensor) -> Tensor:
        """The places of the tokens before these positions of these rows: those that predict them."""
        place_S = position_S - 1 - self.prompt_B[row_S]
        return torch.where(place_S < 0, self.prompt_end_B[row_S] + place_S, self.start_B[row_S] + place_S)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Attention of every token to its row's earlier ones: [T, H, d]."""
        q, k, v = (self.rests.rows(tensor) for tensor in (queries, keys, values))
        if self.prompts is None:
            return self.rests.flat(causal_attention(q, k, v, scale=scale))
        of_prompts = [self.prompts.rows(tensor) for tensor in (queries, keys, values)]
        first = self.prompts.flat(causal_attention(*of_prompts, scale=scale))
        found = []
        for bucket in self.buckets:
            prefix = of_prompts[1][bucket.prompts, : bucket.length], of_prompts[2][bucket.prompts, : bucket.length]
            own = [tensor[bucket.rows] for tensor in (q, k, v)]
            found.append(causal_attention(*own, scale=scale, prefix=prefix if bucket.length else None))
        return torch.cat([first, self.rests.flat(torch.cat(found) if len(found) > 1 else found[0])])


class _Line:
    """Tokens in a line, with their positions."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []

    def add(self, ids: Sequence[int], first: int) -> int:
        """Put some at the end, the first at this position; where they end."""
        self.ids += ids
        self.positions += range(first, first + len(ids))
        return len(self.ids)


def _buckets(kinds: Sequence[tuple[int, int]]) -> list[Bucket]:
    """Of each prompt's length and number of rows: prompts of the same kind stand side by side and make a bucket."""
    found, prompt, row = [], 0, 0
    for (length, rows), same in groupby(kinds):
        count = len(list(same))
        found.append(Bucket(slice(prompt, prompt + count), slice(row, row + count * rows), length))
        prompt, row = prompt + count, row + count * rows
    return found


def _mask(mask_BL: Tensor, length: int, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores [B, 1, S, L] of the last S slots: -inf where a token must not look; None if nothing."""
    slots = mask_BL.shape[1]
    if length == 1 and bool(mask_BL.all()):
        return None
    order = torch.arange(slots, device=mask_BL.device)
    seen_BSL = mask_BL[:, None] & (order <= order[slots - length :, None])
    return torch.zeros(seen_BSL.shape, dtype=dtype, device=mask_BL.device).masked_fill_(~seen_BSL, -torch.inf)[:, None]


def _norm(module: Any, x_TD: Tensor) -> Tensor:
    epsilon = module.eps if isinstance(module, nn.RMSNorm) else module.variance_epsilon
    normed_TD: Tensor = _Normed.apply(x_TD, module.weight, epsilon)
    return normed_TD


class _Normed(torch.autograd.Function):
    """Root mean square norm: w x / sqrt(mean(x^2) + epsilon)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = x_TD.float() if x_TD.dtype in (torch.bfloat16, torch.float16) else x_TD
        inverse_T1 = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / wide.shape[-1] + epsilon
        ).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, inverse_T1)
        normed_TD: Tensor = (wide * inverse_T1).to(x_TD.dtype)
        return normed_TD.mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_D, inverse_T1 = ctx.saved_tensors
        wide, grad = x_TD.to(inverse_T1), grad_TD.to(inverse_T1)
        product_TD = grad * wide
        dot_T1 = (product_TD @ weight_D.to(inverse_T1))[:, None]
        grad_weight = (inverse_T1[:, 0] @ product_TD).to(weight_D) if ctx.needs_input_grad[1] else None
        found = (grad * weight_D).mul_(inverse_T1)
        found.addcmul_(wide, dot_T1 * inverse_T1**3, value=-1.0 / wide.shape[-1])
        return found.to(x_TD.dtype), grad_weight, None


class _Rotated(torch.autograd.Function):
    """Rotary position embedding of [T, H, d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, sign=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, sign=1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, *, sign: int) -> Tensor:
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    one, two = x[..., :half], x[..., half:]
    torch.mul(one, cos, out=out[..., :half]).addcmul_(two, sin, value=sign)
    torch.mul(two, cos, out=out[..., half:]).addcmul_(one, sin, value=-sign)
    return out
