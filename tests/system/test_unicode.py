"""Text that UTF-8 cannot hold: names of files in other encodings, settings, problems, and what a verifier says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chat_server import says, serving
from support.crash import SHORTER
from support.models import tiny_model

from selfcorrect.cli.app import main
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.evaluate import evaluate

BYTES = os.fsdecode(b"caf\xe9")
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
ADDITION = ["--task", "addition", "--limit", "2", "--max-tokens", "3", "-q"]
OUT = ["--out", "e"]
VERIFIER = """
class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("\\udfff")

def check(text, reference, row):
    if len(text) % 2:
        raise ValueError("half of a character: \\ud800")
    raise Unspeakable
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, problems, a verifier, and a directory whose name is in Latin-1."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny_model(1, dtype=torch.float32, **SMALL).save(tmp_path / "tiny")
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(120)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "unspeakable.py").write_text(VERIFIER)
    try:
        (tmp_path / BYTES).mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return tmp_path


def train(out: str, *changes: str) -> list[str]:
    every = [*SHORTER, "log.tensorboard=false", "model.source=tiny", *changes]
    return ["train", "demo", "--out", out, "-q", "--no-report", *(word for s in every for word in ("--set", s))]


REFUSED = {
    "the run": (train(f"{BYTES}/run"), "a directory whose name is not UTF-8"),
    "the model of a run": (train("run", f"model.source={BYTES}/tiny"), "model.source"),
    "the data": (
        train("run", "task.name=jsonl", f"task.options.path={BYTES}/p.jsonl"),
        "task.options.path",
    ),
    "an instruction": (train("run", f"task.revise=Again {BYTES}."), "task.revise"),
    "the model": (["eval", "--model", f"{BYTES}/tiny", *ADDITION, *OUT], "this name is not UTF-8"),
    "a setting": (["eval", "--model", "tiny", "--set", f"revise={BYTES}", *ADDITION, *OUT], "revise"),
    "a list": (["eval", "--model", "tiny", "--stop", BYTES, *ADDITION, *OUT], "stop"),
    "an option": (
        ["eval", "--model", "tiny", "--task-option", f"test_path={BYTES}", *ADDITION, *OUT],
        "task_options.test_path",
    ),
    "the server": (["eval", "--model", "m", "--base-url", f"http://localhost/{BYTES}", *ADDITION, *OUT], "base_url"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_file_can_hold_is_refused_before_any_work(
    what: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("tiny", f"{BYTES}/tiny")
    shutil.copy("p.jsonl", BYTES)
    before = sorted(here.rglob("*"))
    command, words = REFUSED[what]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert words in message and "caf\\udce9" in message and "This is a bug" not in message
    assert sorted(here.rglob("*")) == before, "nothing was written"


def test_a_run_below_a_directory_of_bytes_is_refused_even_by_a_relative_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train("run")) == 0
    shutil.move("run", BYTES)
    monkeypatch.chdir(BYTES)
    assert main(train("other", f"model.source={here}/tiny")) == 2
    assert main(["train", "--resume", "run"]) == 2
    assert capsys.readouterr().err.count("a directory whose name is not UTF-8") == 2
    assert not Path("other").exists()


def test_evaluations_and_pages_may_lie_in_a_directory_of_bytes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "tiny", "--out", f"{BYTES}/e", *ADDITION]) == 0
    assert main(train("run")) == 0
    shutil.move("run", BYTES)
    for command in (
        ["show", f"{BYTES}/e"],
        ["show", f"{BYTES}/run"],
        ["report", BYTES, "--out", f"{BYTES}/page.html", "--tables", "text"],
        ["compare", f"{BYTES}/e", f"{BYTES}/e"],
        ["rescore", f"{BYTES}/e"],
        ["export", f"{BYTES}/e", "--out", f"{BYTES}/log.json"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    for command in (["show", f"{BYTES}/none"], ["report", f"{BYTES}/none"], ["compare", BYTES, BYTES]):
        assert main(command) == 2, command
    out, err = capsys.readouterr()
    assert "caf\\udce9" in err and "This is a bug" not in err
    assert (out + err).encode()


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_a_problem_that_no_model_can_read_is_refused(field: str, here: Path) -> None:
    row: dict[str, Any] = {"prompt": "1+1=", "answer": "2", field: "7 \ud800"}
    with pytest.raises(DataError, match=f"field '{field}' = .* is not Unicode text"):
        evaluate("tiny", [row], verifier=lambda text, reference, row: True)


def test_a_servers_model_has_a_name_of_text() -> None:
    with serving(lambda body: says("7")) as server, pytest.raises(ConfigError, match="is not Unicode text"):
        evaluate(BYTES, "addition", base_url=server.url, limit=1)


@pytest.mark.slow
def test_a_verifier_that_says_halves_of_characters_neither_ends_an_evaluation_nor_a_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["path=p.jsonl", "verifier=unspeakable:check"]
    options = [word for option in given for word in ("--task-option", option)]
    command = ["eval", "--model", "tiny", "--task", "jsonl", *options, "--max-tokens", "4", "--limit", "5", *OUT, "-q"]
    assert main(command) == 0
    task = ["task.options={path='p.jsonl', verifier='unspeakable:check'}"]
    assert (
        main(
            train(
                "run", "task.name=jsonl", "task.failure_limit=1", "stages.stage1.steps=1", "stages.score.steps=1", *task
            )
        )
        == 0
    )
    assert main(["train", "--resume", "run", "-q", "--no-report", "--allow-code", "unspeakable:check"]) == 0
    assert main(["rescore", "e", "--allow-code", "unspeakable:check"]) == 0
    capsys.readouterr()
    for path in ("e", "run"):
        assert main(["show", path, "--limit", "50"]) == 0
        assert main(["report", path, "--out", f"{path}.html"]) == 0
    out = capsys.readouterr().out
    assert "ValueError: half of a character: \\ud800" in out or "RuntimeError: \\udfff" in out
    assert out.encode()
