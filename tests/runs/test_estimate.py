"""Tests of the estimate against hand-computed sizes of two published models; their weights are not read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.errors import ModelError
from selfcorrect.runs import cpu_rates
from selfcorrect.runs.estimate import Estimate, estimate, most_cache, most_rows
from selfcorrect.runs.model_shape import GIB, Cluster, Lengths, ModelShape
from selfcorrect.runs.time_needed import Times
from selfcorrect.script import Script

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


def test_a_step_that_may_be_undone_needs_a_copy_and_its_kl_another_pass(folder: Path) -> None:
    name = "weights, Adam before the step"

    def found(*changes: str, gpus: int = 1, make: Callable[..., Config] = full) -> Estimate:
        settings = make(folder, *changes)
        return estimate(settings, ModelShape.of(settings), Cluster(gpus), LENGTHS)

    shape = ModelShape.of(full(folder))
    plain, measured = found(), found("optimizer.kl_control={}")
    undone = "optimizer.kl_control={limit=1}"
    assert name not in plain.learning and measured.learning == plain.learning
    assert measured.times.learn_s / plain.times.learn_s == pytest.approx((2 + 6 + 2 + 2) / (2 + 6 + 2))
    assert found(undone).learning[name] == pytest.approx(12 * shape.parameters / GIB)
    assert found(undone, "distributed.shard=true", gpus=8).learning[name] == pytest.approx(
        12 * shape.parameters / 8 / GIB
    )
    adapter = found(undone, "distributed.shard=true", gpus=8, make=config)
    assert adapter.learning[name] == pytest.approx(12 * ModelShape.of(config(folder)).trained / GIB)


def test_more_gpus_share_time_but_not_weights(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    one, eight = (estimate(settings, shape, Cluster(gpus), LENGTHS) for gpus in (1, 8))
    assert eight.times.learn_s == pytest.approx(one.times.learn_s / 8)
    assert eight.learning == one.learning
    assert eight.sampling["keys and values"] == pytest.approx(one.sampling["keys and values"] / 8)


def test_the_time_counts_passes_over_the_weights(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    found = estimate(settings, shape, CARD, LENGTHS)
    tokens = 128 * (200 + 2 * 400 + 64)
    assert found.times.learn_s == pytest.approx((2 + 6 + 2) * shape.parameters * tokens / (0.35 * 790e12))
    assert found.times.sample_s == pytest.approx(2 * 400 * 28 * 42 * 1e-5)  # bound by launches
    fast = estimate(config(folder, "rollout.engine=vllm"), shape, CARD, LENGTHS)
    read = 2 * shape.parameters + 128 * (200 + 2 * 400 + 64) / 2 * shape.kv_numbers * 2
    assert fast.times.sample_s == pytest.approx(2 * 400 * read / (0.6 * 3350e9))


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


VLLM = "rollout.engine=vllm"


def test_vllm_keeps_its_copy_and_its_cache_while_the_policy_learns(folder: Path) -> None:
    settings = config(folder, VLLM)
    shape = ModelShape.of(settings)
    found, plain = (estimate(each, shape, CARD, LENGTHS) for each in (settings, config(folder)))
    weights = 2 * shape.parameters / GIB
    # 128 episodes of at most 200 + 2 x 1024 + 64 tokens, in blocks of 128, and 8 blocks of vLLM's own
    cache = (128 * 19 + 8) * 128 * 28 * 2 * 2 * 128 * 2 / GIB
    for phase in (found.learning, found.sampling):
        assert phase["vLLM: weights"] == pytest.approx(weights)
        assert phase["vLLM: keys and values"] == pytest.approx(cache)
    assert "keys and values" not in found.sampling
    assert sum(found.learning.values()) == pytest.approx(sum(plain.learning.values()) + weights + cache)


def test_vllms_cache_is_what_is_set_or_half_of_what_is_free(folder: Path) -> None:
    shape = ModelShape.of(config(folder))

    def cache(gib: float, *changes: str) -> float:
        return estimate(config(folder, VLLM, *changes), shape, Cluster(1, gib), LENGTHS).learning[
            "vLLM: keys and values"
        ]

    assert cache(80, "vllm.cache_gib=16") == 16
    assert cache(16) == pytest.approx(0.5 * (16 - 1.5 - 2 * shape.parameters / GIB))
    wide = estimate(config(folder, VLLM, "vllm.dtype=float32"), shape, CARD, LENGTHS)
    assert wide.learning["vLLM: weights"] == pytest.approx(4 * shape.parameters / GIB)
    sharded = estimate(config(folder, VLLM, "distributed.shard=true"), shape, Cluster(8), LENGTHS)
    assert "whole weights" not in sharded.sampling, "vLLM samples from its own copy"


def test_a_small_cache_makes_episodes_wait(folder: Path) -> None:
    shape = ModelShape.of(config(folder))
    episode = (200 + 2 * 400 + 64) * shape.kv_numbers * 2
    half = estimate(config(folder, VLLM, f"vllm.cache_gib={64.5 * episode / GIB}"), shape, CARD, LENGTHS).times
    read = 2 * shape.parameters + 64 * episode / 2
    assert half.sample_s == pytest.approx(2 * (2 * 400) * read / (0.6 * 3350e9)), "two waves of 64"


def test_the_largest_cache_of_vllm_fits(folder: Path) -> None:
    settings = config(folder, VLLM, "vllm.cache_gib=70")
    shape = ModelShape.of(settings)
    assert not estimate(settings, shape, CARD, LENGTHS).fits(CARD)
    most = most_cache(settings, shape, CARD, LENGTHS)
    assert most is not None and most_rows(settings, shape, CARD, LENGTHS) is None

    def fits(gib: float) -> bool:
        return estimate(config(folder, VLLM, f"vllm.cache_gib={gib}"), shape, CARD, LENGTHS).fits(CARD)

    assert fits(most - 0.01) and not fits(most + 0.01)


def test_the_whole_run_counts_steps_looks_and_final_evaluations(folder: Path) -> None:
    settings = config(folder)
    shape = ModelShape.of(settings)
    times = estimate(settings, shape, CARD, LENGTHS).times
    token = 28 * 42 * 1e-5  # bound by launches, however many rows
    assert times.training_s == pytest.approx(500 * (times.sample_s + times.learn_s))
    # 8 + 12 looks of 200 problems in chunks of 128, two turns, greedy and sampled; the base's once, greedy
    assert times.looks_s == pytest.approx((20 * 2 + 1) * 2 * (2 * 400 * token))
    # three models, 500 problems in 4 chunks: two turns greedy and sampled, one turn swapped and one resampled
    assert times.final_s == pytest.approx(3 * 4 * (2 + 2 + 1 + 1) * 400 * token)
    assert times.run_s == times.training_s + times.looks_s + times.final_s
    bare = config(folder, "eval.dev_every=0", "eval.sampled=false", "eval.controls=false")
    fewer = estimate(bare, shape, CARD, LENGTHS).times
    assert fewer.looks_s == 0 and fewer.final_s == pytest.approx(3 * 4 * 2 * 400 * token)


def test_demonstrations_are_given_and_not_sampled(folder: Path) -> None:
    shape = ModelShape.of(config(folder))
    stage = DemonstrationStage(method="sft", steps=7)
    cold = config(folder).model_copy(update={"stages": {"cold": stage}})
    times = estimate(cold, shape, CARD, LENGTHS).times
    assert times.sample_s == 0 and times.training_s == pytest.approx(7 * times.learn_s) and times.learn_s > 0


def test_verifications_that_are_written_take_no_time_to_sample(folder: Path) -> None:
    """Two of three turns are sampled; the learner reads all three."""
    stage = {"steps": 9, "correct_pairs": "all"}
    asked = [{"text": "Right?", "role": "verification"}, "Again."]

    def times(method: str) -> Times:
        made = config(folder).model_dump()
        made |= {"stages": {"s": {**stage, "method": method}}, "task": {**made["task"], "revise": asked}}
        return estimate(make_config(made), ModelShape.of(config(folder)), CARD, LENGTHS).times

    written, sampled = times("self_rewarding_ift"), times("star")
    assert written.sample_s == pytest.approx(sampled.sample_s * 2 / 3)
    assert written.learn_s == sampled.learn_s


def test_steps_that_alternate_take_the_mean_of_both_kinds(folder: Path) -> None:
    """One kind samples first attempts, the other second ones; the learner reads one attempt, then both."""
    stage = {"steps": 9, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}

    def times(**changes: Any) -> Times:
        made = config(folder).model_dump() | {"stages": {"s": {**stage, **changes}}}
        return estimate(make_config(made), ModelShape.of(config(folder)), CARD, LENGTHS).times

    alternating, both = times(method="thinktwice"), times()
    one = times(reward_weights=[1], kl_coefs=[{}])
    assert alternating.sample_s == pytest.approx(both.sample_s / 2), "bound by launches, so a turn is a turn"
    assert alternating.learn_s == pytest.approx(both.learn_s * (1 + LENGTHS.episode(1) / LENGTHS.episode(2)) / 2)
    assert one.learn_s < alternating.learn_s < both.learn_s


def test_distillation_reads_second_attempts_once_more(folder: Path) -> None:
    stage = {"steps": 9, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}

    def times(method: str) -> Times:
        made = config(folder).model_dump() | {"stages": {"s": {**stage, "method": method}}}
        return estimate(make_config(made), ModelShape.of(config(folder)), CARD, LENGTHS).times

    distilled, plain = times("distilled"), times("score")
    assert distilled.sample_s == plain.sample_s
    assert distilled.learn_s == pytest.approx(plain.learn_s * (1 + LENGTHS.episode(1) / LENGTHS.episode(2)))


def test_a_draft_and_its_verification_are_learnt_and_the_verification_is_sampled(folder: Path) -> None:
    """One attempt, and one verification of a draft: as many tokens again as two attempts have, and one more turn to sample."""
    stage = {"steps": 9, "reward_weights": [1], "kl_coefs": [{"base": 0.1}]}

    def times(method: str) -> Times:
        made = config(folder).model_dump() | {"stages": {"s": {**stage, "method": method}}}
        made["eval"]["turns"] = 2
        return estimate(make_config(made), ModelShape.of(config(folder)), CARD, LENGTHS).times

    drafts, plain = times("self_verification"), times("score")
    assert drafts.learn_s == pytest.approx(
        plain.learn_s * (LENGTHS.episode(1) + LENGTHS.episode(2)) / LENGTHS.episode(1)
    )
    assert 2 * plain.sample_s <= drafts.sample_s < 2.5 * plain.sample_s, "its prompt is longer by the draft"


def test_a_step_without_sampling_and_a_run_without_a_step_say_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cold = 'stages={ cold = { method = "sft", steps = 7 } }'
    out = plan_text(folder, capsys, "--set", cold)
    assert "nothing to sample" in out and "of sampling" not in out
    out = plan_text(folder, capsys, "--set", "stages={}", "--gpus", "2")
    assert "No stage: nothing is trained." in out and "A step of" not in out


def test_verifications_are_turns_of_the_model(folder: Path) -> None:
    shape = ModelShape.of(config(folder))
    plain = config(folder, "task.revise='Correct any error.'")
    revise = Script(revise=plain.task.revise or "").with_verification().revise
    verified = plain.model_copy(update={"task": plain.task.model_copy(update={"revise": revise})})
    two, three = (estimate(settings, shape, CARD, LENGTHS) for settings in (plain, verified))
    assert three.times.sample_s == pytest.approx(1.5 * two.times.sample_s), "three turns instead of two"
    more = LENGTHS.episode(3) / LENGTHS.episode(2)
    assert three.times.learn_s == pytest.approx(more * two.times.learn_s)
    kept = "keys and values"
    assert three.sampling[kept] == pytest.approx(more * two.sampling[kept])
    # attempts 3 turns instead of 2, greedy and sampled; 2 instead of 1 at a swapped draft; 1 resampled
    assert three.times.final_s == pytest.approx(two.times.final_s * (3 + 3 + 2 + 1) / (2 + 2 + 1 + 1))


def test_measuring_each_turn_costs_its_backward_passes(folder: Path) -> None:
    shape = ModelShape.of(config(folder))
    never, tenth = (
        estimate(config(folder, f"log.turn_gradients_every={every}"), shape, CARD, LENGTHS).times for every in (0, 10)
    )
    assert tenth.learn_s / never.learn_s == pytest.approx((10 + (4 + 2) / 10) / 10)


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


def plan_text(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["plan", "qwen_math", "--set", f"model.source={folder}", *words]) == 0
    return capsys.readouterr().out


def test_the_command_has_a_total_and_says_when_gpus_hardly_help(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = plan_text(folder, capsys, "--answer-tokens", "400", "--gpus", "1")
    assert "The whole run: 2.7 h, of which evaluations 19 min" in out and "times as fast" not in out
    out = plan_text(folder, capsys, "--answer-tokens", "400", "--gpus", "8")
    assert "8 GPUs make a step 1.7 times as fast as one: sampling still takes 9.4 s" in out
    assert "Raise rollout.batch_size" in out
    out = plan_text(folder, capsys, "--gpus", "2", "--set", "optimizer.num_iterations=8")
    assert "2 GPUs make a step 1.7 times as fast as one." in out and "Raise" not in out


def test_the_guide_quotes_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guide = " ".join((Path(__file__).parents[2] / "docs/models.md").read_text().split())
    assert "selfcorrect plan qwen_math --gpus 1 --answer-tokens 400" in guide
    lines = plan_text(folder, capsys, "--answer-tokens", "400", "--gpus", "1").splitlines()
    step, run = (next(line for line in lines if line.startswith(start)) for start in ("A step of", "The whole run"))
    assert step in guide and run in guide


def test_the_page_of_the_comparison_quotes_its_cost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/paper.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("> All rows"))
    assert line.removeprefix("> ") in plan_text(folder, capsys, "--gpus", "1", "--answer-tokens", "400", "--paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rollout.max_tokens=20000", "40,320 tokens"),
        ("task.name=unheard_of", "task 'unheard_of' is not known"),
        ("task.options.color=1", "color"),
        ("rollout.engine=tests.support.outside_engine:ALONE_KIND", "runs in one process, but 2"),
    ],
)
def test_what_train_rejects_is_rejected(
    change: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "qwen_math", "--set", f"model.source={folder}", "--gpus", "2", "--set", change]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_said_without_withholding_the_estimate(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = plan_text(folder, capsys, "--set", 'log.trackers=["wandb"]')
    assert "The whole run" in out and "`train` would be rejected on this machine: " in out and "wandb" in out


def test_a_model_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ModelError, match=r"the configuration of model .* could not be loaded"):
        ModelShape.of(config(tmp_path))


# ---------------------------------------------------------------- a CPU

SMOLLM2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
MEASURED = Cluster(1, 23.0, 0.136, 20.0, cpu=True)
"""The limits of the machine on which docs/dev/bench.md measured its workload `smollm2`."""


@pytest.fixture
def small(tmp_path: Path) -> Config:
    """SmolLM2-135M, all weights, 32 episodes of two attempts of 48 tokens: the workload `smollm2` of docs/dev/bench.md."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small/config.json").write_text(json.dumps(SMOLLM2))
    sizes = ["rollout.batch_size=32", "rollout.max_tokens=48", "rollout.max_num_seqs=32"]
    plain = ["model.dtype=float32", "model.gradient_checkpointing=false", "log.turn_gradients_every=0"]
    settings = load_config("qwen_math", [f"model.source={tmp_path / 'small'}", *sizes, *plain])
    model = settings.model.model_copy(update={"lora": None})
    budget = settings.optimizer.model_copy(update={"micro_batch_tokens": None})
    return settings.model_copy(update={"model": model, "optimizer": budget})


def test_a_cpu_holds_smaller_batches_and_no_cuda(small: Config) -> None:
    shape = ModelShape.of(small)
    found = estimate(small, shape, MEASURED, Lengths(40, 48))
    n = shape.parameters
    assert n == 134_515_008
    assert found.learning["weights"] == found.learning["references"] == pytest.approx(4 * n / GIB)
    assert found.learning["gradients, Adam, float32 masters"] == pytest.approx(12 * n / GIB)
    assert found.learning["activations"] == pytest.approx(4096 * (16 * 576 + 4 * 1536) * 30 * 4 / GIB)
    assert found.learning["a chunk of logits"] == pytest.approx(3 * 2**25 * 4 / GIB)
    assert "CUDA" not in found.learning and found.learning["Python, torch"] == 0.7


def test_a_cpu_waits_for_products_or_for_memory(small: Config) -> None:
    shape = ModelShape.of(small)
    n, episode = shape.parameters, 40 + 2 * 48 + 64
    many = estimate(small, shape, MEASURED, Lengths(40, 48)).times
    assert many.learn_s == pytest.approx((2 + 6) * n * 32 * episode / (0.5 * 0.136e12))
    assert many.sample_s == pytest.approx(2 * 48 * 2 * n * 32 / (0.35 * 0.136e12))
    slow = estimate(small, shape, Cluster(1, 23.0, 0.136, 2.0, cpu=True), Lengths(40, 48)).times
    read = 4 * n + 32 * episode / 2 * shape.kv_numbers * 4
    assert slow.sample_s == pytest.approx(2 * 48 * read / (0.35 * 2e9))


def test_the_estimate_for_a_cpu_is_within_a_factor_of_two_of_what_was_measured(small: Config) -> None:
    """docs/dev/bench.md, workload `smollm2`: 22.2 s to generate, 14.1 + 44.4 s for the reference and to learn."""
    times = estimate(small, ModelShape.of(small), MEASURED, Lengths(40, 48)).times
    assert 0.5 < times.sample_s / 22.2 < 2 and 0.5 < times.learn_s / (14.1 + 44.4) < 2
    assert (f"{times.sample_s:.0f}", f"{times.learn_s:.0f}") == ("17", "101"), "as docs/scale.md says"


RATES = ["--tflops", "0.136", "--bandwidth", "20"]


def test_a_machine_without_a_gpu_plans_for_its_cpu(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text(to_toml(small))
    words = ["plan", str(tmp_path / "mine.toml"), "--prompt-tokens", "40", *RATES]
    for there, asked, on_cpu in (
        (False, [], True),
        (True, [], False),
        (True, ["--cpu"], True),
        (False, ["--gpus", "1"], False),
        (False, ["--set", "model.device=cuda:0"], False),
    ):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert main([*words, *asked]) == 0
        out = capsys.readouterr().out
        assert ("Estimates for this CPU with " in out, "CUDA" in out) == (on_cpu, not on_cpu)
    assert main([*words, "--cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cluster"]["cpu"] and told["cluster"]["tflops"] == 0.136 and told["run_s"] > 0
    assert main([*words, "--cpu", "--gpus", "2"]) == 2
    assert "give --cpu or the GPUs" in capsys.readouterr().err


def test_a_cpus_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(cpu_rates.time, "perf_counter", lambda: float(next(clock)))  # every repetition takes a second
    found = cpu_rates.this_cpu("float32")
    assert found == Cluster(1, found.gib, 2 * 1024**3 / 1e12, 4 * 2**25 / 1e9, cpu=True) and found.gib > 0


def test_the_memory_of_a_container_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text(f"{GIB // 2}\n")
    monkeypatch.setattr(cpu_rates, "LIMITS", (str(tmp_path / "none"), str(tmp_path / "max")))
    whole = cpu_rates.memory_gib()
    monkeypatch.setattr(cpu_rates, "LIMITS", (str(tmp_path / "limit"),))
    assert cpu_rates.memory_gib() == 0.5 < whole
