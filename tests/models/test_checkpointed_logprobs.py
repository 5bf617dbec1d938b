"""Test log-probabilities, entropy and KL from calls of the head alone, against our own backward pass; and under FSDP2."""

from __future__ import annotations

import types
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from support.episodes import episode, turn
from support.families import lively, of_family
from support.gradients import gradient
from support.packing import pack_episodes
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from selfcorrect.models import checkpointed_logprobs, chunked_logprobs
from selfcorrect.models.chunked_logprobs import Targets
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.scorable import HeadPass
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.scoring import TokenScores, score, score_reference

TOKENS = 11
ROWS = [
    episode(turn([3, 7, 16, 8, 2, 4], [9, 10, 2]), turn([3, 20, 2, 4], [11, 2])),
    episode(turn([3, 7, 2, 4], [9, 2]), turn([3, 20, 2, 4], [11, 12, 13, 2])),
]


def with_head(kind: str, dtype: torch.dtype, seed: int = 0) -> LanguageModel:
    """Make a model whose logits are a product, with a tied weight or without, or more than a product."""
    model = of_family("Llama", tied=kind == "tied", dtype=dtype, seed=seed)
    if kind == "bias":
        bias = torch.linspace(-1, 1, model.vocabulary, dtype=dtype)
        model.model.get_output_embeddings().bias = torch.nn.Parameter(bias)
    elif kind == "softcap":
        model._softcap = 0.5
    elif kind == "scale":
        model._scale = 3.0
    return model


@pytest.mark.parametrize("size", [4, TOKENS, 100], ids="chunks of {}".format)
@pytest.mark.parametrize(("references", "temperature"), [(0, 1.0), (1, 0.7), (2, 1.3)])
@pytest.mark.parametrize("kind", ["product", "tied", "bias", "softcap", "scale"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_chunked_head_gives_what_calls_of_the_head_give(
    kind: str, references: int, temperature: float, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allow for different orders of summation over V logits or S tokens: that many float32 roundings of the largest value."""
    model, bases = with_head(kind, dtype), [with_head(kind, dtype, 1 + r) for r in range(references)]
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", size * model.vocabulary)
    drawn = torch.Generator().manual_seed(references)
    hidden, *others = torch.randn(1 + references, TOKENS, model.width, dtype=dtype, generator=drawn)
    hidden.requires_grad_()
    targets = Targets(
        torch.randint(model.vocabulary, (TOKENS,), generator=drawn), temperature, list(zip(bases, others, strict=True))
    )
    weights_S, weights_RS = (
        torch.randn(TOKENS, dtype=dtype, generator=drawn),
        torch.randn(references, TOKENS, dtype=dtype),
    )
    wanted = [hidden, *model.head_parameters()]
    assert len(wanted) == 2 + (kind == "bias")
    results = []
    for module in (chunked_logprobs, checkpointed_logprobs):
        logp_S, entropy_S, kl_RS = module.logprobs_entropy_kl(model, hidden, targets)
        assert kl_RS.shape == (references, TOKENS)
        assert not entropy_S.requires_grad
        loss = (weights_S * logp_S).sum() + (weights_RS * kl_RS).sum()
        results.append([logp_S, entropy_S, kl_RS, *torch.autograd.grad(loss, wanted)])
    roundings = (model.vocabulary + TOKENS) * torch.finfo(dtype).eps
    for ours, theirs in zip(*results, strict=True):
        largest = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        tolerance = 1e-12 if dtype == torch.float64 else roundings
        torch.testing.assert_close(ours, theirs, atol=tolerance * largest, rtol=0)


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head sees one chunk at a time, once forward and once in the backward pass; no [chunk, V] is kept in between."""
    model = of_family("Llama", tied=False)
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", 4 * model.vocabulary)
    sizes: list[int] = []
    model.model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: sizes.append(len(out)))
    hidden = torch.randn(TOKENS, model.width, dtype=torch.float64).requires_grad_()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        logp_S, _, _ = checkpointed_logprobs.logprobs_entropy_kl(model, hidden, Targets(torch.arange(TOKENS), 1.0))
    assert sizes == [4, 4, 3]
    assert not any(shape[-1:] == (model.vocabulary,) for shape in kept)
    logp_S.sum().backward()
    assert sorted(sizes) == [3, 3, 4, 4, 4, 4]


def test_where_nothing_is_scored_there_are_no_terms() -> None:
    model = of_family("Llama", tied=False)
    hidden = torch.zeros(0, model.width, dtype=torch.float64, requires_grad=True)
    targets = Targets(torch.zeros(0, dtype=torch.long), 1.0, [(model, hidden.detach())])
    logp_S, entropy_S, kl_RS = checkpointed_logprobs.logprobs_entropy_kl(model, hidden, targets)
    assert (logp_S.shape, entropy_S.shape, kl_RS.shape) == ((0,), (0,), (1, 0))
    logp_S.sum().backward()  # a process without a token must join the others' collectives
    assert hidden.grad is not None


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])  # Gemma's logits have a softcap
def test_a_model_chooses_its_head(family: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole tied model with shared prompts gives the same scores and gradients; the reference runs with its adapter off."""
    base = of_family(family, tied=True, seed=1)
    policy = lively(base) if lora else of_family(family, tied=True, seed=0)
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", 4 * policy.vocabulary)
    rows = pack_episodes(ROWS, [0, 1], pad_id=0, share_prompts=True)
    results = []
    for chosen in HeadPass:
        policy.model.zero_grad()
        policy.head_pass = chosen
        found = scored_against(policy, base, rows)
        weights_S = torch.linspace(-1, 1, len(rows.logprobs_S), dtype=torch.float64)
        (weights_S * (found.logprobs_S + found.kl_RS[0])).sum().backward()
        results.append([found.logprobs_S, found.entropy_S, found.kl_RS, gradient(policy)])
    assert results[0][0].grad_fn is not None
    assert len({type(result[0].grad_fn) for result in results}) == len(HeadPass), "both were asked"
    for one, other in pairwise(results):
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def scored_against(policy: LanguageModel, base: LanguageModel, rows: MicroBatch) -> TokenScores:
    reference = score_reference(base, rows, 1.0, keep_hidden=True)
    return score(policy, rows, 1.0, [reference], full_kl=True)


# ---------------------------------------------------------------- FSDP2


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Make a process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("head", ["tied", "in the root's group", "in a group of its own"])
def test_a_sharded_model_is_scored_by_calls_of_its_modules(
    head: str, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One registered method of the root gives, in several chunks, the unsharded model's values and gradients."""
    whole, model, base = (of_family("Llama", tied=head == "tied", seed=seed, cpu_kernels=False) for seed in (0, 0, 1))
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", 4 * model.vocabulary)
    rows = pack_episodes(ROWS, [0, 1], pad_id=0, share_prompts=True)
    root = model.model
    for layer in root.model.layers:
        fully_shard(layer, mesh=mesh)
    if head == "in a group of its own":
        fully_shard(root.lm_head, mesh=mesh)
    fully_shard(root, mesh=mesh)
    root.scored = types.MethodType(lambda self: scored_against(model, base, rows), root)
    register_fsdp_forward_method(root, "scored")
    model.head_pass = HeadPass.CHECKPOINTED

    results: list[list[Tensor]] = []
    for found, of in ((root.scored(), root), (scored_against(whole, base, rows), whole.model)):
        (found.logprobs_S.sum() + found.kl_RS.sum()).backward()
        gradients = [p.grad.full_tensor() if isinstance(p, DTensor) else p.grad for p in of.parameters()]
        results.append([found.logprobs_S, found.entropy_S, found.kl_RS, *gradients])
    assert all(isinstance(parameter, DTensor) for parameter in root.parameters())
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
