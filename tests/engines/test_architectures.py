"""Architectures that differ in what a later token may see: sliding windows, and models without keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.episodes import sample_key
from support.families import SMALL, TOKENIZER, of_family
from support.models import tiny_model

from selfcorrect.__main__ import main
from selfcorrect.engines import Completion, HFEngine, Request, Sampling
from selfcorrect.errors import ModelError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.runs.run import train

GLUE = (2, 3, 20, 2, 4)
PROMPTS = [(3, 7, 16, 8, 17, 2, 4), (3, 9, 2, 4), (3, 7, 7, 9, 16, 8, 8, 8, 17, 2, 4)]
WINDOWS: dict[str, dict[str, Any]] = {
    "Mistral": {},
    "Phi3": {},
    "Gemma2": {"head_dim": 16},
    "Gemma3": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "Qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "Cohere2": {"layer_types": ["full_attention", "sliding_attention"]},
}


def windowed(family: str, window: int) -> LanguageModel:
    """A tiny model of a family with a sliding window, in float64."""
    kind = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    config = kind(**{**SMALL, "initializer_range": 0.25, "sliding_window": window, **WINDOWS[family]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    return LanguageModel(model.double(), TOKENIZER)


def command(folder: Path) -> list[str]:
    """Evaluate the model in ``folder / "m"`` into ``folder / "e"``."""
    places = ["--model", str(folder / "m"), "--out", str(folder / "e"), "--device", "cpu"]
    return ["eval", *places, "--task", "addition", "--limit", "4", "--max-tokens", "8", "-q"]


def two_turns(model: LanguageModel) -> list[tuple[Request, Completion]]:
    """Requests of two turns, the second on the first's cache, and what was sampled."""
    engine, sampling = HFEngine(model), Sampling(1.0, 9)
    first = [Request(prompt, sample_key(f"p{i}", g)) for i, prompt in enumerate(PROMPTS) for g in range(3)]
    ones = engine.generate(first, sampling, keep=True)
    second = [
        Request((*r.ids, *one.ids, *GLUE), sample_key(r.key.problem, r.key.sample, 1), one.handle)
        for r, one in zip(first, ones, strict=True)
    ]
    return [*zip(first, ones, strict=True), *zip(second, engine.generate(second, sampling), strict=True)]


@pytest.mark.parametrize("family", WINDOWS)
def test_rows_longer_than_a_sliding_window_are_sampled_as_the_family_computes_them(family: str) -> None:
    """Token by token, from scratch, without a cache or padding: by the family's own code."""
    model = windowed(family, 5)
    model.end_ids = frozenset(range(2, len(TOKENIZER), 4))  # so that turns differ in length
    found = two_turns(model)
    assert len({len(one.ids) for _, one in found}) > 2, "rows of several lengths share a batch"
    wider, moved = windowed(family, 120), 0.0
    for request, one in found:
        ids = torch.tensor([[*request.ids, *one.ids]])
        given = len(request.ids)
        with torch.no_grad():
            own, wide = (
                torch.log_softmax(m.model(input_ids=ids, use_cache=False).logits[0, given - 1 : -1].double(), -1)
                for m in (model, wider)
            )
        picked = ids[0, given:, None]
        torch.testing.assert_close(
            torch.tensor(one.logprobs, dtype=torch.float64), own.gather(-1, picked)[:, 0], atol=1e-5, rtol=0
        )
        moved = max(moved, float((own - wide).abs().max()))
    assert moved > 0.1, "the window matters here"


def test_an_evaluation_runs_beyond_the_window(tmp_path: Path) -> None:
    of_family("Mistral", tied=False, dtype=torch.float32, sliding_window=6).save(tmp_path / "m")
    assert main(command(tmp_path)) == 0


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 4, "num_hidden_layers": 2, "hidden_size": 32},
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64},
    "RecurrentGemma": {**SMALL},
}


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_a_model_without_keys_and_values_is_refused_before_the_work(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"vocab_size": len(TOKENIZER), "eos_token_id": TOKENIZER.eos_token_id, **UNSUPPORTED[family]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**given)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():  # far from zero, where it would make no difference
        torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(tmp_path / "m")
    TOKENIZER.save_pretrained(tmp_path / "m")
    assert main(command(tmp_path)) == 2
    told = capsys.readouterr().err
    assert f"{family}ForCausalLM is not supported" in told and "This is a bug" not in told
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_training_refuses_it_too(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=len(TOKENIZER), state_size=4, num_hidden_layers=2, hidden_size=32)
    with pytest.raises(ModelError, match="keeps no keys and values"):
        train("demo", tmp_path / "run", model=transformers.MambaForCausalLM(config), tokenizer=TOKENIZER)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model(dtype=torch.float32).save(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    rows = len(tokenizer)
    tokenizer.add_tokens(["<tool>", "<call>"])
    tokenizer.save_pretrained(tmp_path / "m")
    assert main(command(tmp_path)) == 2
    told = capsys.readouterr().err
    assert f"2 tokens without an embedding: ids below {rows} have one" in told and f"'<tool>' ({rows})" in told
    assert "resize_token_embeddings" in told and not (tmp_path / "e").exists()
