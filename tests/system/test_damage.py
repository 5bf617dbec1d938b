"""Whatever happens to a stored file, every command that reads it says which file is damaged, or is not affected."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from support.crash import SHORTER
from support.damage import OLD_FILES, Case, Table, cases, try_all
from support.models import tiny_model

from selfcorrect.cli.app import main
from selfcorrect.config.toml import load_config, to_toml

SEED = 15
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and a finished evaluation of its model."""
    folder = tmp_path_factory.mktemp("damage")
    tiny_model(1, dtype=torch.float32, **SMALL).save(folder / "model")
    changes = [*SHORTER, "log.tensorboard=false", f"model.source={folder / 'model'}"]
    (folder / "tiny.toml").write_text(to_toml(load_config("demo", changes)))
    assert main(["train", str(folder / "tiny.toml"), "--out", str(folder / "run"), "-q", "--no-report"]) == 0
    command = ["eval", "--model", str(folder / "run"), "--task", "addition", "--out", str(folder / "eval"), "-q"]
    assert main([*command, "--limit", "3", "--controls"]) == 0
    return folder


def on_run(path: Path) -> list[tuple[list[str], Path | None]]:
    page = path.with_name("page.html")
    return [
        (["show", str(path)], None),
        (["report", str(path), "--out", str(page), "--tables", "text"], page),
        (["train", "--resume", str(path), "--json", "-q", "--no-report"], None),
    ]


def on_evaluation(path: Path) -> list[tuple[list[str], Path | None]]:
    page = path.with_name("page.html")
    return [
        (["show", str(path)], None),
        (["report", str(path), "--out", str(page), "--tables", "text"], page),
        (["compare", str(path), str(path), "--json"], None),
        (["rescore", str(path), "--dry-run"], None),
    ]


def table(folder: Path, kind: str, count: int | None) -> Table:
    chosen = list(cases(folder / kind))
    if count is not None:
        chosen = random.Random(SEED).sample(chosen, count)
    return try_all(folder / kind, chosen, on_run if kind == "run" else on_evaluation, SEED)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("run", 8),
        ("eval", 12),
        pytest.param("run", None, marks=pytest.mark.nightly),
        pytest.param("eval", None, marks=pytest.mark.nightly),
    ],
)
def test_damage_is_named_or_harmless(home: Path, kind: str, count: int | None) -> None:
    found = table(home, kind, count)
    print(f"\n{kind}\n{found}")
    assert not found.failures, "\n".join(found.failures)
    assert found.counts["named"] > 0


@pytest.mark.parametrize("kind", ["run", "eval"])
def test_the_lock_and_the_page_are_read_by_nothing(home: Path, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    shutil.copytree(home / kind, folder)
    assert main(["report", str(folder), "--out", str(folder / "report.html"), "-q"]) == 0
    chosen = [Case(Path(name), change) for name in OLD_FILES for change in ("empty", "remove", "garbage", "deep")]
    found = try_all(folder, chosen, on_run if kind == "run" else on_evaluation, SEED)
    assert not found.failures and set(found.counts) == {"harmless"}, found.failures
