"""Test a user's task, engine, method and rows: one file and one line each, without a change of the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models import tiny_model

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.errors import ConfigError
from selfcorrect.paper.archive import pack
from selfcorrect.paper.budget import spent
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.own_rows import read_row
from selfcorrect.report.html import read_report
from selfcorrect.report.tables import result_tables
from selfcorrect.runs.run import train
from selfcorrect.storage.comparison_dir import read_card
from selfcorrect.storage.files import read_jsonl

TASK = '''
from selfcorrect import Outcome, Problem, Script, Split, Verdict

class Doubling:
    """Say a digit twice."""

    name, version, script, trusted_verifier = "doubling", "1", Script(revise="Please correct the error."), True

    def problems(self, split, *, seed, limit=None):
        start = 10 * list(Split).index(split)
        return [Problem(f"{split}-{n}", f"{start + n}+0=", str(n)) for n in range(10)][:limit]

    def verify(self, problem, text):
        return Verdict(Outcome("right" if problem.reference in text else "wrong"), text)

    def corrupt(self, problem):
        return ""
'''
ENGINE = '''
from selfcorrect.engines import HFEngine

class Counting(HFEngine):
    """The built-in engine, which also leaves a mark."""

    def generate(self, requests, sampling, *, keep=False):
        with open("sampled", "a") as file:
            file.write(f"{len(requests)} ")
        return super().generate(requests, sampling, keep=keep)

def open_counting(model, settings):
    return Counting(model)
'''
METHOD = '''
import torch

def advantages(outcome, stage):
    """Every correct attempt is worth 1, whatever the others of its group do."""
    with open("paid", "a") as file:
        file.write(f"{len(outcome.rewards_NK)} ")
    return (outcome.rewards_NK - outcome.penalty_NK) * outcome.online_NK
'''
PAGE = (Path(__file__).parents[2] / "docs/paper.md").read_text()
ROW_FILE, ROW_MODULE, ROW_LINES = (
    found.group(1)
    for start in ("toml\n# mine.toml", "python\n# my_rows.py", 'toml\n\\[project.entry-points."selfcorrect.rows"\\]')
    if (found := re.search(rf"```{start}\n(.*?)```", PAGE, re.S))
)
"""The documentation's example of rows of one's own."""
LINES = f"""
[selfcorrect.rows]
{ROW_LINES.replace('"', "")}
longer = their_rows:longer

[selfcorrect.tasks]
doubling = their_task:Doubling

[selfcorrect.engines]
counting = their_engine:open_counting

[selfcorrect.methods]
plain = their_method:advantages
"""
LONGER = """
from selfcorrect.paper.rows import Budget, MethodRow, Table

longer = MethodRow("longer", "Longer", Table.VARIANTS, "twice the steps",
    lambda recipe: recipe.changed({"steps": 2}, {"steps": 4}), budget=Budget.OWN)
"""
CONFIG = """
task.name = "doubling"
task.train_problems = 8
task.dev_problems = 2
model.source = "MODEL"
model.device = "cpu"
rollout = { engine = "ENGINE", batch_size = 4, group_size = 2, max_tokens = 3 }
stages.mine = { method = "METHOD", steps = 2, reward_weights = [1, 1], anchors = [{ base = 0.1 }, {}] }
eval.problems = 4
log.tensorboard = false
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install a user's three modules as a package with three lines of metadata, in a directory on Python's path."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "their_task.py").write_text(TASK)
    (folder / "their_engine.py").write_text(ENGINE)
    (folder / "their_method.py").write_text(METHOD)
    (folder / "my_rows.py").write_text(ROW_MODULE)
    (folder / "their_rows.py").write_text(LONGER)
    metadata = folder / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(LINES)
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the user's package in this process, for commands that start no other one."""
    monkeypatch.syspath_prepend(site)
    yield
    for module in site.glob("*.py"):
        sys.modules.pop(module.stem, None)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(0, dtype=torch.float32).save(folder)
    return folder


def selfcorrect(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command in a directory, with the user's package installed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environment = [sys.executable, "-m", "selfcorrect", *arguments], {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        pytest.param("counting", "plain", marks=pytest.mark.nightly),
        pytest.param("their_engine:open_counting", "their_method:advantages", marks=pytest.mark.slow),
    ],
)
def test_a_task_an_engine_and_a_method_from_outside_train(
    installed: None, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, method: str
) -> None:
    text = CONFIG.replace("MODEL", str(model_folder)).replace("ENGINE", engine).replace("METHOD", method)
    (tmp_path / "mine.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mine.toml", "--out", "run", "-q"]) == 0
    assert (tmp_path / "paid").read_text() == "4 4 "
    assert set((tmp_path / "sampled").read_text().split()) <= {"4", "2"}
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == 2
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["provenance"]["task"]["name"] == "doubling" and set(summary["results"]) == {"base", "mine"}


def test_an_unknown_method_is_rejected_before_any_work(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        CONFIG.replace("doubling", "addition")
        .replace("MODEL", str(model_folder))
        .replace("ENGINE", "hf")
        .replace("METHOD", "scor")
    )
    with pytest.raises(ConfigError, match="Did you mean 'score'\\?"):
        train(tmp_path / "mine.toml", tmp_path / "run")
    assert not (tmp_path / "run").exists()


SCORE = """
stages.stage1 = { steps = 1, reward_weights = [0, 1], kl_coefs = [{ base = 0.5 }, { base = 0.1 }] }
stages.score = { steps = 2, reward_weights = [1, 1], bonus = 4, kl_coefs = [{ base = 1.0 }, { base = 0.3 }] }
"""


@pytest.fixture(scope="module")
def comparison(site: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the documentation's rows, and one with a budget of its own."""
    folder = tmp_path_factory.mktemp("comparison")
    head = CONFIG.replace("MODEL", str(model_folder)).replace("ENGINE", "hf").partition("stages.mine")
    (folder / "score.toml").write_text(head[0] + SCORE + head[2].partition("\n")[2])
    (folder / "mine.toml").write_text(ROW_FILE.replace("steps = 340", "steps = 3"))
    done = selfcorrect(site, folder, *WHOLE)
    assert done.returncode == 0, done.stderr
    return folder


WHOLE = ["paper", "score.toml", "--row", "mine.toml", "--only", "mine,half-bonus,longer", "--seeds", "1"]
WHOLE += ["--workers", "1", "--out", "out", "--set", "eval.controls=false"]


@pytest.mark.slow
def test_rows_from_outside_take_part_in_the_comparison(comparison: Path) -> None:
    out = comparison / "out"
    spent = {}
    for row in ("mine", "half-bonus", "longer"):
        steps = read_jsonl(out / row / "seed-0/metrics.jsonl")
        spent[row] = (sum(line["completions"] for line in steps), sum(line["updates"] for line in steps))
    assert spent == {"mine": (24, 3), "half-bonus": (24, 3), "longer": (48, 6)}
    assert load_config(out / "half-bonus/seed-0/config.toml").stages["score"].bonus == 2
    assert sorted(path.name for path in (out / "mine/seed-0/checkpoints").iterdir() if path.is_dir())[:2] == [
        "base",
        "weighs3",
    ]
    tables = {table.id: table for table in result_tables(read_report([out]).rows.rows)}
    assert {row.label: [cell.text for cell in row.cells[6:8]] for row in tables["variants"].rows} == {
        "half-bonus": ["24", "3"],
        "Longer": ["48 own budget", "6 own budget"],
        "One stage, turn 2 weighs 3": ["24", "3"],
    }
    assert "Own budget" in " ".join(tables["variants"].notes)


@pytest.mark.slow
def test_the_small_copy_of_rows_from_outside_has_the_same_tables(comparison: Path, tmp_path: Path) -> None:
    pack(comparison / "out", tmp_path / "small")
    found, copied = (
        result_tables(read_report([place]).rows.rows) for place in (comparison / "out", tmp_path / "small")
    )
    assert found == copied
    assert read_card(tmp_path / "small/mine") == read_card(comparison / "out/mine")


@pytest.mark.slow
def test_the_same_command_keeps_rows_from_outside_and_a_changed_one_is_rejected(
    installed: None, comparison: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(comparison)
    assert main([*WHOLE, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["seconds"] == 0 and all(cell["finished"] for cell in planned["cells"])
    row = comparison / "mine.toml"
    before = row.read_text()
    row.write_text(before.replace("[1, 3]", "[1, 4]"))
    ended = main(WHOLE)
    row.write_text(before)
    message = capsys.readouterr().err
    assert ended == 2
    assert "row 'mine' (mine.toml) is not the one that" in message
    assert "reward_weights = [1.0, 4.0] instead of [1.0, 3.0]" in message


def test_the_documentations_row_has_the_demos_budget(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(ROW_FILE)
    made = row_config(read_row(str(tmp_path / "mine.toml")), load_config("demo"))
    assert list(made.stages) == ["weighs3"] and spent(made) == spent(load_config("demo"))
