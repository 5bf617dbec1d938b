"""`evaluate` and `selfcorrect eval`: their settings, and the engine that samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import outside_engine
from support.models import tiny_model

import selfcorrect
from selfcorrect.__main__ import main
from selfcorrect.config.evaluation import EvalSettings, make_eval_settings
from selfcorrect.distributed.world import World
from selfcorrect.errors import ConfigError, RunDirectoryError
from selfcorrect.evaluation import evaluate as evaluation_run
from selfcorrect.models.language_model import load_model
from selfcorrect.report import terminal
from selfcorrect.storage.episode_log import read_episodes

OUTSIDE = "support.outside_engine:KIND"
ADDITION = {"limit": 6, "max_tokens": 5, "device": "cpu"}


@pytest.fixture(autouse=True)
def opened() -> list[outside_engine.OutsideEngine]:
    outside_engine.OPENED.clear()
    return outside_engine.OPENED


@pytest.fixture(scope="module")
def model(model_folder: Path) -> str:
    return str(model_folder)


def command(model: str, out: Path, *more: str) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in ADDITION.items()]
    return ["eval", "--model", model, "--task", "addition", "--out", str(out), "-q", *given, *more]


# ---------------------------------------------------------------- settings


def test_keywords_change_single_fields_and_none_is_the_default() -> None:
    base = EvalSettings(limit=5, temperature=1.0, samples=2)
    found = make_eval_settings({"samples": 3, "limit": None, "stop": None}, ["revise=Look again."], base=base)
    assert found == EvalSettings(temperature=1.0, samples=3, revise="Look again.")
    assert make_eval_settings({}, ["task_options.digits=2", "vllm.dtype=bfloat16"]) == EvalSettings(
        task_options={"digits": 2}, vllm={"dtype": "bfloat16"}
    )


def test_all_mistakes_are_reported_in_one_error() -> None:
    wrong = {"limit": 0, "splt": "test", "engine": "vlm", "temperature": float("nan"), "dtype": "float8"}
    with pytest.raises(ConfigError) as told:
        selfcorrect.evaluate("nowhere", "addition", **wrong)
    words = ["the evaluation is rejected", "limit = 0", "did you mean 'split'?", "Did you mean 'vllm'?"]
    words += ["temperature = nan", "dtype = 'float8'"]
    assert [part for part in words if part not in str(told.value)] == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"samples": 4}, "samples = 4, but greedy attempts are all the same"),
        ({"controls": True, "turns": 1}, "the controls compare second attempts"),
        ({"turns": 11}, "turns = 11"),
        ({"temperature": -1.0}, "temperature = -1.0"),
        ({"engine": "vllm", "base_url": "http://127.0.0.1:9/v1"}, "engine: only for a model in this process"),
        ({"key_env": "A", "retries": 2}, "key_env, retries: only for a model on a server"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        selfcorrect.evaluate("nowhere", "addition", **given)


def test_settings_and_keywords_mean_the_same_evaluation(model: str, tmp_path: Path) -> None:
    selfcorrect.evaluate(model, "addition", out=tmp_path / "e", **ADDITION)
    before = (tmp_path / "e/summary.json").read_bytes()
    settings = EvalSettings(limit=3, max_tokens=5, device="cpu")
    selfcorrect.evaluate(model, "addition", settings=settings, limit=6, out=tmp_path / "e")
    assert (tmp_path / "e/summary.json").read_bytes() == before
    with pytest.raises(RunDirectoryError, match=r"problems\.count: 6 there, 3 requested"):
        selfcorrect.evaluate(model, "addition", settings=settings, out=tmp_path / "e")


def test_the_command_sets_every_field(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(model, tmp_path / "e", "--turns=3", "--set", "turns=1", "--set", "system=Be brief.")) == 0
    identity = json.loads((tmp_path / "e/eval.json").read_text())
    assert identity["plan"]["turns"] == 1 and identity["script"]["system"] == "Be brief."
    capsys.readouterr()
    assert main(command(model, tmp_path / "x", "--set", "temprature=1", "--set", "samples=0")) == 2
    message = capsys.readouterr().err
    assert "did you mean 'temperature'?" in message and "samples = 0" in message
    assert not (tmp_path / "x").exists()


def test_every_option_of_the_command_that_is_a_setting_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(model: str, task: str, *, settings: EvalSettings, **_: Any) -> None:
        asked.append(settings)
        raise ConfigError("enough")

    monkeypatch.setattr(evaluation_run, "evaluate", measure)
    options = "--turns=3 --limit=4 --seed=5 --split=dev --data-seed=6 --max-tokens=7 --temperature=0.5 --samples=8"
    options += (
        " --sampled --controls --dtype=bfloat16 --device=cuda --max-num-seqs=9 --base-url=http://a/v1 --key-env=K"
    )
    options += " --request-timeout=10 --retries=11 --stop=a --stop=b --trust-remote-code --engine=a:b --task-option=x=1"
    main(["eval", "--model=m", "--task=t", "--out=o"])
    main(["eval", "--model=m", "--task=t", "--out=o", *options.split()])
    plain, full = asked
    assert plain == EvalSettings()
    assert full == EvalSettings(
        **{"turns": 3, "limit": 4, "seed": 5, "split": "dev", "data_seed": 6, "max_tokens": 7, "temperature": 0.5},
        **{"samples": 8, "sampled": True, "controls": True, "dtype": "bfloat16", "device": "cuda", "max_num_seqs": 9},
        **{"base_url": "http://a/v1", "key_env": "K", "request_timeout": 10.0, "retries": 11, "stop": ("a", "b")},
        **{"trust_remote_code": True, "engine": "a:b", "task_options": {"x": 1}},
    )


@pytest.fixture(scope="module")
def thinking(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model with a template that opens reasoning in the prompt unless it is told not to."""
    folder = tmp_path_factory.mktemp("thinking")
    lm = load_model(model)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% if thinking | default(true) %}<think>{% endif %}{% endif %}"
    )
    lm.save(folder)
    return str(folder)


def test_options_of_the_chat_template_reach_it_and_are_recorded(thinking: str, tmp_path: Path) -> None:
    off = ["--set", "chat_template_kwargs={ thinking = false }"]
    assert main(command(thinking, tmp_path / "on")) == 0
    assert main(command(thinking, tmp_path / "off", *off)) == 0
    on, without = (list(read_episodes(tmp_path / name / "episodes/eval-attempts.jsonl")) for name in ("on", "off"))
    assert all(turn.text.startswith("<think>") for episode in on for turn in episode.attempts)
    assert not any(turn.text.startswith("<think>") for episode in without for turn in episode.attempts)
    assert "chat_template_kwargs" not in json.loads((tmp_path / "on/eval.json").read_text())["plan"]
    identity = json.loads((tmp_path / "off/eval.json").read_text())
    assert identity["plan"]["chat_template_kwargs"] == {"thinking": False}
    summary = json.loads((tmp_path / "off/summary.json").read_text())
    assert summary["provenance"]["evaluation"]["plan"]["chat_template_kwargs"] == {"thinking": False}
    with pytest.raises(RunDirectoryError, match="chat_template_kwargs"):
        selfcorrect.evaluate(thinking, "addition", out=tmp_path / "off", **ADDITION)


def test_an_option_that_the_template_does_not_have_is_refused_before_any_work(
    thinking: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(thinking, tmp_path / "e", "--set", "chat_template_kwargs={ thinkin = false }")) == 2
    assert "chat_template_kwargs sets 'thinkin'" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_a_run_passes_its_template_options_on(thinking: str, tmp_path: Path) -> None:
    config = {
        "task": {"train_problems": 8, "dev_problems": 2},
        "model": {"source": thinking, "device": "cpu", "chat_template_kwargs": {"thinking": False}},
        "rollout": {"batch_size": 4, "group_size": 2, "max_tokens": 4},
        "stages": {"s": {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}},
        "eval": {"problems": 2, "sampled": False, "controls": False, "dev_every": 0},
        "log": {"episodes_every": 1},
    }
    selfcorrect.train(config, tmp_path / "r")
    stored = [e for file in (tmp_path / "r/episodes").glob("*.jsonl") for e in read_episodes(file)]
    assert stored and not any(turn.text.startswith("<think>") for e in stored for turn in e.attempts)
    selfcorrect.evaluate(str(tmp_path / "r"), "addition", out=tmp_path / "e", **ADDITION)
    assert json.loads((tmp_path / "e/eval.json").read_text())["plan"]["chat_template_kwargs"] == {"thinking": False}


def test_texts_that_end_a_turn_are_read_with_escapes(model: str, tmp_path: Path) -> None:
    assert main(command(model, tmp_path / "e", "--stop", r"\n\nQ:", "--stop", r"\boxed", "--stop", r"\\nabla")) == 0
    assert json.loads((tmp_path / "e/eval.json").read_text())["plan"]["stop"] == ["\n\nQ:", r"\boxed", r"\nabla"]


def test_an_interrupted_evaluation_shows_what_it_has(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcorrect.cli.console.Interrupts.should_stop", lambda self: next(answers))
    answers = iter([0, 0, 2])
    assert main(command(model, tmp_path / "e", "--max-num-seqs", "2")) == 130
    out = capsys.readouterr().out
    assert "PARTIAL: the evaluation stopped after 4 of 6 problems." in out and "n = 4." in out and "Acc@t2" in out
    answers = iter([0] * 9)
    assert main(command(model, tmp_path / "e", "--max-num-seqs", "2")) == 0
    out = capsys.readouterr().out
    assert "n = 6." in out and "PARTIAL" not in out


@pytest.fixture(scope="module")
def rounded_run(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bfloat16 that only evaluates its base."""
    run = tmp_path_factory.mktemp("rounded") / "run"
    settings = {"model": {"source": model, "dtype": "bfloat16", "device": "cpu"}, "stages": {}}
    settings |= {"task": {"name": "addition"}, "rollout": {"max_tokens": 5}, "log": {"trackers": []}}
    selfcorrect.train({**settings, "eval": {"problems": 2, "sampled": False, "controls": False}}, run)
    return run


def recorded_dtype(folder: Path) -> str:
    return str(json.loads((folder / "eval.json").read_text())["dtype"])


def test_a_run_is_measured_in_its_own_dtype(
    rounded_run: Path, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"limit": 2, "max_tokens": 5, "device": "cpu"}
    with caplog.at_level("INFO", logger="selfcorrect"):
        selfcorrect.evaluate(rounded_run, "addition", out=tmp_path / "own", **sizes)
    assert "bfloat16, as in its run" in caplog.text
    selfcorrect.evaluate(f"{rounded_run}:base", "worked_sums", out=tmp_path / "other-task", **sizes)
    selfcorrect.evaluate(rounded_run, "addition", out=tmp_path / "set", dtype="float32", **sizes)
    selfcorrect.evaluate(model, "addition", out=tmp_path / "plain", **sizes)
    found = {folder.name: recorded_dtype(folder) for folder in tmp_path.iterdir()}
    assert found == {"own": "bfloat16", "other-task": "bfloat16", "set": "float32", "plain": "float32"}


def test_an_evaluation_of_an_earlier_version_resumes_in_its_dtype(rounded_run: Path, tmp_path: Path) -> None:
    sizes = {"limit": 2, "max_tokens": 5, "device": "cpu"}
    out = tmp_path / "e"
    before = selfcorrect.evaluate(rounded_run, "addition", out=out, dtype="float32", **sizes)
    (out / "summary.json").unlink()
    again = selfcorrect.evaluate(rounded_run, "addition", out=out, **sizes)
    assert recorded_dtype(out) == "float32" and again.to_json() == before.to_json()
    with pytest.raises(RunDirectoryError, match="dtype: 'float32' there, 'bfloat16' requested"):
        selfcorrect.evaluate(rounded_run, "addition", out=out, dtype="bfloat16", **sizes)


def test_turns_that_nearly_all_are_truncated_have_a_probable_cause() -> None:
    def text(truncated: float) -> str:
        turn = {"truncated": truncated, "accuracy": 0.0}
        row = {"n": 9, "samples": 1, "acc_t1": 0.0, "acc_t1_ci95": [0.0, 0.3], "ci_method": "Wilson", "turns": [turn]}
        return terminal.paper_table({"model": row}, "Greedy decoding")

    assert "--max-tokens" in text(1.0) and "--stop TEXT" in text(0.95)
    assert "--stop" not in text(0.5)


def test_a_runs_models_share_one_hint_with_the_settings_of_a_run() -> None:
    turn = {"truncated": 1.0, "accuracy": 0.0}
    row = {"n": 9, "samples": 1, "acc_t1": 0.0, "acc_t1_ci95": [0.0, 0.3], "ci_method": "Wilson", "turns": [turn]}
    text = terminal.all_tables({name: {**row, "sampled": row} for name in ("base", "score")})
    assert text.count("nearly all turns") == 1 and "  base, score: nearly all" in text
    assert "rollout.max_tokens" in text and "rollout.stop" in text and "--" not in text


@pytest.mark.parametrize(
    ("first", "second", "truncated", "hinted"),
    [(0.0, 0.35, 0.0, True), (0.0, 0.2, 0.0, False), (0.3, 0.35, 0.0, False), (0.0, 0.35, 0.3, False)],
)
def test_second_attempts_that_lose_the_format_have_a_probable_cause(
    first: float, second: float, truncated: float, hinted: bool
) -> None:
    turns = [{"no_answer": first, "truncated": 0.0}, {"no_answer": second, "truncated": truncated}]
    row = {"n": 9, "samples": 1, "acc_t1": 0.0, "acc_t1_ci95": [0.0, 0.3], "ci_method": "Wilson", "turns": turns}
    assert ("--set revise=" in terminal.paper_table({"model": row}, "Greedy decoding")) == hinted


# ---------------------------------------------------------------- engines


def test_an_engine_from_outside_samples_the_evaluation(model: str, tmp_path: Path, opened) -> None:
    assert main(command(model, tmp_path / "hf", "--controls")) == 0
    assert main(command(model, tmp_path / "own", "--controls", f"--engine={OUTSIDE}")) == 0
    (engine,) = opened
    assert engine.closed and engine.requests > 6 * 2 and engine.settings.max_length
    hf, own = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("hf", "own"))
    assert own["plan"].pop("engine") == {"name": OUTSIDE, "options": {}}
    assert own["plan"] == hf["plan"], "the engine hf leaves no trace, so that older directories can be resumed"
    for part in ("attempts", "sampled", "resample", "swap"):
        file = f"episodes/eval-{part}.jsonl"
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "own" / file).read_bytes()


def test_a_directory_is_of_one_engine_and_its_settings(model: str, tmp_path: Path, opened) -> None:
    def measure(**given: Any) -> None:
        selfcorrect.evaluate(model, "addition", out=tmp_path / "e", **ADDITION, **given)

    own = {"engine": OUTSIDE, "engine_options": {"speed": 1}}
    measure(**own)
    with pytest.raises(RunDirectoryError, match=r"plan\.engine\.name: .* there, 'unset' requested"):
        measure()
    with pytest.raises(RunDirectoryError, match=r"plan\.engine\.options\.speed: 1 there, 2 requested"):
        measure(engine=OUTSIDE, engine_options={"speed": 2})
    assert len(opened) == 1
    measure(**own)
    assert len(opened) == 1, "nothing is left to sample, so no engine is opened"


def test_a_live_model_is_sampled_by_an_engine_from_outside(opened) -> None:
    lm = tiny_model(0)
    found = selfcorrect.evaluate(lm, "addition", limit=3, max_tokens=4, engine=OUTSIDE)
    assert len(opened) == 1 and opened[0].closed
    assert found.episodes == selfcorrect.evaluate(lm, "addition", limit=3, max_tokens=4).episodes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "no_such_module:engine"}, "cannot be imported"),
        ({"engine": OUTSIDE, "engine_options": {"speed": "impossible"}}, "speed = 'impossible'"),
        ({"engine": "vllm"}, r"engine = 'vllm' needs vllm.*\[lora,math,vllm\]"),
        ({"engine_options": {"speed": 1}}, "engine 'hf' takes no options"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_before_any_work(
    given: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfcorrect.evaluation.problem_set.get_task", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match=words):
        selfcorrect.evaluate("nowhere", "addition", out=tmp_path / "e", **given)
    assert not (tmp_path / "e").exists()


def test_what_vllm_cannot_sample_is_refused_before_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("selfcorrect.evaluation.measured_model.check_engine", lambda settings, **more: None)
    monkeypatch.setattr("selfcorrect.evaluation.measured_model.foreseen", None)
    with pytest.raises(ConfigError, match=r"dtype = 'float64', which vLLM.*; temperature = 3\.0: vLLM samples at"):
        selfcorrect.evaluate("nowhere", "addition", engine="vllm", dtype="float64", temperature=3.0, limit=2)


# ---------------------------------------------------------------- several processes


class Two(World):
    """A world whose other process does and has the same as this one, except for another file of problems."""

    def gather(self, value: Any) -> list[Any]:
        other = {**value, "problems.digest": "another"} if isinstance(value, dict) else value
        return [value, other]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "process 1 of 2 measures something else than the first one; these differ: problems.digest"),
        ({"engine": "support.outside_engine:ALONE_KIND"}, "runs in one process, but 2 are to share the work"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "on a server, but a launcher started 2 processes.*max_num_seqs = 16"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(given: dict[str, Any], words: str, model: str) -> None:
    given = {**ADDITION, **given} if "base_url" not in given else given
    with pytest.raises(ConfigError, match=words):
        selfcorrect.evaluate(model, "addition", **given, world=Two(0, 2))
