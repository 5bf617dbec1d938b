"""`auto` as a dtype: what suits the device when a run or an evaluation begins, and kept from then on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.models import dtypes
from selfcorrect.models.dtypes import fast_dtype

pytestmark = pytest.mark.usefixtures("lenient")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_where_the_device_has_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or native)
    assert fast_dtype("cpu") == fast_dtype("cuda:1") == ("bfloat16" if native else "float32")
    assert asked == [{"including_emulation": False}]


def test_a_run_and_its_evaluations_keep_the_dtype_with_which_they_began(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, evaluation = tmp_path / "run", tmp_path / "evaluation"
    changes = [*SETTINGS, f"model.source={model_folder}", "model.dtype=auto"]
    words = [
        "train",
        "demo",
        "--out",
        str(out),
        "--resume",
        "auto",
        "--no-report",
        *(w for c in changes for w in ("--set", c)),
    ]
    measure = [
        "eval",
        "--model",
        str(model_folder),
        "--task",
        "addition",
        "--limit",
        "4",
        "--dtype",
        "auto",
        "--out",
        str(evaluation),
    ]
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: True)
    assert main(words) == main(measure) == 0
    told = capsys.readouterr().err
    assert "model.dtype = 'auto': bfloat16, which suits cpu" in told and "dtype = 'auto': bfloat16" in told
    assert load_config(out / "config.toml").model.dtype == "bfloat16"
    assert json.loads((out / "checkpoints/score/config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((evaluation / "eval.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr(dtypes, "has_bfloat16", lambda: False)
    assert main(words) == main(measure) == 0, "on another processor they are the same run and the same evaluation"
    assert main([*words[:3], str(tmp_path / "other"), *words[4:]]) == 0
    assert load_config(tmp_path / "other/config.toml").model.dtype == "float32"


def test_a_plan_for_gpus_is_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--gpus", "1", "--set", "model.dtype=auto"]) == 0
    assert "parameters in bfloat16" in capsys.readouterr().out
