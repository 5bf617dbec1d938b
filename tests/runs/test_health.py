"""Warnings when a run goes wrong, from metrics made by hand, and a real run that is made worse on purpose."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config import aliases
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import ConfigError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import load_model
from selfcorrect.runs.health import HealthMonitor
from selfcorrect.runs.run import resume, train
from selfcorrect.storage.files import append_lines, read_jsonl
from selfcorrect.storage.run_dir import read_metrics

Step = dict[str, Any]
RESULTS = Path(__file__).parents[2] / "results"
HEALTHY: Step = {
    "r1": 0.5,
    "r2": 0.6,
    "answer_change_rate": 0.4,
    "informative_groups_t1": 0.6,
    "informative_groups_t2": 0.5,
    "truncated_t1": 0.1,
    "truncated_t2": 0.1,
    "kl_base_t1": 1.2,
    "kl_base_token_t1": 400.0,
    "kl_base_t2": -0.1,
    "gradient_norm": 20.0,
    "max_logprob_diff": 1e-6,
}


def monitor(*changes: str) -> HealthMonitor:
    return HealthMonitor(load_config("smollm2_arithmetic", changes))


def series(count: int, change: Callable[[int], Step], stage: str = "stage1") -> list[Step]:
    """Return healthy steps from 1 on with what ``change`` returns for each."""
    return [{**HEALTHY, "stage": stage, "step": step, **change(step)} for step in range(1, count + 1)]


def looks(watch: HealthMonitor, steps: Sequence[Step]) -> list[tuple[int, str]]:
    """Return every warning and the step at which it came."""
    return [(step["step"], warning) for step in steps for warning in watch.look(step)]


def dev(gained: int, lost: int, *, n: int = 80, base: int = 49, changed: float = 0.3, t1: float = 0.6) -> Step:
    model = (base + gained - lost) / n
    compared = {"attempt": 2, "accuracy": base / n, "gained": gained, "lost": lost}
    return {"dev": {"n": n, "acc_t1": t1, "acc_t2": model, "answer_change_rate": changed, "base": compared}}


# ---------------------------------------------------------------- one sign at a time


def test_a_healthy_stage_is_silent() -> None:
    watch = monitor()
    assert looks(watch, series(60, lambda step: dev(4, 9) if step % 20 == 0 else {})) == []
    assert watch.end("stage1") is None and not watch.stopped


@pytest.mark.parametrize(
    ("change", "step", "words"),
    [
        (lambda s: {"max_logprob_diff": 0.2}, 1, "differ by up to 0.2 nats"),
        (lambda s: {"kl_base_t2": 60.0}, 1, "kl_base_t2 = 60.0 nats, above kl.warn_above = 50.0"),
        (
            lambda s: {"kl_base_t1": 1.2 if s < 30 else 15.0},
            32,
            "kl_base_t1 = 15.0 nats (median of 5 steps), usual were 1.2",
        ),
        (lambda s: {"gradient_norm": 390.0}, 1, "the gradient norm is 390, and optimizer.max_grad_norm = 1"),
        (lambda s: {"gradient_norm": 390.0 if s == 20 else 30.0}, 20, "the gradient norm is 390, usual were 30"),
        (lambda s: {"gradient_norm": 250.0 if s >= 20 else 20.0}, 22, "the gradient norm is 250, usual were 20"),
        (
            lambda s: {"truncated_t2": 0.75},
            10,
            "75% of the sampled answers of turn 2 are truncated at rollout.max_tokens = 12",
        ),
        (
            lambda s: {"truncated_t1": 0.95 if s == 3 else 0.1},
            3,
            "step 3: 95% of the sampled answers of turn 1 are truncated",
        ),
        (lambda s: {"answer_change_rate": 0.03}, 10, "only 3.0% of the sampled answers change"),
        (lambda s: {"informative_groups_t2": 0.0, "r2": 0.98}, 10, "most groups are all correct. Change: take harder"),
        (lambda s: {"informative_groups_t2": 0.0, "r2": 0.01}, 10, "most groups are all wrong. Change: take easier"),
        (
            lambda s: dev(1, 10) if s == 20 else {},
            20,
            "on the development problems greedy Acc@t2 is 50.0%, the base has",
        ),
        (
            lambda s: dev(5, 5, changed=0.01) if s == 20 else {},
            20,
            "in the greedy look at the development problems only 1.0% of the",
        ),
        (lambda s: dev(5, 5, t1=0.6 if s == 10 else 0.5) if s % 10 == 0 else {}, 20, "fell from 60.0% to 50.0%"),
    ],
)
def test_each_sign_is_told_once_a_stage_with_what_to_change(
    change: Callable[[int], Step], step: int, words: str
) -> None:
    watch = monitor()
    ((at, warning),) = looks(watch, series(40, change))
    assert at == step and words in warning and ". Change: " in warning and warning.startswith(f"stage1 step {step}: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {"gradient_norm": 340.0 if s == 20 else 30.0},  # stored runs that went well reach 334
        lambda s: {"gradient_norm": 365.0 if s == 20 else 60.0},
        lambda s: {"gradient_norm": 0.0 if s < 20 else 8.0},  # clipping makes steps of any smaller norm alike
        lambda s: {"kl_base_t1": 0.3 if s < 20 else 6.0},  # rises from next to nothing, as it should
        lambda s: {"informative_groups_t1": 0.0},  # Stage I rewards second attempts alone
        lambda s: {"informative_groups_t2": 0.0 if s % 10 else 1.0},
        lambda s: {"answer_change_rate": 0.0 if s % 2 else 0.3},
        lambda s: dev(3, 8),  # may be chance
        lambda s: dict.fromkeys(HEALTHY),  # other methods measure less
    ],
)
def test_what_may_be_usual_or_chance_is_no_sign(change: Callable[[int], Step]) -> None:
    assert looks(monitor(), series(40, change)) == []


@pytest.mark.parametrize(("skipped", "warned"), [(0.5, True), (0.9, False), (1.0, False)])
def test_second_attempts_that_are_not_asked_for_are_no_copies(skipped: float, warned: bool) -> None:
    """2 % of all answers change: 4 % of the second attempts if half are skipped, 20 % if nine in ten are."""
    found = looks(monitor(), series(30, lambda s: {"answer_change_rate": 0.02, "skipped_t2": skipped}))
    assert any("copies the first" in warning for _, warning in found) is warned


@pytest.mark.parametrize(("skipped", "warned"), [(0.3, True), (0.9, False), (1.0, False)])
def test_a_look_counts_copies_among_the_attempts_that_were_made(skipped: float, warned: bool) -> None:
    look = dev(3, 0, changed=0.01)
    judged = {"dev": {**look["dev"], "skipped_t2": skipped, "rv1": 0.5}}
    found = looks(monitor(), series(1, lambda s: judged))
    assert any("copies the first" in warning for _, warning in found) is warned


def alternating(count: int, first: Step, second: Step) -> tuple[HealthMonitor, list[Step]]:
    """Return steps of first attempts and of revisions in turn, with what these report, and their monitor."""
    stage = {"method": "thinktwice", "steps": 80, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}
    of_first = {
        name: value for name, value in HEALTHY.items() if not name.endswith("2") and name != "answer_change_rate"
    }
    of_second = {name: value for name, value in HEALTHY.items() if not name.endswith("t1") or name == "truncated_t1"}
    steps: list[Step] = [{"stage": "twice", "step": s, **((of_first | first) if s % 2 else (of_second | second))}
                         for s in range(1, count + 1)]  # fmt: skip
    return HealthMonitor(make_config({"stages": {"twice": stage}})), steps


@pytest.mark.parametrize(
    ("first", "second", "step", "words"),
    [
        ({}, {}, 0, ""),
        ({}, {"answer_change_rate": 0.03}, 20, "only 3.0% of the sampled answers change"),
        ({}, {"informative_groups_t2": 0.0, "r2": 0.98}, 20, "most groups are all correct"),
        ({"informative_groups_t1": 0.0, "r1": 0.01}, {}, 19, "most groups are all wrong"),
        ({"gradient_norm": 20.0}, {"gradient_norm": 330.0}, 0, ""),
    ],
)
def test_steps_that_alternate_are_compared_with_their_own_kind(
    first: Step, second: Step, step: int, words: str
) -> None:
    """Ten steps of a kind are twenty of the stage; one kind's usual value is none of the other's."""
    watch, steps = alternating(60, first, second)
    found = looks(watch, steps)
    assert [at for at, _ in found] == ([step] if words else [])
    assert all(words in warning for _, warning in found)


def test_a_bonus_makes_a_signal_of_first_attempts() -> None:
    """In Stage II a group teaches something if any attempt's rewards differ."""
    assert looks(monitor(), series(40, lambda s: {"informative_groups_t2": 0.0}, "score")) == []
    none = {"informative_groups_t1": 0.0, "informative_groups_t2": 0.0}
    ((at, warning),) = looks(monitor(), series(40, lambda s: none, "score"))
    assert at == 10 and "nothing to learn" in warning


# ---------------------------------------------------------------- the case that was seen


def the_case_that_was_seen(stage: str, steps: int) -> list[Step]:
    """A model of 0.5 B that copies its drafts, trained with the settings for SmolLM2: 61.3% fell to 50.0%."""
    bad = {"answer_change_rate": 0.0, "gradient_norm": 390.0, "max_logprob_diff": 0.2}
    return series(steps, lambda step: bad | (dev(1, 10, changed=0.0) if step % 30 == 0 else {}), stage)


def test_the_case_that_was_seen_is_told_in_five_sentences_a_stage(caplog: pytest.LogCaptureFixture) -> None:
    watch = monitor()
    for stage, count in (("stage1", 30), ("score", 55)):
        steps = the_case_that_was_seen(stage, count)
        warned = looks(watch, steps)
        assert [at for at, _ in warned] == [1, 1, 10, 30]
        for words in ("differ by up to 0.2 nats", "gradient norm is 390", "copies the first", "worse than its base"):
            assert sum(words in warning for _, warning in warned) == 1
        assert f"engine and policy differ, at {count}; " in (watch.end(stage) or "")
    assert len(caplog.records) == 10


@pytest.mark.parametrize("stopped_after", range(0, 85, 7))
def test_a_resumed_run_warns_as_an_undisturbed_one(stopped_after: int, tmp_path: Path) -> None:
    steps = [*the_case_that_was_seen("stage1", 30), *the_case_that_was_seen("score", 55)]
    whole, first, resumed = monitor(), monitor(), monitor()
    append_lines(tmp_path / "metrics.jsonl", steps[:stopped_after])
    before = looks(first, steps[:stopped_after])
    resumed.look_back([*read_metrics(tmp_path / "metrics.jsonl")])
    assert [*before, *looks(resumed, steps[stopped_after:])] == looks(whole, steps)
    assert resumed.end("score") == whole.end("score")


def test_a_stage_of_first_attempts_is_named_so_in_warnings() -> None:
    single = ["stages.score.reward_weights=[1]", "stages.score.kl_coefs=[{ base = 0.1 }]", "stages.score.bonus=0"]
    watch = HealthMonitor(load_config("demo", single))
    [warning] = watch.look({"stage": "score", "step": 1, "gradient_norm": 900.0}, aloud=False)
    assert warning.startswith("single-turn (score) step 1: the gradient norm is 900")
    watch.look({"stage": "score", "step": 2, "gradient_norm": 900.0}, aloud=False)
    assert (watch.end("score") or "").startswith("single-turn (score) is over.")


# ---------------------------------------------------------------- log.stop_if_worse


def worse(*changes: str, stages: Sequence[str] = ("stage1",), source: str = "addition-base") -> Config:
    """Return a short run that is rewarded for incorrect second attempts."""
    settings = [
        "stages.stage1.steps=12",
        "stages.stage1.reward_weights=[0, -1]",
        "stages.stage1.kl_coefs=[{ base = 0.0 }, { base = 0.0 }]",
        "stages.score.steps=1",
        "optimizer.learning_rate=2e-3",
        "optimizer.warmup_steps=0",
        "rollout.batch_size=64",
        "task.dev_problems=60",
        "eval.problems=60",
        "eval.dev_every=4",
        "eval.dev_sampled=false",
        "eval.sampled=false",
        "eval.controls=false",
        "log.save_every=10",
        "log.tensorboard=false",
        f"model.source={source}",
    ]
    plain = load_config("demo", [*settings, *changes]).model_dump()
    return make_config({**plain, "stages": {name: plain["stages"][name] for name in stages}})


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was made worse and ended below its base."""
    return train(worse("eval.dev_every=8"), tmp_path_factory.mktemp("below") / "run").path


@dataclass
class Stopped:
    """A run that was made worse and ended, its steps, and what was logged."""

    path: Path
    steps: list[int]
    warnings: str


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    steps: list[int] = []
    counted = Callbacks(on_step=lambda record: steps.append(record.metrics["step"]))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("selfcorrect").addHandler(handler)
    path = tmp_path_factory.mktemp("stopped") / "run"
    train(worse("log.stop_if_worse=true"), path, callbacks=counted)
    logging.getLogger("selfcorrect").removeHandler(handler)
    return Stopped(path, steps, "\n".join(record.getMessage() for record in records))


@pytest.mark.slow
def test_a_run_that_ended_below_its_base_says_so_first(below: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((below / "summary.json").read_text())
    assert next(iter(summary)) == "below_base" and "stopped" not in summary
    base, last = (summary["results"][name]["acc_t2"] for name in ("base", "stage1"))
    sentence = summary["below_base"]
    expected = f"The run ended below its base: greedy Acc@t2 is {100 * last:.1f}%, the base has {100 * base:.1f}%"
    assert sentence.startswith(expected) and "paired on 60 problems)." in sentence
    assert main(["train", "--resume", str(below), "-q"]) == 0
    assert capsys.readouterr().out.startswith(sentence)
    assert sentence.removesuffix(".") in html.unescape((below / "report.html").read_text())


@pytest.mark.slow
def test_a_stage_that_is_worse_ends_and_keeps_the_bases_weights(stopped: Stopped) -> None:
    out, steps = stopped.path, stopped.steps
    assert steps == [*range(1, steps[-1] + 1)] and steps[-1] < 12 and steps[-1] % 4 == 0
    told = f"log.stop_if_worse ended stage1 at step {steps[-1]} of 12, worse than the base"
    assert "worse than its base by more than chance allows" in stopped.warnings and told in stopped.warnings
    summary = json.loads((out / "summary.json").read_text())
    assert summary["stopped"] == {"stage1": told} and "below_base" not in summary
    kept = [load_model(out / "checkpoints" / name).digest() for name in ("base", "stage1")]
    assert kept[0] == kept[1]
    assert summary["results"]["stage1"]["acc_t2"] == summary["results"]["base"]["acc_t2"]


@pytest.mark.slow
def test_what_waits_is_dropped_where_a_stage_ends_early(tmp_path: Path) -> None:
    """One step off (docs/method.md, section 11), the next stage begins anew, and only learnt episodes are counted."""
    ahead = ("log.stop_if_worse=true", "rollout.ahead=1", "optimizer.tis_cap=2")
    summary = train(worse(*ahead, stages=("stage1", "score")), tmp_path / "run")
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    steps = [m["step"] for m in metrics if m["stage"] == "stage1"]
    assert "stage1" in summary.json["stopped"] and 0 < len(steps) < 12
    assert [m["step"] for m in metrics if m["stage"] == "score"] == [1]
    assert [m["completions"] for m in metrics] == [2 * 64] * (len(steps) + 1)


@pytest.mark.slow
def test_a_stopped_run_has_its_own_exit_status(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(stopped.path), "-q", "--no-report"]) == 3
    assert capsys.readouterr().out.startswith("log.stop_if_worse ended stage1 at step ")


@pytest.mark.nightly
def test_a_stage_that_ended_worse_is_not_trained_on(stopped: Stopped, tmp_path: Path) -> None:
    """Whether it was interrupted at its last step or finished."""
    seen: list[int] = []
    later: list[int] = []
    last = len(stopped.steps)
    stopping = Callbacks(
        on_step=lambda r: seen.append(r.metrics["step"]), should_stop=lambda: 15 if len(seen) == last else None
    )
    with pytest.raises(InterruptedRun):
        train(worse("log.stop_if_worse=true"), tmp_path / "cut", callbacks=stopping)
    again = Callbacks(on_step=lambda r: later.append(r.metrics["step"]))
    for _ in range(2):
        resumed = resume(tmp_path / "cut", callbacks=again)
    whole = json.loads((stopped.path / "summary.json").read_text())
    assert not later and resumed.json["results"] == whole["results"] and resumed.json["stopped"] == whole["stopped"]
    with pytest.raises(ConfigError, match=r"log\.stop_if_worse = true takes a look at the last step"):
        resume(tmp_path / "cut", overrides=["stages.stage1.steps=30"])


@pytest.mark.nightly
def test_a_run_resumed_before_the_stop_ends_as_the_undisturbed_one(stopped: Stopped, tmp_path: Path) -> None:
    seen: list[int] = []
    stopping = Callbacks(on_step=lambda r: seen.append(1), should_stop=lambda: 15 if len(seen) == 2 else None)
    with pytest.raises(InterruptedRun):
        train(worse("log.stop_if_worse=true"), tmp_path / "cut", callbacks=stopping)
    resume(tmp_path / "cut")
    for log in ("metrics.jsonl", "episodes/eval-stage1-attempts.jsonl"):
        assert (tmp_path / "cut" / log).read_bytes() == (stopped.path / log).read_bytes()


@pytest.mark.nightly
def test_later_stages_begin_with_what_was_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    still = ("log.stop_if_worse=true", "stages.score.learning_rate=1e-30")
    summary = train(worse(*still, stages=("stage1", "score")), out)
    kept = [load_model(out / "checkpoints" / name).digest() for name in ("base", "stage1", "score")]
    assert kept[0] == kept[1] == kept[2] and list(summary.json["stopped"]) == ["stage1"]


@pytest.mark.slow
def test_the_best_look_is_kept_where_one_is_better(tmp_path: Path) -> None:
    """A stage that gains keeps the best of its looks, the last step among them."""
    out = tmp_path / "run"
    gains = ["stages.stage1.reward_weights=[0, 1]", "stages.stage1.steps=6", "optimizer.learning_rate=6e-4"]
    train(worse("log.stop_if_worse=true", *gains), out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["dev"]["acc_t2"] for line in lines if "dev" in line}
    assert list(found) == [4, 6]
    base = next(line["dev"]["base"]["accuracy"] for line in lines if "dev" in line)
    best = max([0, *found], key=lambda step: ({0: base, **found}[step], -step))
    kept = load_model(out / "checkpoints/stage1").digest()
    assert kept == load_model(out / f"checkpoints/stage1-{best:06d}").digest()


@pytest.mark.nightly
def test_adapters_that_are_worse_are_kept_as_they_began(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(worse("log.stop_if_worse=true", "model.lora={}", "optimizer.learning_rate=2e-2"), out)
    results = json.loads((out / "summary.json").read_text())
    assert results["stopped"] and results["results"]["stage1"] == results["results"]["base"]


def test_one_answer_to_all_problems_is_a_sign() -> None:
    same = {"t2": {"answer": "A", "count": 40, "n": 40, "right": 13}}
    look = {"dev": {**dev(3, 0)["dev"], "same_answers": same}}
    [(step, warning)] = looks(monitor(), series(2, lambda s: look))
    assert step == 1
    assert "in the greedy look at the development problems the second attempts say 'A' in 40 of 40; always" in warning
    assert "always answering it would be right in 32.5%" in warning


def test_groups_that_fail_at_the_token_limit_call_for_a_higher_one() -> None:
    def warned(truncated: float) -> str:
        steps = series(40, lambda s: {"informative_groups_t2": 0.0, "r2": 0.01, "truncated_t1": truncated})
        return next(warning for _, warning in looks(monitor(), steps) if "nothing to learn" in warning)

    assert "Change: raise rollout.max_tokens (40% of the answers of turn 1 are truncated at 12), or raise" in warned(
        0.4
    )
    assert "Change: take easier problems, or raise" in warned(0.2)


def test_stopping_needs_looks() -> None:
    with pytest.raises(ConfigError, match=r"log\.stop_if_worse = true needs looks .* set eval\.dev_every"):
        load_config("demo", ["log.stop_if_worse=true", "eval.dev_every=0"])


# ---------------------------------------------------------------- the stored runs


@pytest.mark.slow
def test_no_stored_run_would_have_warned_falsely() -> None:
    """First attempts that training held back, which are common there, are the only sign."""
    folders = sorted({file.parent for file in RESULTS.rglob("metrics.jsonl*")})
    assert len(folders) >= 177
    others = []
    for folder in folders:
        if folder.is_relative_to(RESULTS / "real-model"):  # told rightly: in bfloat16, and second attempts copy
            continue
        watch = HealthMonitor(load_config(folder / "config.toml"))
        for line in map(aliases.metrics, read_metrics(folder / "metrics.jsonl")):
            others += [f"{folder}: {told}" for told in watch.look(line, aloud=False) if "greedy Acc@t1" not in told]
    assert not others, "\n".join(others)
