"""A directory from someone else: no code of its choice runs, and nothing is written outside it (docs/dev/security.md)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SHORTER
from support.models import tiny_model
from support.stored_runs import record, write_evaluation, write_run

from selfcorrect.cli.app import main
from selfcorrect.config.toml import load_config, to_toml
from selfcorrect.errors import ConsentError, DataError, RunDirectoryError
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.runs.run import resume
from selfcorrect.storage import consent
from selfcorrect.storage.consent import code_of_config, code_of_task
from selfcorrect.storage.evaluation_dir import EvaluationDirectory
from selfcorrect.storage.files import append_lines, claim, locked, truncate, write_atomically
from selfcorrect.storage.run_dir import RunDirectory

PAYLOAD = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
def check(text, reference, row):
    return True
advantages = open_mine = check
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the sender's module and problems."""
    (tmp_path / "recv").mkdir()
    (tmp_path / "recv/__init__.py").touch()
    (tmp_path / "recv/payload.py").write_text(PAYLOAD)
    (tmp_path / "problems.jsonl").write_text(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def evaluation(path: Path, name: str, options: dict[str, Any]) -> Path:
    write_evaluation(path, [record(0, ("7", "7"))], digest="d")
    identity = json.loads((path / "eval.json").read_text())
    identity["task_source"] = {"name": name, "options": options}
    (path / "eval.json").write_text(json.dumps(identity))
    return path


def stored_run(path: Path, *changes: str) -> Path:
    path.mkdir()
    (path / "config.toml").write_text(to_toml(load_config("demo", [*SHORTER, *changes])))
    return path


CODE = {
    "verifier": ["task.name=jsonl", "task.options={test_path='problems.jsonl', verifier='recv.payload:check'}"],
    "dataset": ["task.name=dataset", "task.options={test_path='problems.jsonl', verifier='recv.payload:check'}"],
    "method": ["stages.score.method=recv.payload:advantages"],
    "engine": ["rollout.engine=recv.payload:open_mine"],
    "tracker": ['log.trackers=["tensorboard", "recv.payload:open_mine"]'],
    "remote": ["model.trust_remote_code=true"],
    "sandbox": ["task.name=humaneval", "task.options={sandbox='process'}"],
    "vllm": ["rollout.engine=vllm", "vllm.options={worker_cls='recv.payload.W'}"],
}
NAMES = {
    "verifier": "recv.payload:check",
    "dataset": "recv.payload:check",
    "method": "recv.payload:advantages",
    "engine": "recv.payload:open_mine",
    "tracker": "recv.payload:open_mine",
    "remote": "trust_remote_code",
    "sandbox": "sandbox=process",
    "vllm": "vllm.worker_cls",
}


@pytest.mark.parametrize("kind", CODE)
def test_a_received_run_is_not_resumed_with_code_that_nobody_allowed(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored_run(here / "run", *CODE[kind])
    assert main(["train", "--resume", "run", "--no-report"]) == 2
    message = capsys.readouterr().err
    assert "run names code to run" in message and f"--allow-code {NAMES[kind]}" in message
    assert not (here / "recv/RAN").exists()
    with pytest.raises(ConsentError):
        resume(path, allow_code=["other:name"])
    assert not (here / "recv/RAN").exists()


def test_a_name_is_allowed_by_a_flag_or_by_the_same_setting(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, how in enumerate(
        ({"allow_code": ["recv.payload:check"]}, {"overrides": ["task.options.verifier=recv.payload:check"]})
    ):
        path = stored_run(here / f"run{number}", *CODE["verifier"], "stages={}")
        with pytest.raises(DataError, match="no train problems"):  # the task was made
            resume(path, **how)  # type: ignore[arg-type]
        assert (here / "recv/RAN").exists()
    with pytest.raises(ConsentError):
        resume(stored_run(here / "other", *CODE["verifier"]), overrides=["task.options.test_path=problems.jsonl"])


def test_a_live_task_replaces_what_a_run_names(here: Path) -> None:
    from selfcorrect.tasks.rows import RowsTask

    task = RowsTask(None, lambda text, reference, row: True, test_rows=[{"prompt": "1", "answer": "1"}])
    with pytest.raises(DataError, match="no train problems"):
        resume(stored_run(here / "run", *CODE["verifier"]), task=task)
    assert not (here / "recv/RAN").exists()


@pytest.mark.parametrize("options", [["--dry-run"], []], ids=["dry run", "for good"])
@pytest.mark.parametrize("verifier", ["recv.payload:check", "timeit:timeit", "os:system"])
def test_a_received_evaluation_is_not_rescored_by_code_that_nobody_allowed(
    verifier: str, options: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluation(here / "e", "jsonl", {"test_path": "problems.jsonl", "verifier": verifier})
    before = {file: file.read_bytes() for file in path.rglob("*.json*")}
    assert main(["rescore", "e", *options]) == 2
    assert f"task.options.verifier = {verifier!r}: it would import it as the verifier" in capsys.readouterr().err
    assert not (here / "recv/RAN").exists()
    assert {file: file.read_bytes() for file in path.rglob("*.json*")} == before
    assert main(["rescore", "e", "--task-option", "verifier=recv.payload:check"]) == 2
    assert "makes other problems" in capsys.readouterr().err, "the option given on the command line is allowed"


def test_stored_programs_do_not_run_without_a_sandbox(here: Path) -> None:
    path = evaluation(here / "e", "humaneval", {"sandbox": "process"})
    with pytest.raises(ConsentError, match="run the stored programs without a sandbox"):
        rescore(path)


def test_a_run_whose_model_is_evaluated_brings_no_code(here: Path) -> None:
    path = stored_run(here / "run", *CODE["verifier"])
    shutil.copytree(_checkpoint(here), path / "checkpoints/score")
    with pytest.raises(ConsentError, match=r"recv\.payload:check"):
        evaluate(str(path), "jsonl")
    assert not (here / "recv/RAN").exists()
    given = evaluate(str(path), "jsonl", task_options={"verifier": "recv.payload:check"}, turns=1, max_tokens=2)
    assert given.results.acc_t1 in (0.0, 1.0) and (here / "recv/RAN").exists()


def test_digests_are_compared_before_anything_is_imported(here: Path) -> None:
    path = stored_run(here / "run", *CODE["verifier"])
    shutil.copytree(_checkpoint(here), path / "checkpoints/score")
    shutil.copytree(_checkpoint(here), path / "checkpoints/base")
    for name in ("score", "base"):
        weights = path / "checkpoints" / name / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    allowed = {"allow_code": ["recv.payload:check"]}
    with pytest.raises(Exception, match=r"model\.safetensors is missing or differs"):
        evaluate(str(path), "jsonl", **allowed)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"model\.safetensors is missing or differs"):
        resume(path, **allowed)  # type: ignore[arg-type]
    assert not (here / "recv/RAN").exists()


def _checkpoint(here: Path) -> Path:
    """A sealed checkpoint."""
    run = RunDirectory.create(here / "made", "") if not (here / "made").exists() else None
    if run is not None:
        run.save_checkpoint("score", tiny_model(1, dtype=torch.float32).save)
        run.close()
    return here / "made/checkpoints/score"


def test_code_of_other_packages_is_named_and_our_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = {
        "selfcorrect.tasks": [
            EntryPoint("theirs", "other.package:Task", "selfcorrect.tasks"),
            EntryPoint("addition", "selfcorrect.tasks.addition:AdditionTask", "selfcorrect.tasks"),
            EntryPoint("dataset", "selfcorrect.tasks.dataset.task:DatasetTask", "selfcorrect.tasks"),
        ],
        "selfcorrect.methods": [EntryPoint("mine", "other.package:method", "selfcorrect.methods")],
        "selfcorrect.engines": [EntryPoint("fast", "other.package:open", "selfcorrect.engines")],
        "selfcorrect.trackers": [EntryPoint("theirs", "other.package:Tracker", "selfcorrect.trackers")],
    }
    monkeypatch.setattr(consent, "entry_points", lambda group: points[group])
    monkeypatch.setattr("selfcorrect.config.plugins.entry_points", lambda group: points[group])
    assert [name for _, name, _ in code_of_task("theirs:variant", {})] == ["theirs"]
    assert code_of_task("addition", {"digits": 3}) == []
    assert code_of_task("dataset", {"path": "x.csv", "verifier": "choice"}) == []
    for verifier in ("other:check", ["other:check"], 7):
        assert [name for _, name, _ in code_of_task("dataset", {"verifier": verifier})] == [str(verifier)]
    assert [name for _, name, _ in code_of_task("theirs", {"verifier": "check"})] == ["theirs", "check"]
    config = load_config("demo", ["stages.score.method=mine", "rollout.engine=fast"])
    assert [name for _, name, _ in code_of_config(config)] == ["mine", "fast"]
    config = load_config("demo", ['log.trackers=["wandb", "theirs", "mlflow", "trackio"]'])
    assert [name for _, name, _ in code_of_config(config)] == ["theirs"]


def test_what_ships_with_the_package_needs_no_consent() -> None:
    from selfcorrect.config.toml import builtin_configs

    assert [code for name in builtin_configs() for code in code_of_config(load_config(name))] == []


def test_reading_runs_no_code(here: Path) -> None:
    write_run(here / "r/run", seed=0, models={"score": [record(0, ("6", "7"))]}, changes=CODE["method"])
    evaluation(here / "r/e", "jsonl", {"verifier": "recv.payload:check"})
    for command in (
        ["report", "r", "--out", "page.html"],
        ["show", "r/run"],
        ["show", "r/e"],
        ["compare", "r/e", "r/e"],
    ):
        assert main(command) == 0, command
    assert not (here / "recv/RAN").exists()


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("precious\n" * 100)
    return folder


LOGS = ("metrics.jsonl", "timings.jsonl", "episodes/train-score.jsonl")
RUN_FILES = ("config.toml", *LOGS, "summary.json", "tracking.json", ".lock")
RUN_FOLDERS = (
    "episodes",
    "checkpoints",
    "tensorboard",
    "checkpoints/.writing-base",
    "checkpoints/base",
    "episodes/more",
)


@pytest.mark.parametrize("name", [*RUN_FILES, *RUN_FOLDERS])
def test_a_link_in_a_run_is_not_followed(name: str, tmp_path: Path, outside: Path) -> None:
    path = stored_run(tmp_path / "run")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).unlink(missing_ok=True)
    target = outside if name in RUN_FOLDERS else outside / "file"
    if name == "config.toml":
        target = outside / "config.toml"
        target.write_text(to_toml(load_config("demo", SHORTER)))
    (path / name).symlink_to(target)
    before = {file: file.read_bytes() for file in outside.rglob("*")}
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        resume(path)
    assert {file: file.read_bytes() for file in outside.rglob("*")} == before


@pytest.mark.parametrize("name", [".lock", "summary.json", "eval.json", "episodes", "episodes/eval-attempts.jsonl"])
def test_a_link_in_an_evaluation_is_not_followed(name: str, tmp_path: Path, outside: Path) -> None:
    path = evaluation(tmp_path / "e", "addition", {})
    real = path / name
    if real.exists():
        real.rename(outside / "moved")
    target = outside / "moved" if (outside / "moved").exists() else outside / "file"
    real.symlink_to(target)
    before = {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()}
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        rescore(path)
    assert {file: file.read_bytes() for file in outside.rglob("*") if file.is_file()} == before


def test_an_unfinished_evaluation_with_a_pipe_is_rejected_and_not_waited_for(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "e", "addition", {})
    os.mkfifo(path / "episodes/eval-swap.jsonl")
    with pytest.raises(RunDirectoryError, match="is a pipe"), EvaluationDirectory.open(path):
        pass
    with pytest.raises(DataError, match="is a pipe"):
        list(
            __import__("selfcorrect.storage.episode_log", fromlist=["x"]).read_episodes(
                path / "episodes/eval-swap.jsonl"
            )
        )


def test_a_temporary_file_has_a_name_that_nobody_can_prepare(tmp_path: Path, outside: Path) -> None:
    for name in (".summary.json.new", ".eval.json.new", ".page.html.new"):
        (tmp_path / name).symlink_to(outside / "file")
    for name in ("summary.json", "eval.json", "page.html"):
        write_atomically(tmp_path / name, "new")
    assert (outside / "file").read_text().startswith("precious")
    (tmp_path / "link").symlink_to(outside / "file")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()
    assert (outside / "file").read_text().startswith("precious")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first is half-way."""
    real = os.fsync
    inner = iter([True])

    def fsync(handle: int) -> None:
        if next(inner, False):
            write_atomically(tmp_path / "page.html", "second")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "page.html", "first")
    assert (tmp_path / "page.html").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_file_with_several_names_gets_a_copy_before_it_changes(tmp_path: Path, outside: Path) -> None:
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.toml").touch()
    os.link(outside / "file", path / "metrics.jsonl")
    os.link(outside / "file", path / "checkpoints/weights")
    claim(path)
    truncate(path / "metrics.jsonl", 3)
    append_lines(path / "metrics.jsonl", [{"a": 1}])
    assert (path / "metrics.jsonl").read_text() == 'pre{"a":1}\n'
    assert (outside / "file").read_text() == "precious\n" * 100
    assert (path / "checkpoints/weights").stat().st_nlink == 2, "weights are shared, because nothing changes them"


@pytest.mark.parametrize(
    "write", [lambda p: append_lines(p, [{}]), lambda p: truncate(p, 0), lambda p: locked(p.parent)]
)
def test_no_write_follows_a_link(write: Any, tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".lock").symlink_to(outside / "file")
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        write(tmp_path / ".lock")
    assert (outside / "file").read_text() == "precious\n" * 100


def test_what_a_killed_writer_left_is_removed_and_a_users_own_link_stays(tmp_path: Path) -> None:
    path = stored_run(tmp_path / "run")
    (path / ".summary.json.0123456789abcdef.new").touch()
    (path / "notes").symlink_to(tmp_path)
    RunDirectory.open(path).close()
    assert not (path / ".summary.json.0123456789abcdef.new").exists() and (path / "notes").is_symlink()


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    path = stored_run(tmp_path / "run")
    (tmp_path / "latest").symlink_to(path)
    RunDirectory.open(tmp_path / "latest").close()


def test_a_row_of_a_comparison_may_not_lead_out_of_it(tmp_path: Path, outside: Path) -> None:
    from selfcorrect.storage.comparison_dir import write_card

    (tmp_path / "all").mkdir()
    (tmp_path / "all/score").symlink_to(outside)
    with pytest.raises(RunDirectoryError, match="symbolic link"):
        write_card(tmp_path / "all/score", {"key": "score"})
    assert [file.name for file in outside.iterdir()] == ["file"]
