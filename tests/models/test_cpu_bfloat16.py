"""bfloat16 on a CPU: what is rounded, what is not, and what products may read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.families import LORA, lively, of_family
from torch import Tensor, nn

from selfcorrect.engines import kv_cache
from selfcorrect.engines.kv_cache import PreallocatedLayer, Prompts, RowPrefixes
from selfcorrect.models.cpu import onednn_linear, prefix_attention
from selfcorrect.models.cpu.causal_products import attention_by_products
from selfcorrect.models.cpu.llama import CPULlamaForward
from selfcorrect.models.cpu.onednn_linear import FusedLinear, with_adapter_inside
from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.cpu.prefix_attention import cached_attention, causal_attention, takes_products
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.lora import below_adapters, factors


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend as on a processor with bfloat16: torch computes it everywhere, but elsewhere slowly."""
    monkeypatch.setattr(prefix_attention, "has_bfloat16", lambda: True)


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Callable[[LanguageModel], list[nn.Module]]:
    """Return the projections of a model's first attention, from then on taken for those of a processor with bfloat16.

    Not before: oneDNN's own products, with which a model is tried out when it is made, exist on such processors alone.
    """

    def projections(model: LanguageModel) -> list[nn.Module]:
        monkeypatch.setattr(onednn_linear, "has_bfloat16", lambda: True)
        attention = model.model.get_decoder().layers[0].self_attn
        return [attention.q_proj, attention.k_proj, attention.v_proj]

    return projections


def rounded(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention of [B, H, S, d] to [B, J, L, d] in float64, two query heads for each key head."""
    k, v = (tensor.double().repeat_interleave(2, 1) for tensor in (k, v))
    scores = 0.3 * torch.einsum("bhsd,bhld->bhsl", q.double(), k)
    return torch.softmax(scores if mask is None else scores + mask.double(), -1) @ v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("free", [0.0, 1e4])
def test_the_free_slots_of_a_cache_count_nothing(free: float, new: int, masked: bool) -> None:
    torch.manual_seed(0)
    assert takes_products(torch.bfloat16, 2 * new)
    q, buffers = rounded(2, 4, new, 8), [rounded(2, 2, 19, 8) for _ in range(2)]
    for buffer in buffers:
        buffer[:, :, 11:] = free
    k, v = (buffer[:, :, :11] for buffer in buffers)
    mask = torch.zeros(2, 1, new, 11).masked_fill_(torch.rand(2, 1, new, 11) < 0.4, -torch.inf).bfloat16()
    mask[..., 0] = 0
    given = mask if masked else None
    torch.testing.assert_close(
        cached_attention(q, k, v, 0.3, given).double(), by_hand(q, k, v, given), atol=0.03, rtol=0
    )


def test_shared_prompts_are_those_that_rows_have_copies_of() -> None:
    torch.manual_seed(0)
    q, of = rounded(6, 4, 1, 8), [2, 0, 1, 1, 1, 0]
    k, v = (rounded(6, 2, 19, 8)[:, :, :11] for _ in range(2))
    shared_k, shared_v = (rounded(3, 2, 9, 8)[:, :, :7] for _ in range(2))
    prefix = RowPrefixes.of(Prompts(((shared_k, shared_v),), torch.ones(3, 7, dtype=torch.bool)), torch.tensor(of))
    found = cached_attention(q, k, v, 0.3, None, prefix.layers[0])
    whole = torch.cat([shared_k[of], k], 2), torch.cat([shared_v[of], v], 2)
    torch.testing.assert_close(found.double(), by_hand(q, *whole, None), atol=0.03, rtol=0)


def test_products_read_a_cache_without_a_copy() -> None:
    buffer = rounded(3, 2, 19, 8)
    found = prefix_attention._flat_slots(buffer[:, :, :11])
    assert found.shape == (6, 19, 8) and found.data_ptr() == buffer.data_ptr() and found.is_contiguous()
    for other in (buffer, buffer[:, :, :11].contiguous(), buffer[:, :, 2:9], buffer[:, :1, :11], buffer[1:, :, :11]):
        slots = prefix_attention._flat_slots(other)
        assert torch.equal(slots.unflatten(0, other.shape[:2])[:, :, : other.shape[2]], other)


def test_free_slots_are_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of 0 does not remove what is no number."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_, **__: pytest.fail("memory that nobody has written"))
    layer = PreallocatedLayer()
    for new in (5, 1, 9):
        layer.update(rounded(2, 2, new, 8), rounded(2, 2, new, 8))
        assert layer._values.isfinite().all() and layer._values.shape[2] > layer.values.shape[2]
    cache = kv_cache.KVCache((layer,), torch.ones(2, 15, dtype=torch.bool))
    monkeypatch.undo()
    (shared,) = cache.shared_by(torch.tensor([0, 0, 1]), room=4).layers
    assert not shared._values.any() and not shared._keys.any()


def attention_shapes(heads: tuple[int, int], prefixes: int) -> list[tuple[int, ...]]:
    """Return the shapes of queries, keys and values, and of the keys and values of prefixes if there are any."""
    rows = [(6, 5, heads[0], 8), (6, 5, heads[1], 8), (6, 5, heads[1], 8)]
    return [*rows, *[(prefixes, 4, heads[1], 8)] * 2 * bool(prefixes)]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("prefixes", [0, 3])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_learning_attends_in_float32_and_rounds_once(
    heads: tuple[int, int], prefixes: int, elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor without bfloat16, and in long rows."""
    if elsewhere:
        monkeypatch.setattr(prefix_attention, "has_bfloat16", lambda: False)
    else:
        monkeypatch.setattr(prefix_attention, "LONGEST", 5 + 4 * bool(prefixes) - 1)
    torch.manual_seed(0)
    shapes = attention_shapes(heads, prefixes)
    narrow = [rounded(*shape).requires_grad_() for shape in shapes]
    wide = [tensor.detach().float().requires_grad_() for tensor in narrow]
    weights, outs, gradients = rounded(*shapes[0]), [], []
    for q, k, v, *prefix in (narrow, wide):
        out = causal_attention(q, k, v, scale=0.3, prefix=(prefix[0], prefix[1]) if prefix else None)
        outs.append(out)
        gradients.append(torch.autograd.grad(out, [q, k, v, *prefix], weights.to(out.dtype)))
    assert outs[0].dtype == torch.bfloat16 and torch.equal(outs[0], outs[1].bfloat16())
    for ours, theirs in zip(*gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        # The output that the backward pass reads is rounded, so sums can lie on the other side of a rounding.
        torch.testing.assert_close(ours.float(), theirs, atol=0.02, rtol=0.02)


def attended(attention: Callable[..., Tensor], tensors: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Return an attention's output and the gradients of all its tensors."""
    q, k, v, *prefix = (tensor.clone().requires_grad_() for tensor in tensors)
    out = attention(q, k, v, 0.3, *prefix)
    return [out.detach(), *torch.autograd.grad(out, [q, k, v, *prefix], weights)]


def fused_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float, *prefix: Tensor) -> Tensor:
    found: Tensor = prefix_attention._Attention.apply(q, k, v, scale, *(prefix or (None, None)))
    return found


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
@pytest.mark.parametrize("prefixes", [0, 3])
def test_attention_by_products_is_that_of_the_fused_kernel(heads: tuple[int, int], prefixes: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(*shape).double() for shape in attention_shapes(heads, prefixes)]
    weights = torch.randn(*tensors[0].shape).double()
    by_products, by_kernel = (attended(of, tensors, weights) for of in (attention_by_products, fused_kernel))
    for ours, theirs in zip(by_products, by_kernel, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # the softmax is computed in float32


@pytest.mark.parametrize("prefixes", [0, 3])
def test_short_rows_in_bfloat16_attend_by_products(prefixes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tensors = [rounded(*shape) for shape in attention_shapes((6, 2), prefixes)]
    weights = rounded(*tensors[0].shape)
    monkeypatch.setattr(prefix_attention._Attention, "apply", None)  # not called

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, *prefix: Tensor) -> Tensor:
        return causal_attention(q, k, v, scale=scale, prefix=(prefix[0], prefix[1]) if prefix else None)

    found = attended(attention, tensors, weights)
    monkeypatch.undo()
    exact = attended(fused_kernel, [tensor.double() for tensor in tensors], weights.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()  # 2^-9 = 0.002 is the rounding of one number


def test_a_small_update_is_not_rounded_away(layers: Callable[[LanguageModel], list[Any]]) -> None:
    """Beside weights of size 1, an update of 1/2000 is below bfloat16's precision."""
    parts = layers(lively(of_family("Llama", tied=False, dtype=torch.bfloat16, attention_bias=True)))
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in parts:
            below_adapters(layer).weight.copy_(torch.sign(rounded(*below_adapters(layer).weight.shape)))
            layer.lora_B["policy"].weight.mul_(1e-3)
    fused = FusedLinear.of(parts, 4, "policy")
    assert fused is not None and fused.down is not None and len(fused.down) == 3 * LORA.rank
    x = rounded(4, 32)
    expected = []
    for layer in parts:
        a, b = (factor.double() for factor in factors(layer, "policy") or ())
        assert 1e-5 < (b @ a).abs().mean() < 1e-3
        expected.append(x.double() @ (b @ a).T)
    plain = FusedLinear.of(parts, 4, None)
    assert plain is not None and plain.down is None
    # Both in float64, from the weights that the products read: the rounding of outputs is not the question.
    inputs = torch.cat([x, x @ fused.down.T], 1).double()
    update = inputs @ fused.weight.double().T - x.double() @ plain.weight.double().T
    wanted = torch.cat(expected, 1)
    assert (update - wanted).norm() < 0.02 * wanted.norm()
    torch.testing.assert_close(fused(x).double(), inputs @ fused.weight.double().T + fused.bias, atol=0.1, rtol=0.02)


def test_layers_without_the_adapter_get_nothing_of_it(layers: Callable[[LanguageModel], list[Any]]) -> None:
    settings = LORA.model_copy(update={"target_modules": ("v_proj",)})
    model = of_family("Llama", tied=False, dtype=torch.bfloat16).with_adapter("policy", settings, seed=0)
    parts = layers(model)
    with torch.no_grad():
        parts[2].lora_B["policy"].weight.normal_()
    fused, plain = FusedLinear.of(parts, 4, "policy"), FusedLinear.of(parts, 4, None)
    assert fused is not None and plain is not None
    x, start = rounded(4, 32), 32 + 16  # of queries and keys
    assert torch.equal(fused(x)[:, :start], plain(x)[:, :start]) and not torch.equal(fused(x), plain(x))


@pytest.fixture
def plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute what oneDNN would, on every processor and in every dtype."""
    monkeypatch.setattr(onednn_linear, "_product", nn.functional.linear)


def gradients(function: Callable[[Tensor], Tensor], layer: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    """Return the layer's output and the gradients of its input and its adapter, in float64."""
    x = x.clone().requires_grad_()
    out = function(x)
    factors = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    found = torch.autograd.grad(out, [x, *factors], g)
    assert [tensor.dtype for tensor in found] == [x.dtype, *(factor.dtype for factor in factors)]
    return [tensor.detach().double() for tensor in (out, *found)]


@pytest.mark.usefixtures("plain_products")
@pytest.mark.parametrize("biased", [False, True])
def test_an_adapter_inside_its_layers_product_is_what_peft_computes(biased: bool) -> None:
    model = lively(of_family("Llama", tied=False, dtype=torch.float64, attention_bias=biased))
    layer: Any = model.model.get_decoder().layers[0].self_attn.k_proj
    below: Any = below_adapters(layer)
    layer.double()
    torch.manual_seed(0)
    if biased:
        below.bias.data.normal_()
    x, g = torch.randn(7, 32).double(), torch.randn(7, below.out_features).double()
    factors = layer.lora_A["policy"].weight, layer.lora_B["policy"].weight
    inside = partial(onednn_linear._apply_inside, below.weight, below.bias, *factors, layer.scaling["policy"])
    assert layer.scaling["policy"] != 1
    for ours, theirs in zip(gradients(inside, layer, x, g), gradients(layer, layer, x, g), strict=True):
        assert theirs.norm() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("plain_products")
def test_an_adapter_inside_its_layers_product_is_rounded_no_more_than_beside_it(
    layers: Callable[[LanguageModel], list[Any]],
) -> None:
    layer = layers(lively(of_family("Llama", tied=False, dtype=torch.bfloat16)))[0]
    inside = with_adapter_inside(layer)
    assert inside is not None
    torch.manual_seed(0)
    x, g = rounded(64, 32), rounded(64, below_adapters(layer).out_features)
    found = gradients(inside, layer, x, g), gradients(layer, layer, x, g)
    wanted = gradients(layer.double(), layer, x.double(), g.double())
    for ours, theirs, exact in zip(*found, wanted, strict=True):
        assert (ours - exact).norm() < 0.005 * exact.norm()  # 2^-9 = 0.002 is the rounding of one number
        assert (theirs - exact).norm() < 0.005 * exact.norm()


def test_only_a_frozen_bfloat16_layer_under_one_adapter_takes_it_inside(
    layers: Callable[[LanguageModel], list[Any]],
) -> None:
    base = of_family("Llama", tied=False, dtype=torch.bfloat16)
    model = lively(lively(base, "other"))
    layer = layers(model)[0]
    below = below_adapters(layer)
    assert with_adapter_inside(layer) is not None and with_adapter_inside(below) is None
    with model.adapters.on(None):
        assert with_adapter_inside(layer) is None
    layer.set_adapter(["policy", "other"])
    assert with_adapter_inside(layer) is None
    layer.set_adapter("policy")
    below.weight.requires_grad_(True)
    assert with_adapter_inside(layer) is None
    below.weight.requires_grad_(False)
    layer.lora_bias["policy"] = True
    assert with_adapter_inside(layer) is None
    layer.lora_bias["policy"] = False
    assert with_adapter_inside(layer) is not None
    layer.merge(adapter_names=["policy"])
    assert with_adapter_inside(layer) is None
    layer.unmerge()
    below.float()
    assert with_adapter_inside(layer) is None


@pytest.mark.usefixtures("plain_products")
def test_learning_takes_adapters_inside_the_products_of_all_their_layers(
    layers: Callable[[LanguageModel], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(of_family("Llama", tied=False, dtype=torch.bfloat16))
    packed = PackedSequences.of([[3, 7, 16, 8, 17], [3, 7, 2]])
    torch.manual_seed(0)
    g = rounded(8, 32)

    def learnt() -> list[Tensor]:
        forward = model.forward_pass
        assert isinstance(forward, CPULlamaForward)
        hidden = forward.hidden_at(packed, torch.arange(8))
        return [hidden, *torch.autograd.grad(hidden, model.parameters(), g)]

    monkeypatch.setattr(onednn_linear, "has_bfloat16", lambda: False)
    before = learnt()
    layers(model)
    taken: list[Tensor] = []
    apply = onednn_linear._apply_inside
    monkeypatch.setattr(onednn_linear, "_apply_inside", lambda *given: taken.append(given[0]) or apply(*given))
    for ours, theirs in zip(learnt(), before, strict=True):
        assert (ours - theirs).norm() < 0.1 * theirs.norm()
    adapted = [m for m in model.model.modules() if hasattr(m, "lora_A")]
    assert {id(weight) for weight in taken} == {id(below_adapters(layer).weight) for layer in adapted}
    assert len(taken) == len(adapted) > 7


def test_onednn_may_be_kept_from_the_instructions() -> None:
    """Whatever the processor: its products in bfloat16 would raise an error then."""
    found = subprocess.run(
        [sys.executable, "-c", "from selfcorrect.models.cpu.instructions import has_bfloat16; print(has_bfloat16())"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "False"
