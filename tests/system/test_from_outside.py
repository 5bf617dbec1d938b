"""Test a user's task, engine and method: one file and one line each, without a change of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.models import tiny_model

from selfcorrect.errors import ConfigError
from selfcorrect.runs.run import train
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
LINES = """
[selfcorrect.tasks]
doubling = their_task:Doubling

[selfcorrect.engines]
counting = their_engine:open_counting

[selfcorrect.methods]
plain = their_method:advantages
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
    metadata = folder / "theirs-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(LINES)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(0, dtype=torch.float32).save(folder)
    return folder


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        pytest.param("counting", "plain", marks=pytest.mark.nightly),
        pytest.param("their_engine:open_counting", "their_method:advantages", marks=pytest.mark.slow),
    ],
)
def test_a_task_an_engine_and_a_method_from_outside_train(
    site: Path, model_folder: Path, tmp_path: Path, engine: str, method: str
) -> None:
    text = CONFIG.replace("MODEL", str(model_folder)).replace("ENGINE", engine).replace("METHOD", method)
    (tmp_path / "mine.toml").write_text(text)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "selfcorrect", "train", "mine.toml", "--out", "run", "-q"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
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
