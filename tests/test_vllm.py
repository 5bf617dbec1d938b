"""The `vllm` engine with the real package, against the `hf` engine and the policy's own scores: ``make test-vllm``.

Skipped where vLLM is not installed: it wants an environment of its own. Its heads must be 32 wide or more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FunctionVerifier, episode, make_trainer, sample_key, settings, tiny_model, turn
from crash import SETTINGS
from families import LORA, lively, of_family
from scipy import stats

from selfcorrect import models
from selfcorrect.batch import pack
from selfcorrect.config import VLLMConfig, load_config
from selfcorrect.engines import Completion, Engine, HFEngine, Request, Sampling, VLLMEngine
from selfcorrect.errors import ConfigError, InterruptedRun, ModelError
from selfcorrect.modeling import LanguageModel, load_model
from selfcorrect.policy import score
from selfcorrect.run import Callbacks, resume, train
from selfcorrect.types import StopReason

pytest.importorskip("vllm", reason="vLLM is tested in an environment of its own: make test-vllm")

GLUE = (3, 20, 19, 2, 4)
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4), (3, 12, 2, 4)]
GREEDY = Sampling(0.0, 12)
SHORT = VLLMConfig()
WIDE = {"hidden_size": 64}
"""Two heads of width 32."""


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
        yield


def real(seed: int, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model whose turns end at different times, with generation settings of its own that nobody may use."""
    model = tiny_model(seed, dtype=dtype, **WIDE)
    with torch.no_grad():
        model.model.lm_head.weight[min(model.end_ids)] *= 2.5
    own = {"do_sample": True, "temperature": 0.1, "top_p": 0.1, "top_k": 2, "repetition_penalty": 5.0}
    model.model.generation_config.update(**own)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return real(3)


@pytest.fixture(scope="module")
def shared(in_process: None, model: LanguageModel) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(model, SHORT, max_rows=16, max_length=128)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: VLLMEngine, model: LanguageModel) -> VLLMEngine:
    """With the weights of ``model``, whatever the test before did to it."""
    shared.load_weights(model)
    return shared


def requests(copies: int = 3) -> list[Request]:
    return [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(copies)]


def second(first: Sequence[Request], done: Sequence[Completion]) -> list[Request]:
    return [
        Request((*request.ids, *one.ids, *GLUE), sample_key(request.key.problem, request.key.sample, 1), one.handle)
        for request, one in zip(first, done, strict=True)
    ]


def both_turns(engine: Engine, sampling: Sampling, first: Sequence[Request]) -> list[tuple[Completion, Completion]]:
    ones = engine.generate(first, sampling, keep=True)
    return list(zip(ones, engine.generate(second(first, ones), sampling), strict=True))


def tokens(played: Sequence[tuple[Completion, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(completion.ids for completion in row) for row in played]


def gap(engine: Engine, policy: LanguageModel, temperature: float) -> float:
    """The greatest difference between the engine's log-probabilities of two sampled turns and the policy's."""
    first = requests()
    made = [
        episode(turn(request.ids, one.ids, logprobs=one.logprobs), turn(GLUE, two.ids, logprobs=two.logprobs))
        for request, (one, two) in zip(first, both_turns(engine, Sampling(temperature, 12), first), strict=True)
    ]
    rows = pack(made, range(len(made)), pad_id=policy.pad_id)
    with torch.no_grad():
        return float((score(policy, rows, temperature).logprobs_S.double() - rows.logprobs_S).abs().max())


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
    prompt, temperature, count = PROMPTS[0], 0.7, 3000
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
    hot = Sampling(3.0, 12)
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
        optimizer={"learning_rate": 3e-2, "importance_cap": 2.0},
    )
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    trainer = make_trainer(config, policy=policy, base=base, verifier=verifier)
    trainer.engine = engine
    engine.load_weights(policy)
    found = [trainer.step().metrics for _ in range(3)]
    assert max(metrics["engine_gap"] for metrics in found) < 1e-3
    assert all(abs(metrics["importance_weight"] - 1) < 1e-3 for metrics in found)
    assert all(metrics["gradient_norm"] > 0 for metrics in found)
    engine.load_weights(base)
    assert gap(engine, policy, 1.0) > 0.1


# ---------------------------------------------------------------- whole runs


def test_a_run_and_its_resumption_end_with_the_same_bits(tmp_path: Path) -> None:
    real(3).save(tmp_path / "model")
    changes = ["rollout.engine=vllm", "rollout.max_rows=16", "eval.controls=false", "model.lora.rank=2"]
    source = f"model.source={tmp_path / 'model'}"
    config = load_config("demo", [*SETTINGS, *changes, "stages.stage1.steps=2", "stages.score.steps=3", source])
    train(config, tmp_path / "whole")
    steps: list[object] = []
    callbacks = Callbacks(on_step=steps.append, should_stop=lambda: 15 if len(steps) == 3 else None)
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "cut", callbacks=callbacks)
    resume(tmp_path / "cut")
    metrics, again = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut"))
    assert metrics == again
    assert max(json.loads(line)["engine_gap"] for line in metrics.splitlines()) < 1e-3
    digests = [load_model(tmp_path / run / "checkpoints/score").digest() for run in ("whole", "cut")]
    assert digests[0] == digests[1]


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
def test_other_families_compute_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import families

    wide = {"head_dim": 32, **({"query_pre_attn_scalar": 32} if family == "Gemma2" else {})}
    monkeypatch.setitem(families.FAMILIES, family, {**families.FAMILIES[family], **wide})
    model = of_family(family, tied=True, dtype=torch.float32)
    engine = VLLMEngine(model, SHORT, max_rows=16, max_length=60)
    try:
        assert gap(engine, model, 1.0) < 1e-3
        other = of_family(family, tied=True, dtype=torch.float32, seed=1)
        engine.load_weights(other)
        assert gap(engine, other, 1.0) < 1e-3
    finally:
        engine.close()


def test_bfloat16_is_close() -> None:
    model = real(3, torch.bfloat16)
    engine = VLLMEngine(model, SHORT, max_rows=16, max_length=60)
    try:
        assert gap(engine, model, 1.0) < 0.5
    finally:
        engine.close()


def test_smollm2_where_it_is_at_hand() -> None:
    place = models.cache_home() / "models" / f"{models.SMOLLM2}-{models.WEIGHTS_DIGEST[:12]}"
    if not (place / "config.json").is_file():
        pytest.skip("selfcorrect models fetch smollm2-135m")
    model = load_model(place)
    prompt = tuple(
        model.tokenizer("<|im_start|>user\nWhat is 7 times 8?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )
    engine = VLLMEngine(model, SHORT, max_rows=4, max_length=100)
    try:
        found, expected = (e.generate([Request(prompt, sample_key())], GREEDY)[0] for e in (engine, HFEngine(model)))
    finally:
        engine.close()
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- refusals and manners


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason() -> None:
    with pytest.raises(ModelError, match=r"vLLM cannot be started with this model: .*16"):
        VLLMEngine(tiny_model(0, dtype=torch.float32), SHORT, max_rows=4, max_length=60)


def test_weights_that_do_not_arrive_are_noticed(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VLLMEngine, "load_weights", lambda self, policy: None)
    with pytest.raises(ModelError, match="vLLM computes something else than LlamaForCausalLM"):
        VLLMEngine(model, SHORT, max_rows=4, max_length=60)


def test_options_that_the_engine_sets_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"vllm\.options sets load_format, which the engine sets itself"):
        VLLMEngine(model, VLLMConfig(options={"load_format": "auto"}), max_rows=4, max_length=60)


def test_the_number_of_threads_can_still_be_set(engine: VLLMEngine) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
