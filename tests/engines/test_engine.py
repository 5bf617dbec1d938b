"""The engine against Hugging Face's `generate`, the policy's scores, and itself in other batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.episodes import episode, sample_key, turn
from support.models import tiny_model
from support.packing import pack_episodes

from selfcorrect.engines import Completion, HFEngine, Request, Sampling
from selfcorrect.engines import kv_cache as cache
from selfcorrect.engines.hf import DRAW_BLOCK, draw
from selfcorrect.engines.kv_cache import PreallocatedLayer
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.scoring import score
from selfcorrect.types import StopReason

pytestmark = pytest.mark.usefixtures("either_way")
SHARES_KEYS = pytest.mark.parametrize("either_way", ["fast forward pass", "fast, shared prefixes"], indirect=True)
"""The general forward pass shares none."""

GLUE = (3, 20, 19, 2, 4)
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4), (3, 12, 2, 4)]
"""Of different lengths; each is asked several times."""

T1 = Sampling(1.0, 12)
GREEDY = Sampling(0.0, 12)


def requests(copies: int = 3) -> list[Request]:
    return [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(copies)]


def glue_of(request: Request) -> tuple[int, ...]:
    """Its length differs from row to row."""
    return GLUE[: 3 + (request.key.sample + len(request.ids)) % 3]


def second(first: Sequence[Request], done: Sequence[Completion], *, continued: bool = True) -> list[Request]:
    """The second turn's requests."""
    made = []
    for request, completion in zip(first, done, strict=True):
        key = sample_key(request.key.problem, request.key.sample, 1)
        ids = (*request.ids, *completion.ids, *glue_of(request))
        made.append(Request(ids, key, completion.handle if continued else None))
    return made


def both_turns(engine: HFEngine, sampling: Sampling, first: Sequence[Request]) -> list[tuple[Completion, Completion]]:
    ones = engine.generate(first, sampling, keep=True)
    return list(zip(ones, engine.generate(second(first, ones), sampling), strict=True))


def tokens(played: Sequence[tuple[Completion, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(completion.ids for completion in row) for row in played]


def ending_model(dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model whose rows end at many different times: the end token has a raised, context-dependent chance."""
    model = tiny_model(3, dtype=dtype)
    with torch.no_grad():
        model.model.lm_head.weight[min(model.end_ids)] *= 2.5
    return model


@pytest.fixture(scope="module")
def ending() -> LanguageModel:
    return ending_model()


def test_the_models_of_these_tests_end_at_different_times(ending: LanguageModel) -> None:
    played = both_turns(HFEngine(ending), T1, requests(8))
    lengths = {len(completion.ids) for row in played for completion in row}
    assert {1, 12} < lengths
    assert len(lengths) >= 6
    stops = {completion.stop for row in played for completion in row}
    assert stops == {StopReason.END, StopReason.LENGTH}


def hf_greedy(model: LanguageModel, ids: Sequence[int], limit: int) -> tuple[int, ...]:
    given = torch.tensor([list(ids)])
    # Without a mask of its own, `generate` would hide sampled padding ids in the context.
    out = model.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=sorted(model.end_ids),
    )
    return tuple(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_greedy_equals_hugging_face_over_both_turns(seed: int) -> None:
    model = tiny_model(seed)
    with torch.no_grad():
        model.model.lm_head.weight[min(model.end_ids)] *= 2.5
    first = requests(1)
    for request, (one, two) in zip(first, both_turns(HFEngine(model), GREEDY, first), strict=True):
        assert one.ids == hf_greedy(model, request.ids, 12)
        context = (*request.ids, *one.ids, *glue_of(request))
        assert two.ids == hf_greedy(model, context, 12)


def test_the_second_turn_from_the_cache_equals_a_fresh_start(ending: LanguageModel) -> None:
    engine, first = HFEngine(ending), requests()
    ones = engine.generate(first, T1, keep=True)
    cached = engine.generate(second(first, ones), T1)
    fresh = engine.generate(second(first, ones, continued=False), T1)
    assert [c.ids for c in cached] == [c.ids for c in fresh]
    for a, b in zip(cached, fresh, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-12, rtol=0)


def test_a_third_turn_continues_the_second(ending: LanguageModel) -> None:
    engine, first = HFEngine(ending), requests()
    ones = engine.generate(first, T1, keep=True)
    twos_asked = second(first, ones)
    twos = engine.generate(twos_asked, T1, keep=True)
    threes_asked = second(twos_asked, twos)
    cached, fresh = engine.generate(threes_asked, T1), engine.generate(second(twos_asked, twos, continued=False), T1)
    assert [c.ids for c in cached] == [c.ids for c in fresh]


def test_a_request_that_does_not_extend_its_parent_is_our_bug(ending: LanguageModel) -> None:
    engine = HFEngine(ending)
    (one,) = engine.generate([Request(PROMPTS[0], sample_key())], T1, keep=True)
    with pytest.raises(AssertionError, match="extend"):
        engine.generate([Request((3, 3, 3, *one.ids, *GLUE), sample_key(), one.handle)], T1)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_the_policys(dtype: torch.dtype, limit: float, temperature: float) -> None:
    model, first = ending_model(dtype), requests()
    sampling = Sampling(temperature, 12)
    ones = HFEngine(model).generate(first, sampling, keep=True)
    follow = second(first, ones)
    twos = HFEngine(model).generate(follow, sampling)
    made = [
        episode(
            turn(request.ids, one.ids, logprobs=one.logprobs),
            turn(later.ids[len(request.ids) + len(one.ids) :], two.ids, logprobs=two.logprobs),
        )
        for request, one, later, two in zip(first, ones, follow, twos, strict=True)
    ]
    rows = pack_episodes(made, range(len(made)), pad_id=model.pad_id)
    gap = (score(model, rows, temperature).logprobs_S.double() - rows.logprobs_S).abs().max()
    assert gap < limit


@pytest.mark.pitfall(18)
@pytest.mark.parametrize("max_num_seqs", [1, 3, 64])
def test_batch_size_order_and_company_change_no_token(ending: LanguageModel, max_num_seqs: int) -> None:
    first = requests(4)
    expected = tokens(both_turns(HFEngine(ending), T1, first))
    assert len(set(expected)) > 8
    assert tokens(both_turns(HFEngine(ending, max_num_seqs=max_num_seqs), T1, first)) == expected
    order = np.random.default_rng(0).permutation(len(first))
    shuffled = tokens(both_turns(HFEngine(ending, max_num_seqs=max_num_seqs), T1, [first[i] for i in order]))
    assert shuffled == [expected[i] for i in order]
    some = [1, 5, 6, 14]
    alone = tokens(both_turns(HFEngine(ending, max_num_seqs=max_num_seqs), T1, [first[i] for i in some]))
    assert alone == [expected[i] for i in some]


def test_the_second_turn_may_be_batched_in_another_order(ending: LanguageModel) -> None:
    engine, first = HFEngine(ending), requests(4)
    ones = engine.generate(first, T1, keep=True)
    follow = second(first, ones)
    expected = [c.ids for c in engine.generate(follow, T1)]
    order = np.random.default_rng(1).permutation(len(first))
    found = HFEngine(ending, max_num_seqs=5).generate([follow[i] for i in order], T1)
    assert [c.ids for c in found] == [expected[i] for i in order]


def test_continued_and_fresh_requests_share_a_call(ending: LanguageModel) -> None:
    engine, first = HFEngine(ending), requests(2)
    ones = engine.generate(first, T1, keep=True)
    follow, fresh = second(first, ones), second(first, ones, continued=False)
    mixed = [follow[i] if i % 2 else fresh[i] for i in range(len(first))]
    assert [c.ids for c in engine.generate(mixed, T1)] == [c.ids for c in engine.generate(follow, T1)]


def test_in_float32_the_same_batch_gives_the_same_tokens() -> None:
    model = ending_model(torch.float32)
    runs = [both_turns(HFEngine(model), T1, requests(8)) for _ in range(2)]
    assert tokens(runs[0]) == tokens(runs[1])
    assert [c.logprobs for row in runs[0] for c in row] == [c.logprobs for row in runs[1] for c in row]


@pytest.mark.parametrize("many", [10_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_in_float32_other_batches_flip_hardly_a_token(many: int) -> None:
    """At most 1 token in 100,000; once a token differs, the rest of its row may too and does not count."""
    model = tiny_model(0, dtype=torch.float32)
    asked = [Request(prompt, sample_key("many", g)) for g in range(many * 14 // 1000) for prompt in PROMPTS]
    sampling = Sampling(1.0, 40)
    small, large = (HFEngine(model, max_num_seqs=rows).generate(asked, sampling) for rows in (300, 5000))
    assert sum(len(completion.ids) for completion in large) > many
    assert sum(a.ids != b.ids for a, b in zip(small, large, strict=True)) <= 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"step": 1}, {"sample": 1}, {"turn": 1}, {"name": "q"}])
def test_every_part_of_the_place_decides_the_random_numbers(ending: LanguageModel, change: dict) -> None:
    base = sample_key()
    other = sample_key(**change)
    assert not np.array_equal(base.uniforms(8), other.uniforms(8))
    found = HFEngine(ending).generate([Request(PROMPTS[0], key) for key in (base, other)], Sampling(3.0, 12))
    assert found[0].ids != found[1].ids


def test_a_longer_limit_only_appends(ending: LanguageModel) -> None:
    short = HFEngine(ending).generate(requests(), Sampling(1.0, 5))
    long = HFEngine(ending).generate(requests(), Sampling(1.0, 12))
    assert [c.ids for c in short] == [c.ids[:5] for c in long]


def test_finished_rows_leave_the_batch(ending: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    read = HFEngine.read

    def counted(engine: HFEngine, before: Any, ids_BS: torch.Tensor, valid_BS: torch.Tensor) -> Any:
        rows.append(len(ids_BS))
        return read(engine, before, ids_BS, valid_BS)

    monkeypatch.setattr(HFEngine, "read", counted)
    done = HFEngine(ending).generate(requests(8), T1)
    assert rows[0] == len(PROMPTS)  # a prompt shared by several samples is read once
    assert rows[1] == 8 * len(PROMPTS)
    assert rows[-1] < 0.8 * rows[1]
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert sum(len(c.ids) > 1 for c in done) <= rows[1]


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_when_finished_rows_leave_changes_no_token(
    ending: LanguageModel, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(both_turns(HFEngine(ending), T1, requests(6)))
    monkeypatch.setattr("selfcorrect.engines.hf.LEAVE_SHARE", share)
    assert tokens(both_turns(HFEngine(ending), T1, requests(6))) == expected


@pytest.mark.pitfall(6)
def test_a_completion_ends_with_its_first_end_token_or_at_the_limit(ending: LanguageModel) -> None:
    ends = ending.end_ids
    done = HFEngine(ending).generate(requests(8), T1)
    for completion in done:
        assert not ends & set(completion.ids[:-1])
        assert (completion.stop is StopReason.END) == (completion.ids[-1] in ends)
        assert completion.stop is StopReason.END or len(completion.ids) == 12
        assert len(completion.logprobs) == len(completion.ids)


def test_a_models_own_generation_settings_are_ignored(ending: LanguageModel) -> None:
    expected = tokens(both_turns(HFEngine(ending), T1, requests()))
    greedy = tokens(both_turns(HFEngine(ending), GREEDY, requests()))
    other = ending_model()
    own = {"do_sample": True, "temperature": 0.1, "top_p": 0.1, "top_k": 2, "repetition_penalty": 5.0}
    other.model.generation_config.update(**own)
    assert tokens(both_turns(HFEngine(other), T1, requests())) == expected
    assert tokens(both_turns(HFEngine(other), GREEDY, requests())) == greedy


def test_every_end_id_of_the_model_ends_a_turn() -> None:
    model = tiny_model(3)
    model.model.generation_config.eos_token_id = [2, 9]
    both = LanguageModel(model.model, model.tokenizer)
    assert both.end_ids == {2, 9}
    done = HFEngine(both).generate(requests(8), Sampling(3.0, 40))
    assert {completion.ids[-1] for completion in done if completion.stop is StopReason.END} == {2, 9}


def test_a_stop_text_ends_a_turn_with_the_token_that_completes_it(ending: LanguageModel) -> None:
    """Found in the text, so also across tokens: every completion is the unlimited one up to the first of the texts."""
    tokenizer, free = ending.tokenizer, HFEngine(ending).generate(requests(8), T1)
    longest = [completion.ids for completion in free if len(completion.ids) == 12]
    stop = (tokenizer.decode(longest[0][3:5]), tokenizer.decode(longest[1][6:8]))  # two tokens each
    cut = HFEngine(ending, max_num_seqs=5).generate(requests(8), Sampling(1.0, 12, stop))
    reasons = set()
    for whole, part in zip(free, cut, strict=True):
        texts = [tokenizer.decode(whole.ids[: n + 1]) for n in range(len(whole.ids))]
        hits = [n for n, text in enumerate(texts) if any(s in text for s in stop)]
        assert part.ids == (whole.ids[: hits[0] + 1] if hits else whole.ids)
        reasons.add(part.stop)
        if part.ids[-1] in ending.end_ids:
            assert part.stop is StopReason.END
        else:
            assert part.stop is (StopReason.STOP if hits else StopReason.LENGTH)
    assert {StopReason.END, StopReason.STOP} <= reasons
    # The last token that is allowed may complete the text: that is a stop, as an end token there is an end.
    b, hit = next((b, part) for b, part in enumerate(cut) if part.stop is StopReason.STOP)
    (last,) = HFEngine(ending).generate([requests(8)[b]], Sampling(1.0, len(hit.ids), stop))
    assert (last.ids, last.stop) == (hit.ids, StopReason.STOP)


def test_several_turns_may_go_on_from_the_same_attempt(ending: LanguageModel) -> None:
    """What is parked stays as it is, whoever goes on from it and however often."""
    engine = HFEngine(ending)
    (one,) = engine.generate([Request(PROMPTS[0], sample_key())], Sampling(1.0, 3), keep=True)
    ids = (*PROMPTS[0], *one.ids)
    asked = [Request((*ids, *GLUE[: 3 + k]), sample_key(sample=k, turn=1), one.handle) for k in range(3)]
    expected = [engine.generate([Request(a.ids, a.key)], T1)[0].ids for a in asked]
    assert len(set(expected)) == 3
    for _ in range(2):
        assert [c.ids for c in engine.generate(asked, T1, keep=True)] == expected
        assert [engine.generate([a], T1)[0].ids for a in asked] == expected


# ---------------------------------------------------------------- the cache


def test_the_cache_holds_what_joining_tensors_would() -> None:
    drawn, layer = torch.Generator().manual_seed(0), PreallocatedLayer()
    joined = torch.zeros(2, 3, 2, 0, 4)
    copies = 0
    for count in [5, *[1] * 40, 3, *[1] * 40]:
        states = torch.randn(2, 3, 2, count, 4, generator=drawn)
        before, held = joined, (layer.keys, layer.values)
        joined = torch.cat([joined, states], 3)
        keys, values = layer.update(states[0], states[1])
        assert torch.equal(torch.stack([keys, values]), joined)
        assert layer.get_seq_length() == joined.shape[3]
        if held[0] is not None:
            assert torch.equal(torch.stack(held), before)
            copies += held[0].data_ptr() != keys.data_ptr()
    assert 1 < copies < 8


def test_a_token_is_written_into_the_cache_without_a_copy_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 tokens that no row leaves, a few find no room."""
    model, places, read = tiny_model(3), [], HFEngine.read
    model.end_ids = frozenset({-1})

    def watched(*args: Any) -> Any:
        cache, logits = read(*args)
        places.append(cache.layers[0].keys.data_ptr())
        return cache, logits

    monkeypatch.setattr(HFEngine, "read", watched)
    HFEngine(model).generate(requests(), Sampling(1.0, 60))
    assert len(places) == 60
    assert sum(a != b for a, b in pairwise(places)) < 8


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """Of every cache that was read: its rows, and the prompts that they share."""
    found, read = [], HFEngine.read

    def watched(*args: Any) -> Any:
        after, logits = read(*args)
        found.append((len(after.mask_BL), after.prefix and len(after.prefix.layers[0].keys)))
        return after, logits

    monkeypatch.setattr(HFEngine, "read", watched)
    return found


@SHARES_KEYS
@pytest.mark.pitfall(9)
def test_prompts_that_rows_share_are_in_the_cache_once(
    ending: LanguageModel, held: list[tuple[int, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over both turns, while rows leave; what several samplings parked is copied into one."""
    monkeypatch.setattr(cache, "SHARED_FROM", -(2**60))
    asked, engine = requests(), HFEngine(ending)
    ones = engine.generate(asked, T1, keep=True)
    assert held[:2] == [(4, None), (12, 4)]
    assert any(prompts is not None and prompts < 4 for _, prompts in held), "a prompt whose rows all left is dropped"
    held.clear()
    expected = [c.ids for c in engine.generate(second(asked, ones), T1)]
    assert held[0] == (12, 4)
    apart = [*engine.generate(asked[:6], T1, keep=True), *engine.generate(asked[6:], T1, keep=True)]
    held.clear()
    assert [c.ids for c in engine.generate(second(asked, apart), T1)] == expected
    assert held[0] == (12, None)


@SHARES_KEYS
def test_few_rows_that_are_left_get_copies_of_their_prompts(
    ending: LanguageModel, held: list[tuple[int, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARED_FROM", 2**60)
    expected = tokens(both_turns(HFEngine(ending), T1, requests()))
    config = ending.model.config
    prompt = 2 * max(map(len, PROMPTS)) * config.num_key_value_heads * config.head_dim * 8
    monkeypatch.setattr(cache, "SHARED_FROM", (12 - 4) * prompt)
    held.clear()
    HFEngine(ending).generate(requests(), T1)
    assert held[1] == (12, 4)
    assert held[-1][0] < 12
    assert all((prompts is None) == (rows < 12) for rows, prompts in held[1:])
    assert tokens(both_turns(HFEngine(ending), T1, requests())) == expected


# ---------------------------------------------------------------- drawing one token


def test_draws_follow_the_softmax() -> None:
    count, temperature = 200_000, 0.8
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0, 1.0, -2.5], dtype=torch.float64)
    uniforms = torch.from_numpy(np.random.default_rng(7).random(count))
    ids, logprobs = draw(logits.expand(count, -1), uniforms, temperature)
    p = torch.softmax(logits / temperature, 0)
    assert stats.chisquare(np.bincount(ids, minlength=6), (p * count).numpy()).pvalue > 0.01
    torch.testing.assert_close(logprobs, p.log()[ids], atol=1e-12, rtol=0)


def test_draws_invert_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    uniforms = torch.tensor([0.0, 0.1999, 0.2001, 0.6999, 0.7001, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(6, -1), uniforms, 1.0)[0].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_probability_zero_is_never_drawn(dtype: torch.dtype) -> None:
    logits = torch.tensor([-torch.inf, 1.0, -torch.inf, -torch.inf, 0.0, -torch.inf], dtype=dtype)
    edges = torch.tensor([0.0, 5e-324, 2**-53, 1 - 2**-53, float(torch.softmax(logits, 0)[1])], dtype=torch.float64)
    uniforms = torch.cat([edges, torch.from_numpy(np.random.default_rng(0).random(10_000))])
    assert set(draw(logits.expand(len(uniforms), -1), uniforms, 1.0)[0].tolist()) == {1, 4}


def test_greedy_takes_the_most_likely_and_reports_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]], dtype=torch.float64)
    ids, logprobs = draw(logits, torch.tensor([0.999]), 0.0)
    assert ids.tolist() == [1]
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1)[:, 1], atol=1e-15, rtol=0)


@pytest.mark.parametrize("vocabulary", [2 * DRAW_BLOCK, 2 * DRAW_BLOCK + 1, 3 * DRAW_BLOCK, 5 * DRAW_BLOCK - 3])
def test_looking_into_one_block_draws_what_the_whole_cumulative_sum_would(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = torch.from_numpy(rng.normal(size=(4000, vocabulary)) * 3)
    uniforms = torch.from_numpy(rng.random(len(logits)))
    ids, logprobs = draw(logits, uniforms, 0.9)
    p = torch.softmax(logits / 0.9, -1)
    expected = torch.searchsorted(p.cumsum(-1), uniforms[:, None], right=True)
    assert torch.equal(ids, expected[:, 0])
    torch.testing.assert_close(logprobs, p.gather(-1, expected)[:, 0].log(), atol=1e-12, rtol=0)


def test_what_logits_without_numbers_draw_is_in_the_vocabulary() -> None:
    """The run then ends with the message of a gradient that is not finite, not with an id that is out of bounds."""
    for bad in (torch.nan, torch.inf):
        ids, logprobs = draw(torch.full((1, 3 * DRAW_BLOCK + 9), bad), torch.tensor([0.5]), 1.0)
        assert 0 <= int(ids) < 3 * DRAW_BLOCK + 9 and not logprobs.isfinite().any()


def test_no_block_without_probability_is_hit_and_no_token_without_it_in_a_block() -> None:
    logits = torch.full((1, 4 * DRAW_BLOCK + 9), -torch.inf)
    likely = [DRAW_BLOCK + 3, 2 * DRAW_BLOCK - 5, 3 * DRAW_BLOCK, 4 * DRAW_BLOCK + 2]
    logits[0, likely] = torch.tensor([1.0, 0.0, -1.0, 0.5])
    sums = torch.softmax(logits, -1)[0].double().cumsum(0)[likely]
    edges = torch.cat([torch.tensor([0.0, 5e-324, 1 - 2**-53], dtype=torch.float64), sums[:3], sums[:3] - 1e-17])
    uniforms = torch.cat([edges, torch.from_numpy(np.random.default_rng(1).random(10_000))])
    assert set(draw(logits.expand(len(uniforms), -1), uniforms, 1.0)[0].tolist()) == set(likely)
