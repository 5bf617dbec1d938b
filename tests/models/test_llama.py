"""Test that the fast forward pass and oneDNN's products give the model's own hidden states, gradients and samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.episodes import episode, sample_key, turn
from support.families import LORA, SMALL, TOKENIZER, is_fast, lively, of_family
from support.packing import pack_episodes
from torch import Tensor, nn

from selfcorrect import evaluate, train
from selfcorrect.config.schema import ModelConfig
from selfcorrect.config.toml import make_config
from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.engines import kv_cache as cache
from selfcorrect.engines.kv_cache import Prompts, RowPrefixes
from selfcorrect.errors import ModelError
from selfcorrect.models.cpu.llama import CPULlamaForward
from selfcorrect.models.cpu.onednn_linear import FusedLinear, OneDNNLinear, prepacked_weights, use_onednn
from selfcorrect.models.cpu.packing import PackedSequences
from selfcorrect.models.cpu.prefix_attention import FEW_QUERIES, cached_attention, causal_attention
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.batch import micro_batch_tokens
from selfcorrect.training.scoring import score
from selfcorrect.zoo.resolve import loading

GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-grouped": ("Llama", GQA),
    "llama-all-heads": ("Llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("Mistral", {**GQA, "sliding_window": None}),
    "qwen2": ("Qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3", GQA),
}  # fmt: skip
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4), (3, 11, 2, 4)]
GLUE = (3, 20, 19, 2, 4)


def pair(kind: str, dtype: torch.dtype = torch.float64) -> tuple[LanguageModel, LanguageModel]:
    """Return two models with the same weights: one with the fast forward pass, one that computes as `transformers` does."""
    family, more = KINDS[kind]
    fast, plain = (of_family(family, tied=False, dtype=dtype, cpu_kernels=fast, **more) for fast in (True, False))
    assert is_fast(fast) and not is_fast(plain)
    return fast, plain


def episodes(lengths: list[tuple[int, int]], copies: int = 2) -> list[Any]:
    """Make several episodes of every prompt; their attempts cycle through these lengths."""
    generator = torch.Generator().manual_seed(1)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, len(TOKENIZER), (count,), generator=generator).tolist())

    found = []
    for i, prompt in enumerate(p for p in PROMPTS for _ in range(copies)):
        one, two = lengths[i % len(lengths)]
        found.append(
            episode(turn(prompt, some(one), logprobs=(0.0,) * one), turn(GLUE, some(two), logprobs=(0.0,) * two))
        )
    return found


UNEVEN = [(3, 5), (1, 2), (6, 4), (2, 2), (4, 1)]


def learnt(model: LanguageModel, played: list[Any], order: list[int], *, share: bool) -> list[Tensor]:
    model.model.zero_grad()
    rows = pack_episodes(played, order, pad_id=model.pad_id, share_prompts=share)
    hidden = model.forward_pass.hidden(rows)
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    return [hidden.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("share", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [UNEVEN, [(3, 4)]], ids=["uneven", "even"])
def test_hidden_states_and_gradients_are_the_models_own(kind: str, share: bool, lengths: list[tuple[int, int]]) -> None:
    fast, plain = pair(kind)
    played = episodes(lengths)
    order = [4, 1, 0, 3, 2, 5, 7]  # one prompt has a single row
    expected = learnt(plain, played, order, share=False)
    found = learnt(fast, played, order, share=share)
    assert len(found) == len(expected) == len(plain.parameters())  # the hidden states, and no gradient of the head
    rotary = 2e-5  # every family computes cosines in float32
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=rotary * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["llama-grouped", "qwen3"])
def test_float32_log_probabilities_agree_to_1e_5(kind: str) -> None:
    fast, plain = pair(kind, torch.float32)
    rows = [
        pack_episodes(episodes(UNEVEN), range(8), pad_id=fast.pad_id, share_prompts=share) for share in (True, False)
    ]
    ours, theirs = score(fast, rows[0], 1.0).logprobs_S, score(plain, rows[1], 1.0).logprobs_S
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("shared_from", [-(2**60), 2**60])
def test_the_engine_draws_the_same_samples(
    kind: str, temperature: float, shared_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns have different lengths, so caches have holes, rows leave, and later turns continue from them."""
    monkeypatch.setattr(cache, "SHARED_FROM", shared_from)
    drawn = []
    for model in pair(kind):
        engine, sampling = HFEngine(model), Sampling(temperature, 9)
        ask = [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(3)]
        ones = engine.generate(ask, sampling, keep=True)
        again = [
            Request((*r.ids, *one.ids, *GLUE[: 2 + i % 4]), sample_key(r.key.problem, r.key.sample, 1), one.handle)
            for i, (r, one) in enumerate(zip(ask, ones, strict=True))
        ]
        twos = engine.generate(again, sampling)
        drawn.append([*ones, *twos])
    assert [c.ids for c in drawn[0]] == [c.ids for c in drawn[1]]
    assert len({len(c.ids) for c in drawn[0]}) > 1 or temperature == 0
    for ours, theirs in zip(*drawn, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_adapters_compute_too() -> None:
    fast, plain = (lively(model) for model in pair("llama-grouped"))
    assert is_fast(fast)
    rows = pack_episodes(episodes(UNEVEN), range(8), pad_id=fast.pad_id, share_prompts=True)
    found, expected = fast.forward_pass.hidden(rows), plain.forward_pass.hidden(rows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with fast.adapters.on(None):  # the rest does not matter, but the owner of the view does
        torch.testing.assert_close(fast.forward_pass.hidden(rows), found)
    found.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama-grouped", "llama-biases", "qwen2", "qwen3"])
def test_sampling_adds_an_adapter_into_the_weights_it_packs(kind: str) -> None:
    fast, plain = (lively(model) for model in pair(kind, torch.float32))
    forward = fast.forward_pass
    assert isinstance(forward, CPULlamaForward)
    with fast.sampling(8):
        adapted = 4 if forward._fused else 7
        assert len(forward._merged) == forward.layers * adapted and len(forward._fused) in (0, forward.layers)
    assert not forward._fused and not forward._merged
    ask = [Request(prompt, sample_key(f"p{i}")) for i, prompt in enumerate(PROMPTS)]
    ours, theirs = (HFEngine(model).generate(ask, Sampling(1.0, 6)) for model in (fast, plain))
    assert [c.ids for c in ours] == [c.ids for c in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama-grouped", "qwen3"])
def test_sampling_below_an_adapter_takes_the_plain_weights(kind: str) -> None:
    base, alone = (of_family(KINDS[kind][0], tied=False, dtype=torch.float32, **KINDS[kind][1]) for _ in range(2))
    adapted = lively(base)
    ask = [Request(prompt, sample_key(f"p{i}")) for i, prompt in enumerate(PROMPTS)]
    one, two, other = (HFEngine(model).generate(ask, Sampling(0.0, 6)) for model in (base, alone, adapted))
    for found, expected in zip(one, two, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert abs(one[0].logprobs[0] - other[0].logprobs[0]) > 1e-2


@pytest.mark.parametrize("more", ["lora_bias", "lora_variant"])
def test_an_adapter_that_does_more_than_add_is_not_merged(more: str) -> None:
    model = lively(of_family("Llama", tied=False, dtype=torch.float32))
    layer = model.model.get_decoder().layers[0].mlp.up_proj
    assert FusedLinear.of([layer], 4, "policy") is not None
    getattr(layer, more)["policy"] = True
    assert FusedLinear.of([layer], 4, "policy") is None
    with pytest.raises(ModelError, match=r"'policy' does more to .*layers\.0\.mlp\.up_proj than add"):
        list(model.adapters.merged_tensors("policy"))


def test_other_models_take_the_general_forward_pass() -> None:
    assert not is_fast(of_family("Gemma2", tied=True))
    assert not is_fast(of_family("Mistral", tied=False, sliding_window=16))
    model = of_family("Llama", tied=False)
    model.enable_gradient_checkpointing()
    assert not is_fast(model)
    with torch.no_grad():
        assert is_fast(model)


def test_a_model_that_only_calls_itself_a_llama_is_found_out() -> None:
    model = of_family("Llama", tied=False, cpu_kernels=False).model
    model.model.layers[0].mlp.register_forward_hook(lambda module, given, out: 2 * out)
    assert not is_fast(LanguageModel(model, TOKENIZER))


# ---------------------------------------------------------------- attention


def looped(q: Tensor, k: Tensor, v: Tensor, scale: float, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute attention token by token, head by head."""
    rows, length, heads, _ = q.shape
    out = torch.zeros_like(q)
    for n in range(rows):
        for t in range(length):
            for h in range(heads):
                j = h // (heads // k.shape[2])
                keys, values = k[n, : t + 1, j], v[n, : t + 1, j]
                if prefix is not None:
                    p = n // (rows // len(prefix[0]))
                    keys, values = torch.cat([prefix[0][p, :, j], keys]), torch.cat([prefix[1][p, :, j], values])
                out[n, t, h] = torch.softmax(keys @ q[n, t, h] * scale, 0) @ values
    return out


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("prefixes", [0, 1, 3])
def test_attention_is_the_loop(heads: tuple[int, int], prefixes: int) -> None:
    torch.manual_seed(0)
    q, k, v = drawn(6, 5, heads[0], 8), drawn(6, 5, heads[1], 8), drawn(6, 5, heads[1], 8)
    prefix = (drawn(prefixes, 4, heads[1], 8), drawn(prefixes, 4, heads[1], 8)) if prefixes else None
    leaves = [q, k, v, *(prefix or ())]
    weights = torch.randn_like(q)
    results = []
    for attention in (causal_attention, looped):
        out = attention(q, k, v, scale=0.3, prefix=prefix)
        results.append([out, *torch.autograd.grad((out * weights).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("new", [1, 3, FEW_QUERIES])  # by products, at most 8 queries per key head; by the kernel
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_new_tokens_to_a_cache_minds_the_mask(new: int, masked: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, new, 8)
    k, v = (torch.randn(2, 2, 19, 8)[:, :, :11] for _ in range(2))  # the cache's buffers have room
    mask = torch.zeros(2, 1, new, 11).masked_fill_(torch.rand(2, 1, new, 11) < 0.4, -torch.inf)
    mask[..., 0] = 0
    found = cached_attention(q, k, v, 0.3, mask if masked else None)
    scores = torch.einsum("bhsd,bhld->bhsl", q, k.repeat_interleave(2, 1)) * 0.3 + (mask if masked else 0)
    torch.testing.assert_close(found, torch.softmax(scores, -1) @ v.repeat_interleave(2, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("new", [1, 3, FEW_QUERIES])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("of", [[0, 0, 1, 1, 2, 2], [2, 0, 1, 1, 1, 0]], ids=["in order", "ragged"])
def test_attention_to_shared_keys_is_that_to_copies_of_them(new: int, masked: bool, of: list[int]) -> None:
    torch.manual_seed(0)
    q = torch.randn(6, 4, new, 8)
    k, v = (torch.randn(6, 2, 19, 8)[:, :, :11] for _ in range(2))
    shared_k, shared_v = (torch.randn(3, 2, 9, 8)[:, :, :7] for _ in range(2))
    mask = torch.zeros(6, 1, new, 11).masked_fill_(torch.rand(6, 1, new, 11) < 0.4, -torch.inf)
    valid = torch.ones(3, 7, dtype=torch.bool)
    if masked:
        valid[1, 3:] = False
    prefix = RowPrefixes.of(Prompts(((shared_k, shared_v),), valid), torch.tensor(of))
    found = cached_attention(q, k, v, 0.3, mask if masked else None, prefix.layers[0])
    whole_k, whole_v = torch.cat([shared_k[of], k], 2), torch.cat([shared_v[of], v], 2)
    before = torch.zeros(6, 1, new, 7).masked_fill_(~valid[of][:, None, None], -torch.inf)
    expected = cached_attention(q, whole_k, whole_v, 0.3, torch.cat([before, mask], -1) if masked else None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_packed_sequences_have_every_prompt_once() -> None:
    rows = [(1, 2, 3, 4), (5, 6, 7), (1, 2, 8), (5, 9)]
    packed = PackedSequences.of(rows, [2, 1, 2, 1])
    assert packed.ids_T.tolist() == [5, 1, 2, 6, 7, 9, 3, 4, 8]
    assert packed.position_T.tolist() == [0, 0, 1, 1, 2, 1, 2, 3, 2]
    before = packed.before(torch.tensor([0, 0, 0, 1, 2, 3, 1]), torch.tensor([3, 2, 1, 2, 2, 1, 1]))
    assert packed.ids_T[before].tolist() == [3, 2, 1, 6, 2, 5, 5]


# ---------------------------------------------------------------- oneDNN


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(3, 7, 24), (40, 24), (24,)])
def test_a_onednn_layer_computes_what_the_layer_does(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    onednn = copy.deepcopy(layer)
    use_onednn(onednn)
    assert type(onednn) is OneDNNLinear and isinstance(onednn, nn.Linear)
    x = torch.randn(shape)
    results = []
    for one in (layer, onednn):
        given = x.clone().requires_grad_()
        out = one(given)
        assert (type(out.grad_fn).__name__ == "_LinearBackward") == (one is onednn and x.numel() >= 8 * 24)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, given.grad, *(p.grad for p in one.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 64, 300])
def test_packed_weights_give_the_same_products_and_are_given_up(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 192, bias=bias), nn.Linear(192, 256).double(), nn.Linear(8, 8))
    use_onednn(model)
    layer = model[0]
    x = torch.randn(rows, 256)
    with torch.no_grad(), prepacked_weights(model, 64):
        assert layer.prepacked is not None
        assert model[1].prepacked is None and model[2].prepacked is None  # float64 and small ones stay unchanged
        torch.testing.assert_close(layer(x), x @ layer.weight.T + (layer.bias if bias else 0), atol=1e-5, rtol=1e-5)
        with torch.enable_grad():
            assert layer(x).requires_grad
    assert layer.prepacked is None
    with torch.no_grad():
        layer.weight.zero_()
        assert torch.equal(layer(x), torch.zeros(rows, 192) + (layer.bias if bias else 0))


@pytest.mark.parametrize(("width", "packs"), [(8, False), (128, True)])
@pytest.mark.parametrize("bias", [False, True])
def test_queries_keys_and_values_by_one_product_are_the_layers_own(width: int, packs: bool, bias: bool) -> None:
    shape = {"hidden_size": 4 * width, "intermediate_size": 8 * width, "attention_bias": bias}
    model = of_family("Llama", tied=False, dtype=torch.float32, **shape, **{**GQA, "head_dim": width})
    forward = model.forward_pass
    assert isinstance(forward, CPULlamaForward)
    attention = forward.decoder.layers[0].self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    x = torch.randn(9, 4 * width)
    with torch.no_grad(), forward.fused(9):
        fused = forward._fused[0]
        assert fused.prepacked == packs
        torch.testing.assert_close(fused(x), torch.cat([layer(x) for layer in projections], -1), atol=1e-5, rtol=1e-5)
        assert sorted(forward._fused) == list(range(forward.layers))
    with model.sampling(9):  # what is fused is not packed a second time
        assert (forward.decoder.layers[0].mlp.up_proj.prepacked is not None) == packs
        assert all(layer.prepacked is None for layer in projections)
    assert not forward._fused


def test_what_is_no_plain_layer_is_not_fused() -> None:
    layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)])
    assert FusedLinear.of(list(layers), 4) is None  # not computed by oneDNN: an adapter around it, or another kind
    use_onednn(layers)
    assert FusedLinear.of(list(layers), 4) is not None
    assert FusedLinear.of([*layers[:2], nn.Linear(8, 8, bias=False)], 4) is None
    use_onednn(layers.append(nn.Linear(8, 8, bias=False)))
    assert FusedLinear.of(list(layers[1:]), 4) is None  # two with a bias, one without
    assert FusedLinear.of(list(layers[:3].double()), 4) is None


def test_an_engine_sees_the_weights_of_now() -> None:
    """All weights are packed again: they change between two rollouts, sometimes without torch's knowledge."""
    model = of_family("Llama", tied=False, dtype=torch.float32, intermediate_size=1024)
    ask = [Request(prompt, sample_key(f"p{i}")) for i, prompt in enumerate(PROMPTS)]
    HFEngine(model).generate(ask, Sampling(0.0, 3))
    for parameter in model.model.parameters():
        parameter.data *= -0.5
    fresh = model.frozen_copy()
    again, expected = (HFEngine(one).generate(ask, Sampling(0.0, 3)) for one in (model, fresh))
    assert [c.ids for c in again] == [c.ids for c in expected]
    assert again[0].logprobs == expected[0].logprobs


def test_the_fast_forward_pass_does_not_come_and_go_with_the_weights() -> None:
    """In bfloat16, two correct ways differ by several percent; a resumed run must take the same one."""
    for seed in range(6):
        assert is_fast(of_family("Llama", tied=False, dtype=torch.bfloat16, seed=seed))


@torch.no_grad()
def test_bfloat16_is_as_near_to_the_truth_as_the_general_forward_pass() -> None:
    rows = pack_episodes(episodes(UNEVEN), range(8), pad_id=TOKENIZER.pad_token_id, share_prompts=True)
    truth = score(of_family("Llama", tied=False, cpu_kernels=False), rows, 1.0).logprobs_S
    models = [of_family("Llama", tied=False, dtype=torch.bfloat16, cpu_kernels=fast) for fast in (True, False)]
    ours, general = (float((score(model, rows, 1.0).logprobs_S - truth).abs().mean()) for model in models)
    assert ours < 1.3 * general


def test_a_live_model_is_trained_in_a_copy(tmp_path: Path) -> None:
    model = of_family("Llama", tied=False, dtype=torch.float32, cpu_kernels=False).model
    stage = {"steps": 1, "reward_weights": [0, 1], "kl_coefs": [{"base": 0.1}, {"base": 0.1}]}
    config = {
        "task": {"train_problems": 4},
        "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 2},
        "eval": {"problems": 2, "dev_every": 0},
        "stages": {"one": stage},
    }
    train(config, tmp_path / "run", model=model, tokenizer=TOKENIZER)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


def test_settings_unset_suit_the_model_and_the_device() -> None:
    assert make_config({}).shares_prompts
    assert not make_config({"model": {"gradient_checkpointing": True}}).shares_prompts
    assert not make_config({"optimizer": {"share_prompts": False}}).shares_prompts
    assert micro_batch_tokens(None, torch.device("cpu")) < micro_batch_tokens(None, torch.device("cuda"))
    assert micro_batch_tokens(77, torch.device("cuda")) == 77
    assert loading(ModelConfig(device="cpu", cpu_kernels=False))["cpu_kernels"] is False


def test_a_live_model_is_measured_as_it_is() -> None:
    model = of_family("Llama", tied=False, dtype=torch.float32, cpu_kernels=False).model
    evaluate(model, "addition", tokenizer=TOKENIZER, limit=4, max_tokens=4)
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}


def test_the_setting_is_obeyed() -> None:
    config = transformers.LlamaConfig(**SMALL)
    plain = LanguageModel(transformers.LlamaForCausalLM(config), TOKENIZER, cpu_kernels=False)
    for model in (plain, plain.frozen_copy(), plain.with_adapter("policy", LORA)):
        assert not is_fast(model)
        assert not any(isinstance(m, OneDNNLinear) for m in model.model.modules())
