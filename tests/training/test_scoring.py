"""Test log-probabilities, entropies and KL of sampled tokens against Hugging Face's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from support.episodes import episode, turn
from support.families import of_family
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.packing import pack_episodes

from selfcorrect.method.objective import KLEstimator, kl_loss
from selfcorrect.models import chunked_logprobs
from selfcorrect.models.cpu import onednn_linear as linear
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.batch import MicroBatch, micro_batches, turn_sums
from selfcorrect.training.scoring import score, score_reference
from selfcorrect.types import Episode, StopReason

pytestmark = pytest.mark.usefixtures("either_way")

END = 2
EPISODES = [
    episode(turn([3, 7, 16, 8, 17, 2, 4], [9, 10, END]), turn([3, 20, 2, 4], [11, END])),
    episode(turn([3, 7, 2, 4], [9, END]), turn([3, 20, 2, 4], [11, 12, 13, END])),
    episode(turn([3, 7, 9, 9, 2, 4], [6, 6, 6, 6], stop=StopReason.LENGTH), turn([2, 3, 20, 2, 4], [END])),
    episode(turn([3, 8, 2, 4], [9, 10, END], online=False), turn([3, 20, 2, 4], [11, END])),
]


def hf_logprobs(model: LanguageModel, played: Episode, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every sampled online token and its whole distribution [S, V], one row at a time through `model(...)`."""
    ids = torch.tensor([played.ids])
    logprobs = torch.log_softmax(model.model(input_ids=ids).logits[0] / temperature, -1)
    places, position = [], 0
    for part in played.turns:
        start = position + len(part.observation_ids)
        position = start + len(part.ids)
        places += list(range(start, position)) if part.online else []
    return logprobs[torch.tensor(places) - 1], ids[0, places]


def one_by_one(model: LanguageModel, episodes: Sequence[Episode], temperature: float = 1.0) -> torch.Tensor:
    parts = [hf_logprobs(model, played, temperature) for played in episodes]
    return torch.cat([logp.gather(-1, ids[:, None])[:, 0] for logp, ids in parts])


def everything(pad_id: int = 0) -> MicroBatch:
    return pack_episodes(EPISODES, range(len(EPISODES)), pad_id=pad_id)


def padded(rows: MicroBatch, left: int, right: int) -> MicroBatch:
    """Return the same rows with masked positions on either side, filled with a meaningful token."""

    def widen(tensor: torch.Tensor, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (left, right), value=value)

    wide = widen(rows.tokens_BT, 9), widen(rows.mask_BT, 0), widen(rows.turn_BT, -1)
    return MicroBatch(*wide, rows.episode_B, rows.logprobs_S)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_scores_equal_the_models_own_full_logits(policy64: LanguageModel, temperature: float) -> None:
    found = score(policy64, everything(), temperature)
    torch.testing.assert_close(found.logprobs_S, one_by_one(policy64, EPISODES, temperature), atol=1e-12, rtol=0)
    entropy = torch.cat([-(p.exp() * p).sum(-1) for p, _ in (hf_logprobs(policy64, e, temperature) for e in EPISODES)])
    torch.testing.assert_close(found.entropy_S, entropy, atol=1e-12, rtol=0)
    reference = score_reference(policy64, everything(), temperature)
    torch.testing.assert_close(reference.logprobs_S, found.logprobs_S, atol=1e-13, rtol=0)


@pytest.mark.pitfall(5)
@pytest.mark.parametrize("family", ["Mistral", "Phi3"])
def test_a_sliding_window_sees_no_other_tokens_for_a_shared_prompt(family: str) -> None:
    """Layers of one kind have no types in their configuration; their window counts the holes of padding too."""
    model = of_family(family, tied=False, sliding_window=8)
    assert max(len(played.ids) for played in EPISODES) > 8 == model.slots_limit
    shared = pack_episodes(EPISODES, range(len(EPISODES)), pad_id=0, share_prompts=True)
    torch.testing.assert_close(score(model, shared, 1.0).logprobs_S, one_by_one(model, EPISODES), atol=1e-10, rtol=0)


@pytest.mark.pitfall(5)
@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (3, 4)])
def test_padding_changes_nothing_on_either_side(policy64: LanguageModel, left: int, right: int) -> None:
    plain, wide = score(policy64, everything(), 1.0), score(policy64, padded(everything(), left, right), 1.0)
    torch.testing.assert_close(wide.logprobs_S, plain.logprobs_S, atol=1e-12, rtol=0)
    torch.testing.assert_close(wide.entropy_S, plain.entropy_S, atol=1e-12, rtol=0)


def test_what_stands_in_the_padding_changes_nothing(policy64: LanguageModel) -> None:
    plain, other = score(policy64, everything(pad_id=0), 1.0), score(policy64, everything(pad_id=11), 1.0)
    assert torch.equal(plain.logprobs_S, other.logprobs_S)


@pytest.mark.pitfall(5)
@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2, 0, 3, 1]]])
def test_gradients_do_not_depend_on_order_or_micro_batches(split: list[list[int]]) -> None:
    model = tiny_model(0)

    def gradient_of(places: list[list[int]]) -> torch.Tensor:
        model.model.zero_grad()
        for chosen in places:
            rows = pack_episodes(EPISODES, chosen, pad_id=0)
            weight_S = 1.0 + rows.episode_S  # every episode pulls differently
            (weight_S * score(model, rows, 1.0).logprobs_S).sum().backward()
        return gradient(model)

    assert relative_gap(gradient_of(split), gradient_of([[0, 1, 2, 3]])) < 1e-10


def test_chunks_change_neither_values_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = tiny_model(0), tiny_model(1)
    rows = everything()

    def run() -> tuple[torch.Tensor, ...]:
        model.model.zero_grad()
        reference = score_reference(base, rows, 1.0, keep_hidden=True)
        found = score(model, rows, 1.0, [reference], full_kl=True)
        (found.logprobs_S.sum() + 3 * found.kl_RS.sum()).backward()
        return found.logprobs_S, found.entropy_S, found.kl_RS, reference.logprobs_S, gradient(model)

    whole = run()
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", 4 * model.vocabulary)
    for ours, theirs in zip(run(), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_the_heads_gradient_of_many_chunks_is_no_worse_than_a_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, a sum rounded after every chunk would be off by half a percent or more."""
    model = tiny_model(0, dtype=torch.bfloat16)
    hidden = torch.randn(512, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.arange(512) % model.vocabulary
    weight = model.head_parameters()[0]

    def gradient_in(chunk: int) -> torch.Tensor:
        monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", chunk * model.vocabulary)
        terms = chunked_logprobs.logprobs_entropy_kl(model, hidden, chunked_logprobs.Targets(target, 1.0))
        return torch.autograd.grad(terms[0].sum(), weight)[0].double()

    assert relative_gap(gradient_in(4), gradient_in(512)) < 3e-3


def test_no_more_logits_than_a_chunk_are_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(0), everything()
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", 4 * model.vocabulary)
    sizes: list[int] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[0]))
    score(model, rows, 1.0).logprobs_S.sum().backward()
    assert max(sizes) == 4
    assert sum(sizes) == 2 * len(rows.logprobs_S)  # once forward, once more for the backward pass


@pytest.mark.parametrize("size", [4, 100])
@pytest.mark.parametrize(("references", "temperature"), [(0, 1.0), (0, 0.7), (1, 1.0), (2, 1.3)])
def test_terms_and_their_gradients_are_those_of_plain_autograd(
    references: int, temperature: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bases = tiny_model(0), [tiny_model(1 + r) for r in range(references)]
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", size * model.vocabulary)
    drawn = torch.Generator().manual_seed(references)
    hidden, *others = torch.randn(references + 1, 11, model.width, dtype=torch.float64, generator=drawn)
    hidden.requires_grad_()
    target = torch.randint(model.vocabulary, (11,), generator=drawn)
    weights = torch.randn(references + 1, 11, dtype=torch.float64, generator=drawn)
    assert model.plain_head is not None
    weight = model.plain_head.weight

    plain = torch.log_softmax(hidden @ weight.t() / temperature, -1)
    kl = [
        (plain.exp() * (plain - torch.log_softmax(base.logits(other) / temperature, -1))).sum(-1)
        for base, other in zip(bases, others, strict=True)
    ]
    expected = [plain[range(11), target], *kl]
    total = sum((w * e).sum() for w, e in zip(weights, expected, strict=True))
    expected_grads = torch.autograd.grad(total, [hidden, weight])

    targets = chunked_logprobs.Targets(target, temperature, list(zip(bases, others, strict=True)))
    logprobs, entropy, found_kl = chunked_logprobs.logprobs_entropy_kl(model, hidden, targets)
    close = partial(torch.testing.assert_close, atol=1e-12, rtol=1e-12)
    close(logprobs, expected[0])
    close(entropy, -(plain.exp() * plain).sum(-1))
    close(found_kl, torch.stack(kl) if kl else plain.new_zeros((0, 11)))
    close(chunked_logprobs.token_logprobs(model, hidden, targets), expected[0])
    assert not entropy.requires_grad
    for _ in range(2):  # a backward pass changes nothing that the next one reads
        terms = [logprobs, *found_kl]
        total = sum((w * t).sum() for w, t in zip(weights, terms, strict=True))
        for ours, theirs in zip(
            torch.autograd.grad(total, [hidden, weight], retain_graph=True), expected_grads, strict=True
        ):
            close(ours, theirs)


@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_the_heads_gradient_comes_from_onednn_only_with_cpu_kernels(
    cpu_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_family("Llama", tied=False, dtype=torch.float32, cpu_kernels=cpu_kernels)
    hidden = torch.randn(9, model.width).requires_grad_()
    logprobs, _, _ = chunked_logprobs.logprobs_entropy_kl(model, hidden, chunked_logprobs.Targets(torch.arange(9), 1.0))
    shapes: list[torch.Size] = []
    product = linear._product

    def watched(*arguments: Any) -> torch.Tensor:
        shapes.append(arguments[0].shape)
        return product(*arguments)

    monkeypatch.setattr(linear, "_product", watched)
    logprobs.sum().backward()
    assert shapes == ([torch.Size([9, model.vocabulary])] if cpu_kernels else [])


@pytest.mark.parametrize("kind", ["bias", "softcap", "scale"])
@pytest.mark.parametrize("size", [4, 100])
def test_heads_that_are_more_than_a_product_have_right_gradients(
    kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(0)
    head = model.model.get_output_embeddings()
    if kind == "bias":
        head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.vocabulary, dtype=torch.float64))
    elif kind == "softcap":
        model._softcap = 0.5
    else:
        model._scale = 3.0
    assert model.plain_head is None
    monkeypatch.setattr(chunked_logprobs, "CHUNK_ELEMENTS", size * model.vocabulary)
    drawn = torch.Generator().manual_seed(1)
    hidden = torch.randn(11, model.width, dtype=torch.float64, generator=drawn).requires_grad_()
    target = torch.randint(model.vocabulary, (11,), generator=drawn)
    weights = torch.randn(11, dtype=torch.float64, generator=drawn)
    wanted = [hidden, *model.head_parameters()]
    expected = torch.log_softmax(model.logits(hidden) / 0.9, -1)[range(11), target]
    found, _, _ = chunked_logprobs.logprobs_entropy_kl(model, hidden, chunked_logprobs.Targets(target, 0.9))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert len(wanted) == 2 + (kind == "bias")
    for ours, theirs in zip(
        torch.autograd.grad((weights * found).sum(), wanted),
        torch.autograd.grad((weights * expected).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.pitfall(7)
def test_full_kl_is_that_of_the_distributions_and_zero_at_identity() -> None:
    model, base, rows = tiny_model(0), tiny_model(1), everything()
    reference, itself = (score_reference(m, rows, 1.0, keep_hidden=True) for m in (base, model))
    found = score(model, rows, 1.0, [reference, itself], full_kl=True).kl_RS
    pairs = [(hf_logprobs(model, e)[0], hf_logprobs(base, e)[0]) for e in EPISODES]
    expected = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs])
    torch.testing.assert_close(found[0], expected, atol=1e-12, rtol=0)
    assert (expected > 0.01).all()
    assert found[1].abs().max() < 1e-12


@pytest.mark.pitfall(7)
def test_k3_of_a_model_is_positive_and_zero_at_identity() -> None:
    model, base, rows = tiny_model(0), tiny_model(1), everything()
    ours, theirs = score(model, rows, 1.0).logprobs_S, score_reference(base, rows, 1.0).logprobs_S
    assert (kl_loss(KLEstimator.K3, ours, theirs) > 0).all()
    assert kl_loss(KLEstimator.K3, ours, score_reference(model, rows, 1.0).logprobs_S).abs().max() < 1e-12


@pytest.mark.pitfall(6)
@pytest.mark.parametrize("pad_id", [END, 0])
def test_as_many_tokens_are_scored_as_were_generated(pad_id: int) -> None:
    rows = pack_episodes(EPISODES, range(len(EPISODES)), pad_id=pad_id)
    counts = turn_sums(torch.ones(len(rows.turn_S)), rows, len(EPISODES), 2)
    assert counts.tolist() == [[3, 2], [2, 4], [4, 1], [0, 2]]
    assert rows.mask_BT.sum(1).tolist() == [len(e.ids) for e in EPISODES]


@pytest.mark.pitfall(7)
def test_only_generated_tokens_are_scored() -> None:
    rows = everything()
    scored = rows.tokens_BT[rows.scored].tolist()
    assert scored == [i for e in EPISODES for part in e.turns if part.online for i in part.ids]
    online = [(k, part) for e in EPISODES for k, part in enumerate(e.turns) if part.online]
    assert rows.turn_S.tolist() == [k for k, part in online for _ in part.ids]


def test_turns_to_score_can_be_limited() -> None:
    rows = pack_episodes(EPISODES, [0, 1], pad_id=0, turns=[1])
    assert rows.tokens_BT[rows.scored].tolist() == [11, END, 11, 12, 13, END]
    assert len(rows.logprobs_S) == 6


def test_an_engines_logprobs_stay_with_their_tokens() -> None:
    made = [
        episode(turn([3], [7, END], logprobs=[-0.1, -0.2]), turn([4], [8, END], logprobs=[-0.3, -0.4])),
        episode(turn([3], [9], logprobs=[-0.5], online=False), turn([4], [END], logprobs=[-0.6])),
    ]
    rows = pack_episodes(made, [1, 0], pad_id=0)
    assert rows.logprobs_S.tolist() == [-0.6, -0.1, -0.2, -0.3, -0.4]
    assert rows.episode_S.tolist() == [1, 0, 0, 0, 0]
    sums = turn_sums(rows.logprobs_S, rows, 2, 2)
    torch.testing.assert_close(sums, torch.tensor([[-0.3, -0.7], [0.0, -0.6]], dtype=torch.float64), atol=1e-12, rtol=0)


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 30, 7, 2]
    batches = micro_batches(lengths, 12)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 12
    assert [5] in batches  # one row over the budget still goes, alone


def test_bfloat16_models_are_scored_in_float32() -> None:
    model = tiny_model(0, dtype=torch.bfloat16, spread=0.1)
    exact = tiny_model(0, dtype=torch.float64, spread=0.1)
    exact.model.load_state_dict(model.model.state_dict())
    found = score(model, everything(), 1.0).logprobs_S
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), one_by_one(exact, EPISODES), atol=0.05, rtol=0)
