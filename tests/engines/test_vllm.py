"""The `vllm` engine with the real package, against the `hf` engine and the policy's own scores: ``make test-vllm``.

Skipped where vLLM is not installed: it wants an environment of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from support.episodes import sample_key
from support.families import LORA, lively
from support.trainers import make_trainer, settings
from support.two_turns import GREEDY, PROMPTS, both_turns, gap, in_process, real, requests, tokens
from support.verifiers import FunctionVerifier

from selfcorrect.config.sampling import VLLMConfig
from selfcorrect.engines import HFEngine, Request, Sampling, VLLMEngine
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.types import StopReason

__all__ = ["in_process"]
pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return real(3)


@pytest.fixture(scope="module")
def shared(in_process: None, model: LanguageModel) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(model, VLLMConfig(), max_num_seqs=16, max_length=128)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: VLLMEngine, model: LanguageModel) -> VLLMEngine:
    """With the weights of ``model``, whatever the test before did to it."""
    shared.load_weights(model)
    return shared


# ---------------------------------------------------------------- the same distribution


def test_greedy_equals_the_hf_engine_over_both_turns(engine: VLLMEngine, model: LanguageModel) -> None:
    found, expected = (both_turns(e, GREEDY, requests(1)) for e in (engine, HFEngine(model)))
    assert tokens(found) == tokens(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.stop is b.stop
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4, rtol=0)
    assert {completion.stop for row in found for completion in row} == {StopReason.END, StopReason.LENGTH}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_the_policys(engine: VLLMEngine, model: LanguageModel, temperature: float) -> None:
    assert gap(engine, model, temperature) < 1e-4


def test_draws_follow_the_softmax_at_the_temperature(engine: VLLMEngine, model: LanguageModel) -> None:
    prompt, temperature, count = PROMPTS[0], 0.7, 2000
    asked = [Request(prompt, sample_key("many", g)) for g in range(count)]
    drawn = [completion.ids[0] for completion in engine.generate(asked, Sampling(temperature, 1))]
    with torch.no_grad():
        logits = model.logits(model.decode(torch.tensor([prompt])).last_hidden_state[0, -1])
    p = torch.softmax(logits.double() / temperature, 0).numpy()
    common = p * count >= 5
    seen = np.bincount(drawn, minlength=len(p))
    observed, expected = ([*x[common], x[~common].sum()] for x in (seen, p * count))
    assert stats.chisquare(observed, expected).pvalue > 0.01


def test_tokens_are_a_function_of_the_place(engine: VLLMEngine) -> None:
    """Neither order nor company nor what was asked before matters; every part of the place does."""
    first, sampling = requests(4), Sampling(1.0, 12)
    expected = tokens(both_turns(engine, sampling, first))
    assert len(set(expected)) > 8
    order = np.random.default_rng(0).permutation(len(first))
    assert tokens(both_turns(engine, sampling, [first[i] for i in order])) == [expected[i] for i in order]
    assert tokens(both_turns(engine, sampling, first[5:7])) == expected[5:7]
    hot = Sampling(2.0, 12)
    changes = [{}, {"seed": 1}, {"step": 1}, {"sample": 1}, {"turn": 1}, {"name": "q"}]
    found = engine.generate([Request(PROMPTS[0], sample_key(**change)) for change in changes], hot)
    assert len({completion.ids for completion in found}) == len(changes)


def test_the_same_call_gives_the_same_bits(engine: VLLMEngine) -> None:
    runs = []
    for _ in range(2):
        played = both_turns(engine, Sampling(1.0, 12), requests())
        runs.append([(c.ids, c.logprobs) for row in played for c in row])
        engine.generate([Request((3, 7, 16, 8), sample_key("other"))], GREEDY)
    assert runs[0] == runs[1]


def test_a_stop_text_ends_a_turn_with_the_token_that_completes_it(engine: VLLMEngine, model: LanguageModel) -> None:
    tokenizer = model.tokenizer
    free = engine.generate(requests(8), Sampling(1.0, 12))
    longest = [completion.ids for completion in free if len(completion.ids) == 12]
    stop = (tokenizer.decode(longest[0][3:5]), tokenizer.decode(longest[1][6:8]))  # two tokens each
    cut = engine.generate(requests(8), Sampling(1.0, 12, stop))
    reasons = set()
    for whole, part in zip(free, cut, strict=True):
        texts = [tokenizer.decode(whole.ids[: n + 1]) for n in range(len(whole.ids))]
        hits = [n for n, text in enumerate(texts) if any(s in text for s in stop)]
        assert part.ids == (whole.ids[: hits[0] + 1] if hits else whole.ids)
        assert len(part.logprobs) == len(part.ids)
        reasons.add(part.stop)
        if part.ids[-1] not in model.end_ids:
            assert part.stop is (StopReason.STOP if hits else StopReason.LENGTH)
    assert {StopReason.END, StopReason.STOP} <= reasons


def test_a_completion_ends_with_its_first_end_token_or_at_the_limit(engine: VLLMEngine, model: LanguageModel) -> None:
    done = engine.generate(requests(8), Sampling(1.0, 12))
    for completion in done:
        assert not model.end_ids & set(completion.ids[:-1])
        assert (completion.stop is StopReason.END) == (completion.ids[-1] in model.end_ids)
        assert completion.stop is StopReason.END or len(completion.ids) == 12
        assert len(completion.logprobs) == len(completion.ids)
    assert {1, 12} < {len(completion.ids) for completion in done}


# ---------------------------------------------------------------- weights


def test_generations_follow_new_weights(engine: VLLMEngine, model: LanguageModel) -> None:
    before, other = tokens(both_turns(engine, GREEDY, requests(1))), real(4)
    engine.load_weights(other)
    found = both_turns(engine, GREEDY, requests(1))
    assert tokens(found) == tokens(both_turns(HFEngine(other), GREEDY, requests(1))) != before
    assert gap(engine, other, 1.0) < 1e-4
    with torch.no_grad():  # the engine has a copy: what happens to the policy afterwards is none of its business
        other.model.lm_head.weight.mul_(-1.0)
    assert tokens(both_turns(engine, GREEDY, requests(1))) == tokens(found)
    engine.load_weights(model)
    assert tokens(both_turns(engine, GREEDY, requests(1))) == before


def test_a_lora_policys_adapter_is_in_the_weights(engine: VLLMEngine) -> None:
    base = real(5)
    adapted = lively(base)
    for view in (adapted, base, adapted):
        engine.load_weights(view)
        assert gap(engine, view, 1.0) < 1e-4
        assert tokens(both_turns(engine, GREEDY, requests(1))) == tokens(
            both_turns(HFEngine(view), GREEDY, requests(1))
        )
    engine.load_weights(base)
    assert gap(engine, adapted, 1.0) > 0.1


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_three_steps_of_score_keep_engine_and_policy_together(engine: VLLMEngine, lora: bool) -> None:
    """Learning so fast that a step without a weight update would show as a gap of a hundred times the limit."""
    base = real(6)
    policy = base.with_adapter("policy", LORA, seed=1) if lora else base.frozen_copy()
    policy.model.requires_grad_(not lora)
    for parameter in policy.parameters():
        parameter.requires_grad_(True)
    config = settings(
        stage={"bonus": 2.0},
        rollout={"engine": "vllm", "max_tokens": 6},
        optimizer={"learning_rate": 3e-2, "tis_cap": 2.0},
    )
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    trainer = make_trainer(config, policy=policy, base=base, verifier=verifier, engine=engine)
    engine.load_weights(policy)
    found = [trainer.step().metrics for _ in range(3)]
    assert max(metrics["max_logprob_diff"] for metrics in found) < 1e-3
    assert all(abs(metrics["importance_weight"] - 1) < 1e-3 for metrics in found)
    assert all(metrics["gradient_norm"] > 0 for metrics in found)
    engine.load_weights(base)
    assert gap(engine, policy, 1.0) > 0.1


def test_the_number_of_threads_can_still_be_set(engine: VLLMEngine) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
