"""The command line: what it prints where, what it refuses and how, and what happens when it is stopped."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.models import tiny_model
from support.stored_runs import record

import selfcorrect
from selfcorrect import runtime
from selfcorrect.__main__ import main
from selfcorrect.cli import console, progress
from selfcorrect.errors import ConfigError, DataError, ModelError
from selfcorrect.evaluation import evaluate as evaluation_run
from selfcorrect.report import episode_text as show
from selfcorrect.report import terminal as report
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.zoo import hub

CONFIG = """
[task]
name = "jsonl"
revise = "Correct any error."
options = {{ path = "{folder}/problems.jsonl", verifier = "lenient:check", trusted = true }}
train_problems = 40
dev_problems = 3

[model]
source = "{folder}/model"

[rollout]
batch_size = 8
group_size = 4
max_tokens = 6

[stages.first]
steps = 2
reward_weights = [0, 1]
anchors = [{{ base = 0.1 }}, {{ base = 0.1 }}]

[stages.second]
steps = 2
reward_weights = [1, 1]
bonus = 10
anchors = [{{ base = 0.1 }}, {{ base = 0.1 }}]

[eval]
problems = 30
dev_every = 0

[log]
tensorboard = false
"""

VERIFIER = """
def check(text, reference, row):
    return reference[-1] in text[:3]
"""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setenv("NO_COLOR", "")  # restores it afterwards, whatever the command line sets
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a random model, a task of 300 problems and a configuration."""
    folder = tmp_path_factory.mktemp("home")
    import torch

    tiny_model(1, dtype=torch.float32, spread=0.5).save(folder / "model")
    rows = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(300)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "lenient.py").write_text(VERIFIER)
    (folder / "tiny.toml").write_text(CONFIG.format(folder=folder))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A finished run."""
    assert main(["train", "tiny.toml", "--out", "run", "-q"]) == 0
    return home / "run"


TASK = ["--task", "jsonl", "--task-option", "path=problems.jsonl", "--task-option", "verifier=lenient:check"]
ALLOWED = ["--allow-code", "lenient:check"]
TASK += ["--task-option", "trusted=true", "--task-option", "revise=Correct any error."]


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False, **options
    )


# --- help and habits --------------------------------------------------------------------------------


def test_help_loads_none_of_the_libraries_that_take_long() -> None:
    done = python("-c", "import sys, selfcorrect.__main__ as m; m.main(['--help']); print('LOADED', *sys.modules)")
    assert done.returncode == 0 and done.stderr == ""
    shown, _, loaded = done.stdout.partition("LOADED")
    assert all(command in shown for command in ("train", "eval", "report", "show", "tasks", "models", "config"))
    assert not {"torch", "transformers", "numpy", "scipy", "pydantic"} & set(loaded.split())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("group", [[], ["models"]], ids=["selfcorrect", "models"])
def test_the_list_of_commands_says_whole_sentences(
    group: list[str], width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*group, "--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:\n")[2].partition("\n\n")[0]
    told = re.split(r"\n  (?=\w)", commands.strip())
    assert len(told) >= 5
    assert all(command.endswith(".") and "..." not in command for command in told), commands
    assert max(map(len, commands.splitlines())) < width
    assert width < 80 or "\n" not in "".join(told), "short enough for a line of an ordinary terminal"


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"selfcorrect {selfcorrect.__version__}\n"


def test_common_flags_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "demo", "--json"]) == 0
    behind = capsys.readouterr().out
    assert main(["--json", "-q", "config", "demo"]) == 0
    assert capsys.readouterr().out == behind
    assert json.loads(behind)["task"]["name"] == "addition"
    flags, rest = console.Flags.taken_from(["-v", "show", "--", "-q"])
    assert (flags, rest) == (console.Flags(verbose=True), ["show", "--", "-q"])


def test_environment_is_set_unless_the_user_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    runtime.set_environment()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["TOKENIZERS_PARALLELISM"]) == ("ACTIVE", "false")


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1 << 30, [(-3, 1 << 30), (-1, (1 << 31) - 1)]),
        (32 << 20, [(-3, 1 << 30), (-3, 32 << 20), (-1, (1 << 31) - 1)]),
        (0, [(-3, 1 << 30), (-3, 32 << 20)]),  # the heap's own rule stays: half of the change would be worse than none
    ],
)
def test_freed_memory_is_kept_as_far_as_the_c_library_lets(
    most: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        asked.append((name, value))
        return int(name == -1 or value <= most)

    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    runtime.keep_freed_memory()
    assert asked == expected
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    runtime.keep_freed_memory()
    assert asked == expected  # somebody has plans of their own
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: SimpleNamespace())
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    runtime.keep_freed_memory()  # no mallopt here


def test_environment_is_set_before_torch_is_imported() -> None:
    code = "import os, sys\nfrom selfcorrect.__main__ import main\nmain(['--version'])\n"
    code += "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert python("-c", code, env=environment).stdout.splitlines()[-1] == "PASSIVE False"


# --- refusals ---------------------------------------------------------------------------------------

MISTAKES = {
    "no command": (["nonsense"], "No such command 'nonsense'"),
    "nothing to train": (["train"], "give CONFIG and --out RUN"),
    "config without out": (["train", "demo"], "give CONFIG and --out RUN"),
    "config and resume": (["train", "demo", "--resume", "run"], "give CONFIG and --out RUN"),
    "out and resume": (["train", "--out", "x", "--resume", "run"], "give CONFIG and --out RUN"),
    "unknown config": (["train", "dem", "--out", "x"], "Did you mean 'demo'?"),
    "directory as config": (["train", ".", "--out", "x"], "'.' is neither a file nor"),
    "bad TOML": (["train", "lenient.py", "--out", "x"], "is not valid TOML"),
    "not text": (["train", "model/model.safetensors", "--out", "x"], "cannot be read"),
    "misspelt setting": (["config", "demo", "--set", "rollout.group_siz=4"], "did you mean 'group_size'?"),
    "misspelt stage": (["config", "demo", "--set", "stages.scor.bonus=1"], "did you mean the stage 'score'?"),
    "misspelt command": (["evl"], "Did you mean 'eval'? See `selfcorrect --help`."),
    "misspelt task option": (
        ["eval", "--model", "model", *TASK, "--task-option", "pth=a", "--out", "x"],
        "no option 'pth'",
    ),
    "set without value": (["config", "demo", "--set", "seed"], "write key.path=value"),
    "config and list": (["config", "demo", "--list"], "give CONFIG or --list"),
    "out below a file": (["train", "tiny.toml", "--out", "tiny.toml/x"], "cannot write to tiny.toml/x"),
    "out is a file": (["train", "tiny.toml", "--out", "tiny.toml"], "cannot write to tiny.toml"),
    "out is taken": (["train", "tiny.toml", "--out", "model"], "model holds other files"),
    "no device": (["train", "tiny.toml", "--out", "x", "--set", "model.device=tpu"], "model.device = 'tpu'"),
    "resume nothing": (["train", "--resume", "nowhere"], "nowhere is not a run"),
    "no such model": (["eval", "--model", "./nope", *TASK, "--out", "x"], "'./nope'"),
    "no such task": (["eval", "--model", "model", "--task", "addtion", "--out", "x"], "Did you mean 'addition'?"),
    "a file of data": (["tasks", "check", "problems.jsonl"], "task 'dataset' with the options path = 'problems.jsonl'"),
    "a place of data": (["tasks", "check", "own/data"], "task 'dataset' with the options path = 'own/data'"),
    "no such file": (["eval", "--model", "model", *TASK, "--task-option", "path=no.jsonl", "--out", "x"], "no.jsonl"),
    "limit 0": (["eval", "--model", "model", *TASK, "--out", "x", "--limit", "0"], "--limit"),
    "negative seed": (["eval", "--model", "model", *TASK, "--out", "x", "--seed", "-1"], "--seed"),
    "too many turns": (["eval", "--model", "model", *TASK, "--out", "x", "--turns", "11"], "--turns"),
    "one turn, controls": (["eval", "--model", "model", *TASK, "--out", "x", "--turns", "1", "--controls"], "turns >="),
    "temperature": (["eval", "--model", "model", *TASK, "--out", "x", "--temperature", "inf"], "finite"),
    "samples of a greedy one": (["eval", "--model", "model", *TASK, "--out", "x", "--samples", "4"], "(avg@4)"),
    "rescore nothing": (["rescore", "model"], "model holds no evaluation"),
    "export nothing": (["export", "model", "--out", "x.eval"], "model holds no evaluation"),
    "export to nowhere": (["export", "model"], "give one of --out LOG, --episodes DIR and --model DIR"),
    "export twice": (["export", "model", "--out", "x.eval", "--episodes", "y"], "give one of --out LOG"),
    "episodes of nothing": (["export", "model", "--episodes", "x"], "model is neither a run"),
    "model of nothing": (["export", "model", "--model", "x"], "model is not a run"),
    "bad option": (["eval", "--model", "model", *TASK, "--task-option", "path", "--out", "x"], "write KEY=VALUE"),
    "too long": (["eval", "--model", "model", *TASK, "--out", "x", "--max-tokens", "200"], "context is 256"),
    "eval device": (["eval", "--model", "model", *TASK, "--out", "x", "--device", "tpu"], "'tpu'"),
    "eval out taken": (["eval", "--model", "model", *TASK, "--out", "model"], "model holds other files"),
    "eval out below a file": (["eval", "--model", "model", *TASK, "--out", "tiny.toml/x"], "cannot write to"),
    "show nothing": (["show", "model"], "model is neither a run"),
    "show limit": (["show", "model", "--limit", "0"], "--limit"),
    "show flip": (["show", "model", "--flip", "x2y"], "--flip"),
    "unknown task": (["tasks", "addtion"], "Did you mean 'addition'?"),
    "unknown made model": (["models", "make", "nope", "--out", "x"], "no bundled model 'nope'"),
    "make into a file": (["models", "make", "addition-base", "--out", "tiny.toml"], "tiny.toml"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_status_2(mistake: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[mistake]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("selfcorrect: error: ")
    assert words in err
    assert "Traceback" not in err
    assert err.count("selfcorrect: ") == 1, "more than one message"
    assert not (home / "x").exists(), "something was done before the refusal, or left behind"


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_refusal_leaves_what_was_there(command: str, home: Path, tmp_path: Path) -> None:
    arguments = {"train": ["train", "tiny.toml", "--set", "rollout.max_tokens=200"]}
    arguments["eval"] = ["eval", "--model", "model", *TASK, "--max-tokens", "200"]

    def refused(out: Path) -> list[str]:
        assert main([*arguments[command], "--out", str(out)]) == 2
        return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))

    assert refused(tmp_path / "new/and/deep") == []
    (tmp_path / "there").mkdir()
    assert refused(tmp_path / "there") == ["there"]
    assert refused(tmp_path / "there/new") == ["there"]
    (tmp_path / "there/.lock").touch()
    assert refused(tmp_path / "there") == ["there", "there/.lock"]
    with (tmp_path / "there/.lock").open() as held:  # another process begins a run there
        fcntl.flock(held, fcntl.LOCK_EX)
        assert refused(tmp_path / "there") == ["there", "there/.lock"]


def test_an_unexpected_error_asks_for_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr("selfcorrect.config.toml.load_config", broken)
    assert main(["config", "demo"]) == 1
    err = capsys.readouterr().err
    assert err == (
        "selfcorrect: error: unexpected ZeroDivisionError: by zero. This is a bug: run the command again with --debug "
        "and report what it prints.\n"
    )
    assert main(["config", "demo", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
    ids=["Python", "torch"],
)
def test_out_of_memory_says_what_to_lower(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    assert console.guarded(work, debug=False) == 1
    assert "out of memory. Lower rollout.max_num_seqs" in capsys.readouterr().err


# --- train ------------------------------------------------------------------------------------------


def test_train_prints_results_to_stdout_and_progress_to_stderr(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["train", "tiny.toml", "--out", "shown"]) == 0
    out, err = capsys.readouterr()
    results = json.loads((home / "shown" / "summary.json").read_text())["results"]
    for name in ("base", "first", "second"):
        row = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
        assert row.split()[1:3] == [f"{100 * results[name][key]:.1f}" for key in ("acc_t1", "acc_t2")]
    assert "Acc@t1" in out
    assert "Sampled at the training temperature" in out
    assert "Control: draft swap" in out
    assert out.count("\nattempt 2  ") == 3, "three examples"
    assert "selfcorrect show shown" in out
    assert "selfcorrect: first 1/2: r1 " in err
    assert "selfcorrect: second 2/2: r1 " in err
    assert "r1 0." not in out
    assert "\x1b" not in out + err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_train_ends_with_a_report_that_never_fails_the_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = run / "report.html"
    assert page.read_text().startswith("<!doctype html>")
    page.unlink()
    assert main(["train", "--resume", "run", *ALLOWED, "-q", "--no-report"]) == 0
    assert not page.exists() and "report.html" not in capsys.readouterr().out
    assert main(["train", "--resume", "run", *ALLOWED, "-q"]) == 0
    assert page.exists() and str(Path("run/report.html")) in capsys.readouterr().out

    def broken(*_: object) -> None:
        raise ZeroDivisionError("no page today")

    monkeypatch.setattr("selfcorrect.report.write_report", broken)
    assert main(["train", "--resume", "run", *ALLOWED, "-q", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["results"] and "the run finished, but its report could not be written (no page today)" in err


def test_demo_starts_the_built_in_demo_on_the_cpu_and_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfcorrect.config.toml import load_config, to_toml

    done: list[tuple[str, Any, Path]] = []

    def started(config: Any, out: Path, **_: Any) -> None:
        done.append(("train", config, out))
        out.mkdir(parents=True)
        (out / "config.toml").write_text(to_toml(config))
        raise ConfigError("enough")

    def resumed(run: Path, **options: Any) -> None:
        done.append(("resume", options["overrides"], run))
        raise ConfigError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selfcorrect.runs.run.train", started)
    monkeypatch.setattr("selfcorrect.runs.run.resume", resumed)
    assert [main(["demo"]), main(["demo"]), main(["demo", "--out", "x", "--set", "seed=3"])] == [2, 2, 2]
    device = "model.device=cpu"
    assert done == [
        ("train", load_config("demo", [device]), Path("runs/demo")),
        ("resume", [], Path("runs/demo")),
        ("train", load_config("demo", [device, "seed=3"]), Path("x")),
    ]
    assert main(["demo", "--set", "seed=4"]) == 2
    assert len(done) == 3 and "--resume can only lengthen the last stage" in capsys.readouterr().err


def test_a_finished_run_prints_again_and_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = (run / "metrics.jsonl").read_bytes()
    assert main(["train", "--resume", "run", *ALLOWED, "-q", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads((run / "summary.json").read_text())
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_resume_takes_only_a_longer_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "run", *ALLOWED, "--set", "seed=3", "--set", "optimizer.learning_rate=0.5"]) == 2
    told = capsys.readouterr().err
    assert "--resume can only lengthen the last stage" in told
    assert re.search(
        r"These settings differ: seed: \d+ there, 3 requested; optimizer\.learning_rate: \S+ there, 0\.5 req", told
    )


# --- eval -------------------------------------------------------------------------------------------


def test_a_half_finished_evaluation_goes_on_and_ends_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--model", "model", *TASK, "--out", "half", "--max-tokens", "6", "--max-num-seqs", "4", "-q"]
    command += ["--controls"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    folder = home / "half"
    whole = {file.name: file.read_bytes() for file in (folder / "episodes").iterdir()}
    results = json.loads((folder / "summary.json").read_text())["results"]
    # As a kill leaves it: the last part is torn in the middle of a line, and there are no results.
    (folder / "summary.json").unlink()
    (folder / "episodes" / "eval-swap.jsonl").write_bytes(whole["eval-swap.jsonl"][:5000])
    (folder / "episodes" / "eval-resample.jsonl").unlink()
    assert main(command) == 0
    assert {file.name: file.read_bytes() for file in (folder / "episodes").iterdir()} == whole
    assert json.loads((folder / "summary.json").read_text())["results"] == results
    assert capsys.readouterr().out == printed


def test_a_stopped_evaluation_goes_on_at_the_start_of_a_chunk(tmp_path: Path) -> None:
    # Else the batches would be others than without the stop, and in float32 that can change a token.
    from selfcorrect.evaluation.evaluator import whole_chunks

    file = tmp_path / "some.jsonl"
    lines = [json.dumps(record(i, ("7", "1"))) + "\n" for i in range(9)]
    assert whole_chunks(file, 4, 9) == []
    for written, kept in (("".join(lines[:7]) + lines[7][:3], 4), ("".join(lines[:3]), 0), ("".join(lines), 9)):
        file.write_text(written)
        assert [episode.problem_id for episode in whole_chunks(file, 4, 9)] == [f"p{i}" for i in range(kept)]
        assert file.read_text() == "".join(lines[:kept])


def test_a_finished_evaluation_prints_again_and_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--model", "model", *TASK, "--out", "done", "--max-tokens", "6", "--limit", "5"]
    assert main([*command, "--json"]) == 0
    first = capsys.readouterr().out
    summary = json.loads(first)
    assert set(summary) == {"schema", "provenance", "seconds", "results", "seal"}
    assert summary["results"]["model"]["n"] == 5
    monkeypatch.setattr(sys.modules["selfcorrect.rollout.rollouter"], "roll_out", None)  # nothing may be played again
    assert main([*command, "--json"]) == 0
    assert capsys.readouterr().out == first
    for change, named in (
        (["--seed", "1"], "plan.seed: 0 there, 1 requested"),
        (["--turns", "3"], "script.turns"),
        (["--limit", "4"], "problems.count"),
        (["--model", "run"], "model.digest"),
        (["--temperature", "1"], "plan.temperature"),
        (["--sampled"], "plan.sampled_temperature"),
    ):
        assert main([*command, *change]) == 2, change
        err = capsys.readouterr().err
        assert "holds another evaluation" in err
        assert named in err


def test_a_model_that_is_a_run_brings_its_settings(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["eval", "--model", "run:first", "--task", "jsonl", "--out", "of-run", "--limit", "30", "-q", *ALLOWED])
        == 0
    )
    identity = json.loads((home / "of-run" / "eval.json").read_text())
    assert identity["plan"]["max_tokens"] == 6
    assert identity["script"]["revise"] == "Correct any error."
    found = json.loads((home / "of-run" / "summary.json").read_text())["results"]["model"]
    in_run = json.loads((run / "summary.json").read_text())["results"]["first"]
    assert found["acc_t2"] == in_run["acc_t2"], "the same model on the same problems"
    assert main(["eval", "--model", "run:third", "--task", "jsonl", "--out", "x", *ALLOWED]) == 2
    assert "run has no stage 'third'; there are base, first, second" in capsys.readouterr().err


def test_an_evaluation_takes_the_task_of_a_configuration(home: Path) -> None:
    plain = ["eval", "--model", "model", "--limit", "3", "--max-tokens", "6", "-q"]
    assert main([*plain, "--task", "tiny.toml", "--out", "by-config"]) == 0
    assert main([*plain, *TASK, "--out", "by-options"]) == 0
    found, spelt = (json.loads((home / out / "eval.json").read_text()) for out in ("by-config", "by-options"))
    assert found["script"]["revise"] == "Correct any error."
    assert (found["task"], found["problems"]) == (spelt["task"], spelt["problems"])
    assert main([*plain, "--task", "tiny.toml", "--task-option", r"revise=Look:\nagain", "--out", "x"]) == 0
    assert json.loads((home / "x" / "eval.json").read_text())["task_source"]["options"]["revise"] == "Look:\nagain"


def test_an_evaluation_does_not_go_into_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "run", "--task", "jsonl", "--out", "run/extra", *ALLOWED]) == 2
    assert "lies inside the run" in capsys.readouterr().err
    assert not (run / "extra").exists()


def test_the_default_token_limit_is_what_the_context_holds(home: Path) -> None:
    assert main(["eval", "--model", "model", *TASK, "--out", "long", "--limit", "1", "-q"]) == 0
    limit = json.loads((home / "long" / "eval.json").read_text())["plan"]["max_tokens"]
    assert main(["eval", "--model", "model", *TASK, "--out", "x", "--limit", "1", "--max-tokens", str(limit + 1)]) == 2
    assert 100 < limit < 128, "two turns of a context of 256"


class _Hub:
    def __init__(self, error: Exception) -> None:
        self.error = error
        self.timeouts: list[float] = []

    def model_info(self, source: str, *, timeout: float) -> None:
        self.timeouts.append(timeout)
        raise self.error


def test_a_hub_that_cannot_be_asked_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def cached(source: str, *, local_files_only: bool) -> str:
        asked.append((source, local_files_only))
        if source == "somebody/here":
            return str(tmp_path)
        raise LocalEntryNotFoundError("not here")

    hubs: list[_Hub] = []

    def api() -> _Hub:
        hubs.append(_Hub(ConnectionError("no route")))
        return hubs[-1]

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert hub.hub_model("somebody/here") == str(tmp_path)
    with pytest.raises(ModelError, match=r"'somebody/gone': there is no such directory.*\(no route\)"):
        hub.hub_model("somebody/gone")
    assert hubs[-1].timeouts == [hub.TIMEOUT_S], "one question, with a limit"
    assert asked == [("somebody/here", True), ("somebody/gone", True)]
    assert main(["eval", "--model", "somebody/gone", *TASK, "--out", str(tmp_path / "out")]) == 2


# --- the library ------------------------------------------------------------------------------------


def test_evaluate_leaves_a_live_model_and_the_process_as_they_are() -> None:
    lm = tiny_model(0)
    model = lm.model.train()
    model.lm_head.eval()
    before, digest = dict(os.environ), lm.digest()
    rows = [{"prompt": f"{i}+1", "answer": str(i + 1)} for i in range(7)]
    found = selfcorrect.evaluate(
        model,
        rows,
        verifier=lambda text, reference, row: reference in text,
        tokenizer=lm.tokenizer,
        max_tokens=4,
        revise="Correct any error.",
    )
    assert found.results.n == 7, "all rows are evaluated"
    assert [len(episode.turns) for episode in found.episodes] == [2] * 7
    assert (model.training, model.model.training, model.lm_head.training) == (True, True, False)
    assert lm.digest() == digest
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert len(found.to_pandas()) == 1


def test_evaluate_takes_a_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    lm = tiny_model(0)
    rows = datasets.Dataset.from_list([{"prompt": "1+1", "answer": "2"}, {"prompt": "2+1", "answer": "3"}])
    found = selfcorrect.evaluate(lm, rows, verifier=lambda text, reference, row: True, max_tokens=2, turns=1)
    assert (found.results.n, found.results.acc_t2) == (2, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "pass verifier="),
        ({"verifier": lambda *_: True, "limit": 0}, "limit = 0"),
        ({"verifier": lambda *_: True, "split": "tset"}, "split = 'tset'"),
        ({"verifier": lambda *_: True, "dtype": "float8"}, "dtype = 'float8'"),
    ],
)
def test_evaluate_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        selfcorrect.evaluate(object(), [{"prompt": "1", "answer": "1"}], tokenizer=object(), **options)


def test_a_live_model_needs_its_tokenizer() -> None:
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        evaluation_run.evaluate(tiny_model(0).model, "addition", limit=1)


@pytest.mark.slow
def test_public_names_are_there_and_are_the_functions() -> None:
    code = (
        "import sys, selfcorrect\nassert 'torch' not in sys.modules\n"
        "import selfcorrect.training.trainer, selfcorrect.evaluation.evaluator\n"
        "from selfcorrect.runs.run import train\nfrom selfcorrect.evaluation.evaluate import evaluate\n"
        "assert selfcorrect.train is train and selfcorrect.evaluate is evaluate\n"
        "from selfcorrect.training.trainer import Trainer\n"
        "for name in selfcorrect.__all__: getattr(selfcorrect, name)\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = selfcorrect.nonsense


# --- show -------------------------------------------------------------------------------------------


def stored(problem: str, *texts: str, reference: str = "42", **changes: Any) -> dict[str, Any]:
    """An episode as stored; a text that holds the reference is right."""
    turns = [
        {
            "text": text,
            "tokens": [1] * len(text),
            "verdict": "right" if reference in text else "wrong",
            "extracted": text,
            "stop": "end",
            "detail": "",
            "online": True,
        }
        for text in texts
    ]
    made = {"schema": 1, "stage": "eval", "step": 0, "problem_id": problem, "sample": 0, "prompt": "6*7"}
    return {**made, "reference": reference, "difficulty": None, "turns": turns, **changes}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """An unfinished evaluation with two episodes of each kind, and a third one that is being written."""
    records = [
        stored(f"{kind}-{i}", *texts)
        for i in range(2)
        for kind, texts in {"ii": ("1", "2"), "cc": ("42", "42"), "c2i": ("42", "24"), "i2c": ("40", "42")}.items()
    ]
    (tmp_path / "episodes").mkdir()
    (tmp_path / "eval.json").write_text("{}")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "episodes" / "eval-attempts.jsonl").write_text(lines + '{"schema": 1, "sta')
    return tmp_path


@pytest.mark.parametrize("kind", ["i2c", "c2i", "cc", "ii"])
def test_show_filters_by_flip(kind: str, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(traces), "--flip", kind, "--json"]) == 0
    ids = [json.loads(line)["problem_id"] for line in capsys.readouterr().out.splitlines()]
    assert ids == [f"{kind}-0", f"{kind}-1"]


def test_show_limits_and_finds_a_problem(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = traces / "episodes" / "eval-attempts.jsonl"
    before = file.read_bytes()
    assert main(["show", str(traces), "--limit", "3", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["show", str(traces), "--problem", "c2i-1"]) == 0
    out = capsys.readouterr().out
    assert out == (
        "--- eval, step 0, problem c2i-1  regressed\n"
        "problem    6*7\n"
        "reference  42\n"
        "attempt 1  42\n"
        "           correct, answer 42, 2 tokens, stop: end\n"
        "attempt 2  24\n"
        "           ^^\n"
        "           incorrect, answer 24, 2 tokens, stop: end\n"
        "\n"
    )
    assert main(["show", str(traces), "--problem", "none", "--flip", "cc"]) == 0
    assert capsys.readouterr() == ("", f"selfcorrect: no episode in {file} matches --flip cc --problem none.\n")
    assert main(["show", str(traces), "--problem", "c2i-1", "--flip", "cc"]) == 0
    assert "matches --flip cc --problem c2i-1; the flips of this problem are c2i (1).\n" in capsys.readouterr().err
    assert file.read_bytes() == before, "looking at a running evaluation must not touch it"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("24", ["c2i-0", "c2i-1"]),  # a second attempt
        ("6*7", [f"{kind}-{i}" for i in range(2) for kind in ("ii", "cc", "c2i", "i2c")]),  # every problem
        ("SEVEN", ["late"]),  # an extracted answer, in another case
        ("6.7", []),  # no pattern
    ],
)
def test_show_finds_a_text(text: str, ids: list[str], traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = traces / "episodes" / "eval-attempts.jsonl"
    late = stored("late", "1", "2", prompt="?")
    late["turns"][1]["extracted"] = "Seven"
    file.write_text(file.read_text().rpartition("\n")[0] + "\n" + json.dumps(late) + "\n")
    assert main(["show", str(traces), "--grep", text, "--limit", "20", "--json"]) == 0
    found = capsys.readouterr()
    assert [json.loads(line)["problem_id"] for line in found.out.splitlines()] == ids
    assert ids or f"no episode in {file} matches --grep {text}.\n" in found.err


def test_show_names_the_flips_among_what_has_a_text(traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(traces), "--grep", "24", "--flip", "cc"]) == 0
    assert "matches --flip cc --grep 24; the flips with this text are c2i (2).\n" in capsys.readouterr().err


def test_show_colours_only_where_wanted(
    traces: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["show", str(traces), "--flip", "i2c"]) == 0
    assert "\x1b[32mcorrect" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["show", str(traces), "--flip", "i2c"]) == 0
    assert "\x1b[3" not in capsys.readouterr().out


def test_show_of_a_run_takes_the_last_stage_and_its_parts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stages(*options: str) -> set[str]:
        assert main(["show", "run", "--json", *options]) == 0
        return {json.loads(line)["stage"] for line in capsys.readouterr().out.splitlines()}

    assert stages() == {"second"}
    assert stages("--stage", "base", "--part", "swap") == {"base"}
    assert main(["show", "run", "--stage", "third"]) == 2
    assert "no stage 'third'" in capsys.readouterr().err
    assert main(["show", "run", "--part", "resample", "--flip", "i2c"]) == 2
    assert "1 attempt(s) has no flip" in capsys.readouterr().err


def test_a_damaged_line_is_named(traces: Path) -> None:
    file = traces / "episodes" / "eval-attempts.jsonl"
    file.write_text(json.dumps(record(0, ("7", "1"))) + "\nnonsense\n")
    with pytest.raises(DataError, match=r"eval-attempts.jsonl, line 2"):
        list(read_episodes(file))
    file.write_text('{"schema": 2, "turns": []}\n')
    with pytest.raises(DataError, match="line 1: an episode has schema 2"):
        list(read_episodes(file))


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("0123", "0153", "             ^"),
        ("42", "42", "           = the same text"),
        ("12", "123", "change     12{+3+}"),
        ("the answer is 7", "the answer is now 8", "change     the answer is {+now +}[-7-]{+8+}"),
        ("a", "a\nb", "change     a{+\n           b+}"),
        ("a" * 300_000, "b" * 300_001, "           (too long to mark what changed)"),
    ],
)
def test_differences(before: str, after: str, shown: str) -> None:
    assert show.difference(before, after).plain == shown + "\n"


def test_what_a_model_writes_does_not_steer_the_terminal() -> None:
    text = show.episode_text(
        StoredEpisode.from_json(stored("p\x1b[2J", "\x1b]0;title\x07 4\r2", "42", prompt="\x9b31m"))
    ).plain
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert r"\x1b]0;title\x07 4\r2" in text


@pytest.mark.parametrize(
    ("kinds", "hint"),
    [
        (("ii", "cc", "c2i", "i2c"), " --flip i2c"),
        (("ii", "c2i"), " --flip c2i"),
        (("ii", "cc"), ""),
        (("one attempt",), ""),
    ],
)
def test_the_hint_to_more_episodes_names_a_command_that_shows_some(
    kinds: tuple[str, ...], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"ii": ("1", "2"), "cc": ("42", "42"), "c2i": ("42", "24"), "i2c": ("40", "42"), "one attempt": ("1",)}
    records = [stored(kind, *texts[kind]) for kind in kinds]
    place = tmp_path / "my runs"
    (place / "episodes").mkdir(parents=True)
    (place / "eval.json").write_text("{}")
    (place / "episodes/eval-attempts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = show.show_command(place, map(StoredEpisode.from_json, records))
    assert command == f"selfcorrect show '{place}'{hint}"
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.count("--- ") == (1 if hint else len(kinds))


def test_a_flip_that_is_not_there_is_answered_with_those_that_are(
    traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = traces / "episodes" / "eval-attempts.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"i2c' not in line))
    assert main(["show", str(traces), "--flip", "i2c"]) == 0
    assert capsys.readouterr().err.endswith("matches --flip i2c; the flips are c2i (2), cc (2), ii (2).\n")


def test_examples_start_with_a_correction() -> None:
    texts = {"a": ("1", "2"), "b": ("42", "42"), "c": ("1", "2"), "d": ("1", "42")}
    episodes = [StoredEpisode.from_json(stored(problem, *said)) for problem, said in texts.items()]
    assert [episode.problem_id for episode in show.examples(episodes)] == ["d", "b", "a"]
    one = StoredEpisode.from_json(stored("a", "1"))
    assert show.examples([one]) == [one]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], pytest.param(["--json"], marks=pytest.mark.nightly)], ids=["text", "json"])
def test_a_closed_pipe_is_silent(extra: list[str], traces: Path) -> None:
    file = traces / "episodes" / "eval-attempts.jsonl"
    file.write_text(json.dumps(stored("p", "40" * 200, "42")) * 1 + "\n")
    file.write_text(file.read_text() * 2000)  # more than a pipe holds
    command = [sys.executable, "-m", "selfcorrect", "show", str(traces), "--limit", "2000", *extra]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(300) == 0


# --- signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_work_ends_it_at_once(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        with console.Interrupts():
            os.kill(os.getpid(), number)
            time.sleep(20)
            went_on.append(True)
        return 0

    went_on: list[bool] = []
    assert console.guarded(work, debug=False) == 128 + number
    assert not went_on
    assert "stopped before the work began" in capsys.readouterr().err


def test_a_second_signal_quits_at_once() -> None:
    code = (
        "import os, signal\nfrom selfcorrect.cli.console import Interrupts\n"
        "with Interrupts() as interrupts:\n"
        "    assert interrupts.should_stop() is None\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert interrupts.should_stop() == signal.SIGTERM\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here')\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (130, "")


@pytest.mark.slow
def test_a_signal_during_training_saves_and_says_how_to_resume(home: Path) -> None:
    command = ["train", "tiny.toml", "--out", "stopped", "--set", "stages.first.steps=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "selfcorrect", *command],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("selfcorrect: first 1/100000"):
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "Resume with: selfcorrect train --resume stopped" in err
    assert "Traceback" not in err
    assert out == ""
    steps = len((home / "stopped" / "metrics.jsonl").read_text().splitlines())
    assert (home / "stopped" / "checkpoints" / f"first-{steps:06d}" / "manifest.json").is_file()


# --- tables and progress ----------------------------------------------------------------------------


def results(**changes: Any) -> dict[str, Any]:
    figures = {"acc_t1": 0.5, "acc_t2": 0.75, "delta": 0.25, "i_to_c": 0.3, "c_to_i": 0.05}
    intervals = {f"{key}_ci95": [value - 0.01, value + 0.015] for key, value in figures.items()}
    turn = {"accuracy": 0.5, "truncated": 0.0, "no_answer": 0.0, "timed_out": 0.0, "verifier_failed": 0.0}
    return {"n": 200, "samples": 1, **figures, **intervals, "ci_method": "M", "turns": [turn, turn], **changes}


def test_the_papers_table() -> None:
    table = report.paper_table({"base": results(), "score": results(delta=-0.1)}, "Greedy decoding")
    assert table == (
        "Greedy decoding, n = 200. Values are % of problems, with 95% confidence intervals below.\n"
        "               Acc@t1        Acc@t2           delta          i->c        c->i\n"
        "  base           50.0          75.0           +25.0          30.0         5.0\n"
        "         [49.0, 51.5]  [74.0, 76.5]  [+24.0, +26.5]  [29.0, 31.5]  [4.0, 6.5]\n"
        "  score          50.0          75.0           -10.0          30.0         5.0\n"
        "         [49.0, 51.5]  [74.0, 76.5]  [+24.0, +26.5]  [29.0, 31.5]  [4.0, 6.5]\n"
        "Intervals: M"
    )


def test_tables_name_samples_further_turns_and_trouble() -> None:
    turn = results()["turns"][0]
    cut = {"truncated": 0.0002, "refused": 0.05, "timed_out": 0.125}
    turns = [turn, {**turn, "accuracy": 0.6, **cut}, {**turn, "accuracy": 0.7, "accuracy_ci95": [0.65, 0.75]}]
    table = report.paper_table({"base": results(samples=4, turns=turns)}, "T = 1")
    assert "n = 200 problems x 4 samples" in table
    heads, figures, intervals, *_ = (line.split() for line in table.splitlines()[1:])
    assert heads == ["Acc@t1", "Acc@t2", "Acc@t3", "delta", "i->c", "c->i"]
    assert figures == ["base", "50.0", "75.0", "70.0", "+25.0", "30.0", "5.0"]
    assert intervals[4:6] == ["[65.0,", "75.0]"]
    trouble = "<0.1% of t2 truncated at the token limit, 5.0% of t2 rejected by the sandbox, 12.5% of t2 timed out"
    assert f"base: {trouble} in the verifier" in table
    single = dict.fromkeys(("acc_t2", "delta", "i_to_c", "c_to_i"))
    assert "delta" not in report.paper_table({"base": results(**single)}, "one turn")


def test_controls_stand_in_their_own_tables() -> None:
    swap = {"acc_t2": 0.75, "acc_t2_swapped": 0.6, "difference": -0.15, "difference_ci95": [-0.2, -0.1]}
    table = report.controls_table({"base": results(controls={"draft_swap": swap}), "bare": results()})
    assert table.splitlines()[2].split() == ["base", "75.0", "60.0", "-15.0", "[-20.0,", "-10.0]"]
    assert table.endswith("as good as with its own if the model does not read it.")
    assert "resample" not in table
    assert report.controls_table({"bare": results()}) == ""


METRICS = {"stage": "score", "r1": 0.25, "r2": 0.5, "delta": 0.25, "kl_base_t1": 0.126, "kl_base_t2": -0.001}


def test_the_figures_of_a_step() -> None:
    assert progress.step_text(METRICS) == "r1 0.250  r2 0.500  delta +0.250  kl 0.13 0.00"


@pytest.mark.parametrize(("verbose", "steps"), [(False, [1, 20, 40, 45]), (True, list(range(1, 46)))])
def test_plain_lines_come_every_so_often(verbose: bool, steps: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.Lines({"score": 45}, verbose=verbose)
    for step in range(1, 46):
        lines.on_step(SimpleNamespace(metrics={**METRICS, "step": step}))
    found = [line.split(":")[1].split()[1] for line in capsys.readouterr().err.splitlines()]
    assert found == [f"{step}/45" for step in steps]


def test_a_line_has_the_pace_and_a_slow_step_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines({"stage1": 5, "score": 100})
    for step in range(1, 4):
        now[0] += 36
        phases = {"generate": 20.0, "learn": 10.0}
        lines.on_step(SimpleNamespace(metrics={**METRICS, "stage": "stage1", "step": step}, seconds=phases))
    first, third = capsys.readouterr().err.splitlines()
    assert first.endswith("30 s/step, 52 min left to train"), "104 steps at the 30 s of its phases"
    assert " stage1 3/5: " in third, "72 s after the first line"
    assert third.endswith("36 s/step, 61 min left to train"), "102 steps at 36 s, with what is between them"


def test_bars_show_a_stage_and_then_its_result() -> None:
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    bars = progress.Bars(screen, {"score": 45})
    turn = SimpleNamespace(accuracy=0.5)
    with bars.bars:
        bars.on_progress("eval-score, attempts", 3, 9)
        bars.on_step(SimpleNamespace(metrics={**METRICS, "step": 7}))
        bars.bars.refresh()
        bars.on_eval("score", SimpleNamespace(results=SimpleNamespace(turns=[turn], n=9)))
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert "7/45" in shown
    assert "delta +0.250" in shown
    assert "3/9" in shown
    assert "score: Acc@t1 50.0%, n = 9" in shown
    assert [task.description for task in bars.bars.tasks] == ["score"]


def test_warnings_go_the_same_way_and_quiet_still_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("selfcorrect")
    before = (list(log.handlers), log.level, log.propagate)
    with progress.reporting({}, quiet=True) as reporter:
        reporter.on_progress("something", 1, 2)
        log.warning("beware")
        log.info("hello")
    assert capsys.readouterr().err == "selfcorrect: warning: beware\n"
    assert (log.handlers, log.level, log.propagate) == before


# --- tasks, models, config --------------------------------------------------------------------------


@pytest.mark.slow
def test_tasks_lists_every_family_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    entries = {entry["name"]: entry for entry in map(json.loads, capsys.readouterr().out.splitlines())}
    assert entries["addition"]["example"]["reference"].isdigit()
    assert entries["addition"]["revise"] == "Correct any error. {prompt}"
    assert "verifier=module:function" in entries["jsonl"]["note"]
    pytest.importorskip("reasoning_gym")
    gym = entries["reasoning_gym:chain_sum"]
    assert gym["example"]["prompt"] in gym["first"]
    assert len(gym["variants"]) > 100


def test_tasks_shows_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "addition"]) == 0
    out = capsys.readouterr().out
    assert "second turn | Correct any error." in out
    assert "reasoning_gym" not in out


def test_config_prints_what_train_would_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "demo", "--set", "optimizer.learning_rate=0.5", "--set", "task.name=x"]) == 0
    out = capsys.readouterr().out
    (tmp_path / "again.toml").write_text(out)
    assert main(["config", str(tmp_path / "again.toml"), "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["optimizer"]["learning_rate"], settings["task"]["name"]) == (0.5, "x")
    assert main(["config", "--list"]) == 0
    assert "demo" in capsys.readouterr().out.splitlines()


def test_models_are_listed_made_and_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(seed: int, recipe: Any, *, on_step: Any) -> Any:
        made.append(seed)
        on_step(1, 1, 0.0)
        return tiny_model(seed)

    monkeypatch.setattr("selfcorrect.zoo.registry.make_addition_base", make)
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path / "cache"))
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("addition-base  ")
    for _ in range(2):
        assert main(["models", "path", "addition-base", "--seed", "3"]) == 0
        path = Path(capsys.readouterr().out.strip())
        assert (path / "config.json").is_file()
    assert main(["models", "make", "addition-base", "--out", str(tmp_path / "own"), "-q"]) == 0
    assert (tmp_path / "own" / "config.json").is_file()
    assert made == [3, 0], "the second look finds it in the cache"
    shutil.rmtree(tmp_path / "cache")
