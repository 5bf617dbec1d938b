"""Test that the commands of the page repeat what it shows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from selfcorrect.__main__ import main
from selfcorrect.report.commands import Commands, _task_options
from selfcorrect.report.sources import read_sources

OPTIONS = (
    "test_path=rows.csv", "prompt_field=Question", "reference_field=The answer", "verifier=number", "shares=[25, 25, 50]",
    r"first={prompt}\nAnswer:",
)  # fmt: skip


def test_an_evaluation_of_ones_own_file_is_repeated(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("Question,The answer\n" + "".join(f"{i}+{i},{2 * i}\n" for i in range(3)))
    given = [word for option in OPTIONS for word in ("--task-option", option)]
    given += [
        "--set",
        r'revise=Look "again".\nNow:',
        "--stop",
        r"a\nb",
        "--limit",
        "2",
        "--max-tokens",
        "3",
        "--device",
        "cpu",
    ]
    assert main(["eval", "--model", str(model_folder), "--task", "dataset", *given, "--out", "evals/one"]) == 0
    evaluations = read_sources([Path("evals")])[1]
    command = shlex.split(Commands([], evaluations).of_evaluation(evaluations[0]))
    assert main(command[1:]) == 0
    one, again = (json.loads(Path(place, "one/eval.json").read_text()) for place in ("evals", "again"))
    assert again == one and one["script"]["revise"] == 'Look "again".\nNow:' and one["plan"]["stop"] == ["a\nb"]


def test_code_that_a_received_evaluation_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    identity = {
        "task": {"name": "x"},
        "task_source": {"name": "theirs:task", "options": {}},
        "script": {"revise": "Again."},
    }
    assert _task_options(identity) == ["--task", "theirs:task", "--set", 'revise="Again."']
