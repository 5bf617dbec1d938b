"""Tests of the estimate against hand-computed sizes of two published models; their weights are not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config
from selfcorrect.errors import ModelError
from selfcorrect.runs.estimate import GIB, Cluster, Lengths, ModelShape, estimate, most_rows

QWEN_1_5B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
LENGTHS = Lengths(prompt=200, answer=400)
CARD = Cluster(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen/config.json").write_text(json.dumps(QWEN_1_5B))
    return tmp_path / "qwen"


def config(folder: Path, *changes: str) -> Config:
    return load_config("qwen_math", [f"model.source={folder}", *changes])


def full(folder: Path, *changes: str) -> Config:
    settings = config(folder, *changes)
    return settings.model_copy(update={"model": settings.model.model_copy(update={"lora": None})})


def test_the_shape_counts_every_weight_once(folder: Path) -> None:
    shape = ModelShape.of(config(folder))
    attention = 1536 * 1536 * 2 + 1536 * 256 * 2 + 1536 + 2 * 256  # q and o; k and v; the biases of q, k and v
    layer = attention + 3 * 1536 * 8960 + 2 * 1536
    assert shape.parameters == 28 * layer + 151936 * 1536 + 1536 == 1_543_714_304
    assert shape.kv_numbers == 28 * 2 * 2 * 128
    sides = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert shape.trained == 28 * 32 * sides


def test_memory_is_the_sum_of_its_tensors(folder: Path) -> None:
    settings = full(folder)
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, CARD, LENGTHS)
    n = shape.parameters
    assert found.learning["weights"] == found.learning["references"] == pytest.approx(2 * n / GIB)
    assert found.learning["gradients, Adam, float32 masters"] == pytest.approx(16 * n / GIB)
    episode = 200 + 2 * 400 + 64
    assert found.sampling["keys and values"] == pytest.approx(2 * 128 * episode * shape.kv_numbers * 2 / GIB)
    assert found.needed == max(sum(found.learning.values()), sum(found.sampling.values()))


def test_an_adapter_needs_no_reference_and_float32_no_masters(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, CARD, LENGTHS)
    assert found.learning["references"] == 0
    assert found.learning["gradients, Adam, float32 masters"] == pytest.approx(16 * shape.trained / GIB)
    single = full(folder, "model.dtype=float32")
    found = estimate(single, ModelShape.of(single), CARD, LENGTHS)
    assert found.learning["gradients, Adam, float32 masters"] == pytest.approx(12 * shape.parameters / GIB)


def test_more_gpus_share_time_but_not_weights(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    one, eight = (estimate(settings, shape, Cluster(gpus), LENGTHS) for gpus in (1, 8))
    assert eight.learn_s == pytest.approx(one.learn_s / 8)
    assert eight.learning == one.learning
    assert eight.sampling["keys and values"] == pytest.approx(one.sampling["keys and values"] / 8)


def test_the_time_counts_passes_over_the_weights(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, CARD, LENGTHS)
    tokens = 128 * (200 + 2 * 400 + 64)
    assert found.learn_s == pytest.approx((2 + 6 + 2) * shape.parameters * tokens / (0.35 * 790e12))
    assert found.sample_s == pytest.approx(2 * 400 * 28 * 42 * 1e-5)  # bound by launches
    fast = estimate(config(folder, "rollout.engine=vllm"), shape, CARD, LENGTHS)
    read = 2 * shape.parameters + 128 * (200 + 2 * 400 + 64) / 2 * shape.kv_numbers * 2
    assert fast.sample_s == pytest.approx(2 * 400 * read / (0.6 * 3350e9))


def test_as_many_rows_fit_as_it_says(folder: Path) -> None:
    settings = config(folder, "rollout.batch_size=8192")
    shape = ModelShape.of(settings)
    rows = most_rows(settings, shape, CARD, LENGTHS)

    def needed(count: int) -> float:
        changed = config(folder, "rollout.batch_size=8192", f"rollout.max_num_seqs={count}")
        return sum(estimate(changed, shape, CARD, LENGTHS).sampling.values())

    assert needed(rows) <= CARD.gib < needed(rows + 1)


def test_shards_divide_state_but_a_model_has_to_fit_whole_for_sampling(folder: Path) -> None:
    settings = full(folder, "distributed.shard=true")
    shape = ModelShape.of(settings)
    n, outside = shape.parameters, 151936 * 1536 + 1536
    assert shape.outside == outside
    found = estimate(settings, shape, Cluster(8), LENGTHS)
    assert found.learning["weights"] == pytest.approx(4 * n / 8 / GIB)
    assert found.learning["references"] == pytest.approx(2 * n / 8 / GIB)
    assert found.learning["gradients, Adam"] == pytest.approx(12 * n / 8 / GIB)
    at_a_time = outside + 2 * (n - outside) / 28
    heads = 2 * outside if settings.kl.estimator == "full" else 0
    assert found.learning["gathered weights"] == pytest.approx((2 * at_a_time + heads) / GIB)
    assert found.learning["gradients before they are shared"] == pytest.approx(4 * at_a_time / GIB)
    assert found.sampling["whole weights"] == pytest.approx(2 * n / GIB)
    assert found.needed == max(sum(phase.values()) for phase in (found.learning, found.sampling))
    whole = estimate(full(folder), shape, Cluster(8), LENGTHS)
    assert found.needed < whole.needed
    assert estimate(settings, shape, CARD, LENGTHS) == estimate(full(folder), shape, CARD, LENGTHS), (
        "one GPU shards nothing"
    )


def test_adapters_lie_whole_on_every_gpu(folder: Path) -> None:
    settings = config(folder, "distributed.shard=true")
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, Cluster(8), LENGTHS)
    assert found.learning["weights"] == pytest.approx(2 * shape.parameters / 8 / GIB)
    assert found.learning["gradients, Adam, adapters"] == pytest.approx(16 * shape.trained / GIB)
    assert found.learning["references"] == found.learning["gradients before they are shared"] == 0


@pytest.mark.slow
def test_the_command_says_whether_it_fits_and_what_to_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "qwen_math", "--set", f"model.source={folder}", "--gpu-gib"]
    assert main([*command, "80"]) == 0
    assert "It fits: " in capsys.readouterr().out
    assert main([*command, "16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is False
    assert main([*command, "16"]) == 0
    out = capsys.readouterr().out
    assert f"It does not fit: 21 of 16 GiB. Try rollout.max_num_seqs = {told['largest_max_num_seqs']}." in out
    assert "nothing here was measured" in out


def test_the_command_names_shards_where_they_help(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "qwen_math", "--set", f"model.source={folder}", "--gpus", "8"]
    assert main([*words, "--set", "distributed.shard=true"]) == 0
    assert "whole weights" in capsys.readouterr().out
    assert main([*words, "--gpu-gib", "4"]) == 0
    out = capsys.readouterr().out
    assert "distributed.shard = true" in out and "whole weights" not in out


def test_a_model_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ModelError, match=r"the configuration of model .* could not be loaded"):
        ModelShape.of(config(tmp_path))
