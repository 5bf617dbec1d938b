"""Test the package in a notebook: train, evaluate, tables; and no unrequested output."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from support.crash import SETTINGS
from support.models import tiny_model

CELLS = [
    "import transformers",  # which may advise to install ipywidgets
    """
from selfcorrect import evaluate, load_config, train
config = load_config("demo", SETTINGS)
summary = train(config, "run")
""",
    'summary.to_pandas()[["n", "acc_t1", "acc_t2", "delta"]]',
    'found = evaluate("run", "addition", limit=5)',
    "found.to_pandas()",
]


@pytest.mark.slow
def test_a_notebook_trains_evaluates_and_shows_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(3, dtype=torch.float32).save(tmp_path / "model")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))  # nothing is left in the home directory
    settings = [*SETTINGS, "model.source=model", "eval.dev_every=0", "eval.controls=false", "log.tensorboard=false"]
    cells = [code.replace("SETTINGS", repr(settings)) for code in CELLS]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    _, silent_training, trained, silent_evaluation, evaluated = (cell.outputs for cell in notebook.cells)
    said = "".join(output.text for output in silent_training).splitlines()
    # No bars, and only these warnings: an untrained model's answers never end, reported at most once per turn of each stage.
    possible = {(stage, turn) for stage in ("stage1", "score") for turn in (1, 2)}
    told = [(line.split()[0], int(line.partition("of turn ")[2][0])) for line in said]
    assert told and len(set(told)) == len(told) and set(told) <= possible
    assert all("truncated at rollout.max_tokens = 8" in line for line in said)
    assert silent_evaluation == []
    for outputs, rows in ((trained, ("base", "stage1", "score")), (evaluated, ("0",))):
        (shown,) = outputs
        assert shown.output_type == "execute_result"
        lines = shown.data["text/plain"].splitlines()
        assert "acc_t2" in lines[0] or "..." in lines[0]
        assert "<table" in shown.data["text/html"]
        assert all(any(line.startswith(row) for line in lines) for row in rows)
