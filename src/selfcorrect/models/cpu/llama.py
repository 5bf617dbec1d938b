"""The fast forward pass for Llama-like models on a CPU, limited to the needs of scoring and sampling.

It computes with the model's layers and weights, adapters included, so nothing is copied or saved. It differs from the
general forward pass in five ways:

1. The tokens of all rows form one line without padding; only attention sees rows (`selfcorrect.models.cpu.packing`).
2. A prompt is read once for all rows that begin with it.
3. The last layer's output is computed only at the positions that the caller asks for.
4. Norms and rotations are single autograd steps with handwritten backward passes.
5. Sampling computes queries, keys and values in one product and attends to its cache with plain products
   (`selfcorrect.models.cpu.prefix_attention.cached_attention`).

`CPULlamaForward.of` decides which models qualify; all others use `selfcorrect.models.forward.GeneralForward`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.cache_utils import Cache

from selfcorrect.models.cpu.onednn_linear import FusedLinear, with_adapter_inside
from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.cpu.prefix_attention import SharedPrefix, cached_attention, takes_products
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.forward import NewTokens, ScoredRows, token_positions
from selfcorrect.models.lora import below_adapters
from selfcorrect.models.selection import rows_at

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class CPULlamaForward:
    """The forward pass over a Hugging Face decoder.

    Args:
        decoder: the model's decoder.
        config: the model's configuration.
        adapter_on: returns a context in which this view's adapter is active.
    """

    def __init__(self, decoder: Any, config: Any, adapter_on: Callable[[], AbstractContextManager[None]]) -> None:
        self.decoder, self._adapter_on = decoder, adapter_on
        self.layers = len(decoder.layers)
        self.heads = config.num_attention_heads
        self.key_heads = config.num_key_value_heads
        self._fused: dict[int, FusedLinear] = {}
        self._merged: dict[nn.Module, FusedLinear] = {}

    @classmethod
    def of(cls, model: Any, adapter_on: Callable[[], AbstractContextManager[None]]) -> CPULlamaForward | None:
        """Return the forward pass of this model, or None if its decoder is not Llama-like or has a sliding window."""
        config, decoder = model.config, model.get_decoder()
        if getattr(config, "model_type", None) not in MODEL_TYPES:
            return None
        kinds = getattr(config, "layer_types", None)
        sliding = getattr(config, "sliding_window", None) if kinds is None else set(kinds) != {"full_attention"}
        return None if sliding else cls(decoder, config, adapter_on)

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows attend to one copy of a prompt's keys while sampling: only if attention runs as plain products."""
        return takes_products(self.decoder.embed_tokens.weight.dtype, self.heads // self.key_heads)

    @contextlib.contextmanager
    def fused(self, rows: int, adapter: str | None = None) -> Iterator[Collection[nn.Module]]:
        """Within the block, let `read` compute a layer's queries, keys and values in one product where they are plain layers.

        Layers under LoRA adapters compute with the merged weight (their weight plus the update of ``adapter``). Yields
        the plain layers that are bypassed. For batches of about ``rows`` rows; the weights must not change meanwhile.
        """
        spared: set[nn.Module] = set()
        try:
            for i, layer in enumerate(self.decoder.layers):
                attention, mlp = layer.self_attn, layer.mlp
                parts = [attention.q_proj, attention.k_proj, attention.v_proj]
                fused = None if hasattr(attention, "q_norm") else FusedLinear.of(parts, rows, adapter)
                if fused is not None:
                    self._fused[i] = fused
                    spared.update(map(below_adapters, parts))
                rest = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
                for part in rest if fused is not None else [*parts, *rest]:
                    merged = FusedLinear.of([part], rows, adapter) if below_adapters(part) is not part else None
                    if merged is not None:
                        self._merged[part] = merged
                        spared.add(below_adapters(part))
            yield spared
        finally:
            self._fused.clear()
            self._merged.clear()

    def hidden(self, rows: ScoredRows) -> Tensor:
        """Return the hidden state that predicts each scored token: [S, D]."""
        row_S, slot_S = rows.scored
        position_S = token_positions(rows.mask_BT)[row_S, slot_S]
        return self.hidden_at(rows.packed, rows.packed.before(row_S, position_S))

    def hidden_at(self, packed: PackedSequences, wanted_S: Tensor) -> Tensor:
        """Return the hidden states [S, D] of the tokens at these indices of the packed line."""
        with self._adapter_on():
            return self._hidden(packed, wanted_S)

    def _hidden(self, packed: PackedSequences, wanted_S: Tensor) -> Tensor:
        hidden_TD: Tensor = self.decoder.embed_tokens(packed.ids_T)
        cos, sin = self._rotations(packed.position_T)
        for i, layer in enumerate(self.decoder.layers):
            inner_TD = _norm(layer.input_layernorm, hidden_TD)
            queries, keys, values = self._projections(layer, inner_TD, cos, sin)
            mixed_TX = packed.attend(queries, keys, values, layer.self_attn.scaling).flatten(1)
            if i + 1 == self.layers:  # no later layer attends to the other tokens
                hidden_TD, mixed_TX = rows_at(hidden_TD, wanted_S), rows_at(mixed_TX, wanted_S)
            hidden_TD = self._rest_of(layer, hidden_TD, mixed_TX, _norm)
        return _norm(self.decoder.norm, hidden_TD)

    def read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None = None) -> Tensor:
        """Append new tokens to the cache and return their hidden states [B, D] at ``new.last_B``."""
        with self._adapter_on():
            return self._read(cache, new, prefix)

    def _read(self, cache: Cache, new: NewTokens, prefix: Sequence[SharedPrefix] | None) -> Tensor:
        rows, length = new.ids_BS.shape
        hidden_TD: Tensor = self.decoder.embed_tokens(new.ids_BS.flatten())  # T = B S
        cos, sin = self._rotations(new.position_BS.flatten())
        mask_B1SL = _mask(new.mask_BL, length, hidden_TD.dtype)
        wanted_B = torch.arange(rows, device=new.ids_BS.device) * length + new.last_B
        for i, layer in enumerate(self.decoder.layers):
            inner_TD = _norm_alone(layer.input_layernorm, hidden_TD)
            made = self._by_one_product(i, inner_TD, cos, sin) or self._projections(layer, inner_TD, cos, sin)
            # [B, H, S, d] and [B, J, S, d]; the cache returns all its slots, [B, J, L, d]
            queries, keys, values = (tensor.unflatten(0, (rows, length)).transpose(1, 2) for tensor in made)
            keys, values = cache.update(keys, values, i)
            mixed = cached_attention(
                queries, keys, values, layer.self_attn.scaling, mask_B1SL, prefix[i] if prefix else None
            )
            mixed_TX = mixed.transpose(1, 2).reshape(rows * length, -1)  # X = H d
            if i + 1 == self.layers and length > 1:
                hidden_TD, mixed_TX = hidden_TD[wanted_B], mixed_TX[wanted_B]
            hidden_TD = self._rest_of(layer, hidden_TD, mixed_TX, _norm_alone)
        return _norm_alone(self.decoder.norm, hidden_TD)

    def _rotations(self, position_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [T, 1, d], with the first half of the sines negated for `_turned`."""
        like = self.decoder.embed_tokens.weight
        cos, sin = self.decoder.rotary_emb(like, position_T[None])
        half = sin.shape[-1] // 2
        return cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], -1)

    def _by_one_product(self, i: int, inner_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...] | None:
        """Return the result of `_projections` in one product, or None if layer i is not fused. No gradients."""
        fused = self._fused.get(i)
        if fused is None:
            return None
        together = fused(inner_TD).unflatten(-1, (self.heads + 2 * self.key_heads, -1))
        turned = _turned(together[:, : -self.key_heads], cos, sin)
        return turned[:, : self.heads], turned[:, self.heads :], together[:, -self.key_heads :]

    def _projections(self, layer: Any, inner_TD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Return queries [T, H, d], keys and values [T, J, d] from the normed input [T, D] of attention."""
        attention = layer.self_attn
        queries = self._by(attention.q_proj)(inner_TD).unflatten(-1, (self.heads, -1))
        keys = self._by(attention.k_proj)(inner_TD).unflatten(-1, (self.key_heads, -1))
        values = self._by(attention.v_proj)(inner_TD).unflatten(-1, (self.key_heads, -1))
        if hasattr(attention, "q_norm"):
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return _Rotated.apply(queries, cos, sin), _Rotated.apply(keys, cos, sin), values

    def _rest_of(
        self, layer: Any, hidden_TD: Tensor, mixed_TX: Tensor, norm: Callable[[Any, Tensor], Tensor]
    ) -> Tensor:
        """Return the layer's output [T, D] from its input [T, D] and the attention's result [T, H d]."""
        hidden_TD = hidden_TD + self._by(layer.self_attn.o_proj)(mixed_TX)
        mlp = layer.mlp
        inner_TD = norm(layer.post_attention_layernorm, hidden_TD)
        gate, up, down = map(self._by, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        return hidden_TD + down(mlp.act_fn(gate(inner_TD)) * up(inner_TD))

    def _by(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the function that computes a linear layer now: the layer, or one product with its adapter."""
        return self._merged.get(layer) or with_adapter_inside(layer) or layer


def _mask(mask_BL: Tensor, length: int, dtype: torch.dtype) -> Tensor | None:
    """Return the additive mask [B, 1, S, L] of the last S slots, -inf where a token must not attend; None if all is seen."""
    slots = mask_BL.shape[1]
    if length == 1 and bool(mask_BL.all()):
        return None
    order = torch.arange(slots, device=mask_BL.device)
    seen_BSL = mask_BL[:, None] & (order <= order[slots - length :, None])
    return torch.zeros(seen_BSL.shape, dtype=dtype, device=mask_BL.device).masked_fill_(~seen_BSL, -torch.inf)[:, None]


def _norm(module: Any, x_TD: Tensor) -> Tensor:
    normed_TD: Tensor = _Normed.apply(x_TD, module.weight, _epsilon(module))
    return normed_TD


def _norm_alone(module: Any, x_TD: Tensor) -> Tensor:
    """Return `_norm` without gradients, through torch's kernel."""
    shape, epsilon = x_TD.shape[-1:], _epsilon(module)
    if x_TD.dtype in ROUNDED:  # rounded before the weight, as `_Normed` and `transformers` do
        return nn.functional.rms_norm(x_TD.float(), shape, None, epsilon).to(x_TD.dtype).mul_(module.weight)
    return nn.functional.rms_norm(x_TD, shape, module.weight, epsilon)


def _epsilon(module: Any) -> float:
    return float(getattr(module, "eps" if isinstance(module, nn.RMSNorm) else "variance_epsilon"))


class _Normed(torch.autograd.Function):
    """Root mean square norm: w x r with r = 1 / sqrt(mean(x^2) + epsilon), in float32 or better.

    Only r [T, 1] is saved in addition to the inputs. The gradient of x is r w g - x r^3 <g, w x> / D.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        wide = x_TD.float() if x_TD.dtype in ROUNDED else x_TD
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
    """Rotary position embedding of [T, H, d]. Backward is the inverse rotation, so only cos and sin are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}): x_i cos - x_{i + d/2} sin and x_{i + d/2} cos + x_i sin.

    The first half of ``sin`` is already negated, so one roll gives both partners without a sign change.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
