"""Test the `vllm` engine with the real package: whole runs, model families, errors. Each test has a separate engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import families
from support.crash import SETTINGS
from support.episodes import sample_key
from support.models import tiny_model
from support.two_turns import GREEDY, gap, in_process, real

from selfcorrect import evaluate
from selfcorrect.config.sampling import VLLMConfig
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine, Request, VLLMEngine
from selfcorrect.errors import ConfigError, InterruptedRun, ModelError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import load_model
from selfcorrect.runs.run import resume, train
from selfcorrect.zoo import registry
from selfcorrect.zoo.smollm2 import WEIGHTS_DIGEST

__all__ = ["in_process"]
pytestmark = pytest.mark.vllm

SHORT = VLLMConfig()


# ---------------------------------------------------------------- whole runs


@pytest.mark.usefixtures("lenient")
def test_a_run_and_its_resumption_end_with_the_same_bits(tmp_path: Path) -> None:
    real(3).save(tmp_path / "model")
    changes = ["rollout.engine=vllm", "rollout.max_num_seqs=16", "eval.controls=false", "model.lora.rank=2"]
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
    assert max(json.loads(line)["max_logprob_diff"] for line in metrics.splitlines()) < 1e-3
    digests = [load_model(tmp_path / run / "checkpoints/score").digest() for run in ("whole", "cut")]
    assert digests[0] == digests[1] != load_model(tmp_path / "whole/checkpoints/base").digest()


def test_an_evaluation_is_sampled_by_vllm(tmp_path: Path) -> None:
    """Greedy attempts equal those of `hf`, and the directory records the engine."""
    real(3).save(tmp_path / "model")
    how = {"limit": 4, "max_tokens": 6, "max_num_seqs": 8, "device": "cpu"}
    found, expected = (
        evaluate(str(tmp_path / "model"), "addition", engine=engine, out=tmp_path / engine, **how)
        for engine in ("vllm", "hf")
    )
    tokens = [[[turn.tokens for turn in record.turns] for record in one.episodes] for one in (found, expected)]
    assert tokens[0] == tokens[1]
    identity = json.loads((tmp_path / "vllm/eval.json").read_text())
    assert identity["plan"]["engine"] == {"name": "vllm", "options": {"dtype": None}}


# ---------------------------------------------------------------- models


def test_a_model_with_tied_embeddings_gets_all_its_new_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM computes logits with a packed copy of the embedding, which a mere reload would not update."""
    monkeypatch.setitem(families.FAMILIES, "Qwen3", {"head_dim": 32})
    model, other = (families.of_family("Qwen3", tied=True, dtype=torch.float32, seed=seed) for seed in (0, 1))
    engine = VLLMEngine(model, SHORT, max_num_seqs=16, max_length=60)
    try:
        assert gap(engine, model, 1.0) < 1e-4
        engine.load_weights(other)
        assert gap(engine, other, 1.0) < 1e-4
    finally:
        engine.close()


def test_bfloat16_is_close() -> None:
    model = real(3, torch.bfloat16)
    engine = VLLMEngine(model, SHORT, max_num_seqs=16, max_length=60)
    try:
        assert gap(engine, model, 1.0) < 0.5
    finally:
        engine.close()


@pytest.mark.nightly
def test_smollm2_where_it_is_at_hand() -> None:
    place = registry.cache_home() / "models" / f"{registry.SMOLLM2}-{WEIGHTS_DIGEST[:12]}"
    if not (place / "config.json").is_file():
        pytest.skip("selfcorrect models fetch smollm2-135m")
    model = load_model(place)
    prompt = tuple(
        model.tokenizer("<|im_start|>user\nWhat is 7 times 8?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )
    engine = VLLMEngine(model, SHORT, max_num_seqs=4, max_length=100)
    try:
        found, expected = (e.generate([Request(prompt, sample_key())], GREEDY)[0] for e in (engine, HFEngine(model)))
    finally:
        engine.close()
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- refusals and manners


def test_a_model_that_vllm_cannot_run_is_refused_with_its_reason() -> None:
    with pytest.raises(ModelError, match=r"vLLM cannot run this model: .*head_dim=16"):
        VLLMEngine(tiny_model(0, dtype=torch.float32), SHORT, max_num_seqs=4, max_length=60)


def test_weights_that_do_not_arrive_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VLLMEngine, "load_weights", lambda self, policy: None)
    with pytest.raises(ModelError, match="vLLM and LlamaForCausalLM disagree"):
        VLLMEngine(real(3), SHORT, max_num_seqs=4, max_length=60)


def test_options_that_the_engine_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"vllm\.options sets load_format, which the engine sets itself"):
        VLLMEngine(real(3), VLLMConfig(options={"load_format": "auto"}), max_num_seqs=4, max_length=60)
