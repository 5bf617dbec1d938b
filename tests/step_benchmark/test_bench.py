"""Test that the benchmark measures what it claims: forced lengths, counts, pairs, and two sides with the same work."""

from __future__ import annotations

import ast
import json
import math
import mmap
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.episodes import sample_key
from support.models import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import comparison, search, table, trl_settings
from benchmarks.step import inputs as work
from benchmarks.step import process as children
from benchmarks.step import protocol as side
from benchmarks.step import scaling as growth
from benchmarks.step.cli import app as bench_app
from benchmarks.step.flops import Counts, EpisodeLengths, ModelSize, decoding, learning
from benchmarks.step.inputs import lengths, random_model, write_work
from benchmarks.step.ours import ForcedEngine, OurSide, episode_lengths, model_size, our_config
from benchmarks.step.workloads import WORKLOADS, Shape, Workload, find_workload, resized
from selfcorrect.cli import app as cli
from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.errors import ConfigError, SelfCorrectError, TrainingError
from selfcorrect.training.timing import Clock
from selfcorrect.types import StopReason

SHAPE = Shape(layers=1, width=16, inner=24, heads=2, kv_heads=1, head_dim=8, vocabulary=40)
MINIATURE = Workload("miniature", "for tests", SHAPE, 8, group=4, prompt=6, turn=60, uneven=True, budget=300, rows=4)


# ---------------------------------------------------------------- forced lengths


def test_forced_lengths_cut_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave at different times keep their samples, and no row stops at an end token."""
    model = tiny_model(3)
    model.end_ids = frozenset({-1})
    requests = [Request((3, 7, 16, 8), sample_key(f"p{i}", i)) for i in range(6)]
    wanted = [1, 7, 3, 12, 12, 2]
    sampling = Sampling(1.0, 12)
    forced = ForcedEngine(model, {(f"p{i}", i, 0): n for i, n in enumerate(wanted)}, max_num_seqs=4)
    read = HFEngine.read
    fed: list[int] = []
    monkeypatch.setattr(
        forced, "read", lambda cache, ids, valid: fed.append(len(ids)) or read(forced, cache, ids, valid)
    )
    found, free = forced.generate(requests, sampling), HFEngine(model).generate(requests, sampling)
    # Two batches of 4 and 2 rows, their prompts (one, since all are equal) first; finished rows leave.
    assert fed == [1, *[3] * 2, *[2] * 4, *[1] * 5, 1, *[2] * 1, *[1] * 10]
    assert [len(completion.ids) for completion in found] == wanted
    assert [completion.ids for completion in found] == [f.ids[:n] for f, n in zip(free, wanted, strict=True)]
    assert {completion.stop for completion in found} == {StopReason.LENGTH}


def test_uneven_lengths_have_a_long_tail_within_their_bounds() -> None:
    workload = find_workload("long")
    drawn = lengths(replace(workload, episodes=4000))
    assert drawn.shape == (500, 8, 2)
    assert (int(drawn.min()), int(drawn.max())) == (8, 1024)
    assert np.median(drawn) == pytest.approx(128, rel=0.05)
    assert drawn.mean() > 1.3 * np.median(drawn)
    assert np.array_equal(lengths(workload), lengths(workload))
    assert set(lengths(find_workload("small")).ravel()) == {64}
    assert len(set(lengths(MINIATURE).ravel())) > 1


def pretend(monkeypatch: pytest.MonkeyPatch, step: Callable[[dict[str, Any], float], float]) -> None:
    """Replace the sides: a step takes ``step(settings, patience)`` seconds."""

    class Pretended:
        def __init__(self, name: str, command: dict[str, Any], *, threads: int) -> None:
            self.settings = command

        def __enter__(self) -> Pretended:
            return self

        def __exit__(self, *error: object) -> None: ...

        def ask(self, command: str, patience: float = math.inf) -> dict[str, float]:
            return {"seconds": step(self.settings, patience)}

    monkeypatch.setattr(search, "Side", Pretended)
    monkeypatch.setattr(search, "trl_command", lambda folder, python, settings: settings)


def test_the_search_keeps_the_fastest_and_gives_up_on_the_hopeless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The side's times follow a table: a micro-batch of one fails, bfloat16 is slow, eager is a little faster."""
    taken: list[str] = []

    def step(settings: dict[str, Any], patience: float) -> float:
        taken.append(settings["dtype"])
        if settings["rows"] == 1:
            raise TrainingError("no memory")
        slow, eager = settings["dtype"] != "float32", settings["attention"] == "eager"
        seconds = 8 / settings["rows"] + 9 * slow - 0.1 * eager
        if seconds > patience:
            raise TimeoutError
        return float(seconds)

    pretend(monkeypatch, step)
    best, tried = search.best_trl(MINIATURE, tmp_path, threads=1)
    assert best == {"rows": 8, "dtype": "float32", "attention": "eager", "continued": True, "kept_memory": False}
    assert [(t["settings"]["rows"], t["seconds"], t["counted"]) for t in tried[:3]] == [
        (1, None, 0),
        (4, 2, 2),
        (8, 1, 2),
    ]
    assert taken.count("bfloat16") == taken.count("mixed") == 1, "the warm-up step was enough"
    slow = next(t for t in tried if t["settings"]["dtype"] == "bfloat16")
    assert (slow["first"], slow["seconds"], slow["counted"]) == (2, 2, 0), "stopped at twice the best's first step"
    assert [t["counted"] for t in tried if "final" in t] == [2, 2]
    whole = search.best_trl(replace(MINIATURE, rows=8, whole=True), tmp_path, threads=1)[1]
    assert {t["settings"]["rows"] for t in whole} == {8}, "memory is compared at one size of micro-batches"
    monkeypatch.setattr(search, "LONG", 0.5)
    assert [t["counted"] for t in search.best_trl(MINIATURE, tmp_path, threads=1)[1][:3]] == [0, 1, 1]


def test_the_search_ends_with_the_fastest_two_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is slow just when the best setting, kept memory, is tried; in alternation it is still found."""
    calls: list[bool] = []

    def step(settings: dict[str, Any], patience: float) -> float:
        kept = settings["kept_memory"]
        calls.append(kept)
        slow_hour = calls.count(True) <= 3
        others = settings != {**trl_settings.default(MINIATURE), "rows": 8, "kept_memory": kept}
        return 2.0 if others else 1.0 - 0.1 * kept + 0.2 * (kept and slow_hour)

    pretend(monkeypatch, step)
    best, tried = search.best_trl(MINIATURE, tmp_path, threads=1)
    assert calls[-6:] == [False, True] * 3
    assert [t["seconds"] for t in tried if t["settings"]["kept_memory"]] == pytest.approx([1.1, 0.9])
    assert best["kept_memory"]


def test_a_side_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text("""
import sys, time
print("{}", flush=True)
for line in sys.stdin:
    time.sleep(600 if "slow" in line else 0)
    print("{}", flush=True)
""")
    with pytest.raises(TimeoutError):  # noqa: SIM117
        with children.Side("sleeper", [sys.executable, str(script)], threads=1) as side:
            assert side.ask("quick", patience=60) == {}
            side.ask("slow", patience=0.1)
    assert side._process.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- counts


def test_the_operations_of_a_forward_pass_are_those_that_torch_counts() -> None:
    model = random_model(SHAPE, context=64, cpu_kernels=False)
    model.model.set_attn_implementation("eager")
    tokens = 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model.decode(torch.arange(tokens)[None]).last_hidden_state)
    size = model_size(model)
    episode = EpisodeLengths(prompt=0, observation=0, turns=(tokens, 0))
    # torch counts attention's whole square; a causal one needs T (T + 1) / 2 of it.
    needless = 4 * size.query_width * size.layers * (tokens**2 - tokens * (tokens + 1) / 2)
    # Our counts leave out the products of the rotation, one frequency by one position each.
    rotation = 2 * tokens * SHAPE.head_dim // 2
    counted = counter.get_total_flops() - needless
    assert learning(size, [episode], 1, 1).flop / 3 in (counted, counted - rotation)


def test_decoding_counts_by_hand() -> None:
    """One layer of 10 weights, a head of 7; two episodes of one problem: prompt 3, turns of 2 and 2, observation of 1."""
    size = ModelSize(10, 7, layers=1, query_width=2, cache_width=5, item=4)
    episode = EpisodeLengths(prompt=3, observation=1, turns=(2, 2))
    found = decoding(size, [episode, episode], group=2)
    # Contexts seen: prompt 1 + 2 + 3, once; then for each episode 4 (token 1), 5 and 6 (token 2, observation), 7 (token 1).
    attention = 4 * 2 * (6 + 2 * (4 + 5 + 6 + 7))
    layers = 2 * 10 * (3 + 2 * (1 + 2 + 1))
    head = 2 * 7 * (1 + 2 * (1 + 1 + 1))
    assert found.flop == attention + layers + head
    # Weights: the prompt, one step of turn 1, the observation, one step of turn 2. Cache: 4; 4 before the observation; 7.
    assert found.bytes == 4 * (17 * 4 + 5 * 2 * (4 + 4 + 7))


def test_learning_counts_by_hand() -> None:
    """The same two episodes: their prompt counts once, all counts three passes, weights are read three times per micro-batch."""
    size = ModelSize(10, 7, layers=1, query_width=2, cache_width=5, item=4)
    episode = EpisodeLengths(prompt=3, observation=1, turns=(2, 2))
    found = learning(size, [episode, episode], group=2, micro_batches=3)
    attention = 4 * 2 * (1 + 2 + 3 + 2 * (4 + 5 + 6 + 7 + 8))
    layers, head = 2 * 10 * (3 + 2 * 5), 2 * 7 * 2 * 4
    assert found.flop == 3 * (attention + layers + head)
    assert found.bytes == 3 * 3 * 17 * 4


def test_the_limit_is_whichever_binds() -> None:
    counts = Counts(bytes=100.0, flop=300.0)
    assert (counts.limit(10.0, 100.0), counts.binds(10.0, 100.0)) == (10.0, "memory")
    assert (counts.limit(100.0, 100.0), counts.binds(100.0, 100.0)) == (3.0, "arithmetic")


def test_lora_needs_no_gradient_of_frozen_weights() -> None:
    size, episode = ModelSize(10, 7, 1, 2, 5, 4), EpisodeLengths(3, 1, (2, 2))
    adapted = replace(size, lora=True)
    assert learning(adapted, [episode], 1, 1).flop == pytest.approx(learning(size, [episode], 1, 1).flop * 2 / 3)


# ---------------------------------------------------------------- our side


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    write_work(MINIATURE, made)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> OurSide:
    return OurSide(folder)


def test_our_step_does_the_work_and_accounts_for_its_time(ours: OurSide) -> None:
    before = ours.trainer.policy.digest()
    done = ours.step()
    assert done["tokens"] == int(lengths(MINIATURE).sum())
    assert set(done["phases"]) == set(comparison.PHASES)
    assert sum(done["phases"].values()) == pytest.approx(done["seconds"])
    assert min(done["phases"].values()) >= 0
    assert ours.trainer.policy.digest() != before, "a step that learns"


@pytest.mark.slow
def test_a_planted_slow_down_is_as_long_as_it_says(ours: OurSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "slowdown", 3.0)
    done = ours.step()
    assert done["phases"]["rest"] > 0.7 * done["seconds"]


def test_prompts_and_attempts_are_as_long_as_the_workload_says(ours: OurSide) -> None:
    episodes = episode_lengths(ours.work)
    assert {episode.prompt for episode in episodes} == {MINIATURE.prompt}
    played = ours.trainer.sampler.sample(ours.trainer.state.step)
    end = ours.trainer.sampler.chat.tokenizer.eos_token_id
    for episode in played:
        expected = episodes[int(episode.problem.id[1:]) * MINIATURE.group + episode.sample].total
        # If a first attempt's last sampled token is an end token, none is added after it.
        assert len(episode.ids) == expected - (episode.turns[0].ids[-1] == end)


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "tiny"])
def test_every_workload_makes_a_configuration(name: str, ours: OurSide) -> None:
    workload = find_workload(name)
    config = our_config(workload, replace(ours.work, lengths=lengths(workload).tolist()))
    assert config.rollout.batch_size == workload.episodes
    assert config.stages["score"].turns == 2
    assert config.log.turn_gradients_every == 0


def test_the_embedded_default_keeps_its_own_kl(ours: OurSide) -> None:
    workload = find_workload("tiny")
    config = our_config(workload, replace(ours.work, lengths=lengths(workload).tolist()))
    assert (config.kl.estimator, config.rollout.max_tokens) == ("full", 8)


class Gpu:
    """A stand-in for `torch.cuda` that records the measurement's calls."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = {"is_available": True, "memory_allocated": 5 * side.MIB, "max_memory_allocated": 7 * side.MIB}
        self.asked.append(name)
        return lambda *_: found.get(name)


def test_on_a_gpu_its_memory_counts_and_the_clock_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)
    assert (side.resident(), side.peak()) == (5, 7)
    side.forget_peak()
    side.wait()
    assert {"reset_peak_memory_stats", "synchronize"} <= set(gpu.asked)
    clock = Clock(torch.device("cuda"))
    gpu.asked.clear()
    with clock("generate"):
        pass
    assert gpu.asked == ["synchronize"]


def test_on_a_cpu_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side, "_gpu", lambda: None)
    side.forget_peak()
    before = side.resident()
    assert before > 50
    with mmap.mmap(-1, 64 * side.MIB) as taken:  # fresh pages: an allocator may already hold 64 MiB
        for page in range(0, 64 * side.MIB, mmap.PAGESIZE):
            taken[page] = 1
    assert side.peak() >= before + 60


def test_a_workload_for_a_gpu_takes_a_step_on_a_cpu_in_miniature(tmp_path: Path) -> None:
    """In bfloat16, as on a GPU: the same path, fewer episodes and a small model."""
    write_work(replace(resized(find_workload("gpu-0.5b"), 8), model=SHAPE, turn=5, prompt=6, budget=64), tmp_path)
    found = OurSide(tmp_path).step()
    assert found["tokens"] == 8 * 2 * 5


# ---------------------------------------------------------------- two sides in turn


class ScriptedSide:
    """A side that answers with the given seconds."""

    def __init__(self, name: str, seconds: list[float], calls: list[str], tokens: int = 10) -> None:
        self.name, self.seconds, self.calls, self.tokens = name, seconds, calls, tokens

    def ask(self, command: str) -> dict[str, Any]:
        self.calls.append(self.name)
        return {"seconds": self.seconds.pop(0), "tokens": self.tokens, "phases": {}, "peak_mib": 1.0}


def test_sides_take_turns_and_the_first_step_does_not_count() -> None:
    calls: list[str] = []
    sides: list[Any] = [ScriptedSide("a", [9.0, 1.0, 2.0], calls), ScriptedSide("b", [9.0, 3.0, 4.0], calls)]
    steps = comparison._alternate(sides, 2, 10, lambda *_: None)
    assert [[step["seconds"] for step in side] for side in steps] == [[1.0, 2.0], [3.0, 4.0]]
    assert calls == ["b", "a", "a", "b", "b", "a"]


def test_a_side_that_did_other_work_is_refused() -> None:
    with pytest.raises(TrainingError, match="9 tokens in a step; the work has 10"):
        comparison._alternate([ScriptedSide("a", [1.0], [], tokens=9)], 1, 10, lambda *_: None)  # type: ignore[list-item]


def result(ours: list[float], theirs: list[float]) -> comparison.BenchResult:
    def side(name: str, seconds: list[float], peak: float) -> comparison.SideResult:
        phases = dict.fromkeys(comparison.PHASES, 0.0)
        steps = [
            {"seconds": s, "cpu_seconds": s, "phases": {**phases, "generate": s / 2, "learn": s / 4}, "tokens": 7}
            for s in seconds
        ]
        return comparison.SideResult(name, {}, {}, steps, peak)

    machine = [{"rate": 1e9, "bandwidth": 1e9}, {"rate": 2e9, "bandwidth": 0.5e9}]
    counts = {"decoding": {"bytes": 1e8, "flop": 1e9}, "learning": {"bytes": 0.0, "flop": 1e9}}
    workload = {"name": "w", "episodes": 8, "dtype": "float32"}
    return comparison.BenchResult(
        workload, 2, "CPU", 0.5, machine, counts, side("ours", ours, 50.0), side("trl", theirs, 100.0)
    )


def test_ratios_are_of_pairs_and_a_quarter_is_seen_on_a_drifting_machine() -> None:
    """The machine becomes three times slower half-way: the medians' ratio would be off, the pairs' ratio is not."""
    ours = [1.0, 1.1, 0.9, 3.0, 3.3, 2.7, 3.1]
    found = result(ours, [1.25 * s for s in ours])
    assert found.ratios == pytest.approx([1.25] * 7)
    assert found.to_json()["ratio"] == pytest.approx(1.25)
    assert found.to_json()["peak_ratio"] == pytest.approx(0.5)


def test_the_share_of_the_limit_takes_the_better_measurement_of_the_machine() -> None:
    found = result([4.0], [8.0])
    assert (found.rate, found.bandwidth) == (2e9, 1e9)
    assert found.reached("decoding") == pytest.approx(0.5 / 2.0)  # 1e9 operations at 2e9/s, in half of 4 seconds
    assert found.reached("learning") == pytest.approx(0.5 / 1.0)
    text = table.bench_table(found)
    assert "median 2.00" in text
    assert "| decoding | 0.1 GB | 1 GFLOP | 0.500 | arithmetic | 2.000 | 25% |" in text


@pytest.mark.nightly
def test_a_whole_run_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = comparison.run_bench(MINIATURE, repeats=1, threads=1)
    assert found.ours.ready["threads"] == 1
    assert torch.cuda.is_available() or found.device == "CPU"
    assert found.ours.steps[0]["tokens"] == int(lengths(MINIATURE).sum())
    assert found.rate > 1e8
    json.dumps(found.to_json())
    assert "fraction reached" in table.bench_table(found)


def test_a_side_that_dies_shows_its_last_words() -> None:
    with (
        pytest.raises(TrainingError, match=r"'x' of the benchmark ended with status 3(.|\n)*out of luck"),
        children.Side(
            "x", [sys.executable, "-c", "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"], threads=1
        ),
    ):
        raise AssertionError("not reached")


# ---------------------------------------------------------------- growth


def test_fits_find_what_they_were_made_of() -> None:
    xs = [1.0, 2.0, 4.0, 8.0]
    found = growth.fit(xs, [3 * x + 0.5 * x**2 for x in xs], (1, 2))
    assert found.coefficients == pytest.approx((3.0, 0.5))
    assert found.worst == pytest.approx(0.0, abs=1e-12)
    assert found.at(10.0) == pytest.approx(80.0)
    assert growth.fit(xs, [x**2 for x in xs], (0, 1)).worst > 0.1, "a curve that is no line shows"


def test_every_point_of_every_curve_is_a_workload() -> None:
    for curve in growth.CURVES.values():
        for value in curve.values:
            workload = curve.make(value)
            assert workload.episodes % workload.group == 0
            assert isinstance(workload.model, Shape)
            assert workload.model.heads * workload.model.head_dim == workload.model.width
            assert workload.model.heads % workload.model.kv_heads == 0


# ---------------------------------------------------------------- refusals


def run(arguments: list[str]) -> int:
    return cli.main(arguments, bench_app, "python -m benchmarks.step")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "tinny"], "Did you mean 'tiny'?"),
        (["--episodes", "12"], "give a multiple of 8"),
        (["--workload", "gpu-0.5b"], "For a quick look, use --episodes 8"),
        (["--against", "trl", "--trl-python", "nowhere/python"], "make trl"),
        (["--against", "trl", "--trl-python", sys.executable], "no TRL"),
        (["--against", "trl", "--trl-set", "dtype=int8"], "the choices are rows=NUMBER, dtype="),
        (["--against", "trl", "--trl-set", "rows=7"], "divides 512 episodes"),
    ],
)
def test_refusals_come_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["ratio", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_workload_can_have_another_number_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Workload] = []

    def run_bench(workload: Workload, **_: Any) -> comparison.BenchResult:
        asked.append(workload)
        return result([4.0], [8.0])

    monkeypatch.setattr(comparison, "run_bench", run_bench)
    assert run(["ratio", "--workload", "small", "--dtype", "bfloat16"]) == 0
    assert run(["ratio", "--workload", "small"]) == 0
    assert [workload.dtype for workload in asked] == ["bfloat16", "float32"]


def test_what_a_search_found_is_told_when_the_pairs_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search takes long: its result must survive when a side is killed afterwards, for instance for lack of memory."""

    def run_bench(workload: Workload, **_: Any) -> comparison.BenchResult:
        raise TrainingError("killed")

    pretend(monkeypatch, lambda settings, patience: 2.0 if settings["rows"] < 512 else 1.0)
    monkeypatch.setattr(comparison, "run_bench", run_bench)
    monkeypatch.setattr(children, "check_trl", lambda python: None)
    assert run(["ratio", "--workload", "small", "--against", "trl", "--search"]) == 1
    told = capsys.readouterr().err
    assert "killed" in told
    assert "--trl-set rows=512" in told


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "find_model", lambda settings, seed: tiny_model(dtype=torch.float32))
    write_work(resized(find_workload("tiny"), 8), tmp_path)
    with pytest.raises(ConfigError, match="exceed the context of 256"):
        write_work(replace(find_workload("tiny"), turn=200, episodes=8), tmp_path)


def test_trl_settings_are_the_workloads_own_unless_told() -> None:
    small = resized(find_workload("small"), 64)
    assert trl_settings.parse(["rows=16", "continued=false"], small) == {
        "dtype": "float32",
        "attention": "sdpa",
        "continued": False,
        "kept_memory": False,
        "rows": 16,
    }
    assert trl_settings.parse([], find_workload("gpu-0.5b"))["dtype"] == "bfloat16"
    with pytest.raises(SelfCorrectError):
        trl_settings.parse(["cache=true"], small)


def test_trls_side_names_what_the_protocol_has() -> None:
    """It runs in an environment without this package, so no other test here imports it."""
    tree = ast.parse((Path(side.__file__).parent / "trl_score.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert "protocol" in imported
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "protocol"
    }
    assert used and all(hasattr(side, name) for name in used)
