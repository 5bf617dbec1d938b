"""Whatever happens to a stored file, every command that reads it says which file is damaged, or is not affected."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from support.crash import SHORTER
from support.damage import CHANGES, OLD_FILES, Case, Table, cases, try_all
from support.models import tiny_model

from selfcorrect.cli.app import main
from selfcorrect.config.toml import load_config, to_toml
from selfcorrect.storage.comparison_dir import write_card, write_trials

pytestmark = pytest.mark.slow
SEED = 15
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, a finished evaluation of its model, a run with adapters, and a comparison of one row."""
    folder = tmp_path_factory.mktemp("damage")
    tiny_model(1, dtype=torch.float32, **SMALL).save(folder / "model")
    changes = [*SHORTER, "log.tensorboard=false", f"model.source={folder / 'model'}"]
    (folder / "tiny.toml").write_text(to_toml(load_config("demo", changes)))
    assert main(["train", str(folder / "tiny.toml"), "--out", str(folder / "run"), "-q", "--no-report"]) == 0
    changes = [*changes, "log.tensorboard=true", "model.lora={rank=2}", "optimizer.schedule=constant"]
    (folder / "lora.toml").write_text(to_toml(load_config("demo", changes)))
    assert main(["train", str(folder / "lora.toml"), "--out", str(folder / "lora"), "-q", "--no-report"]) == 0
    shutil.copytree(folder / "run", folder / "comparison/score/seed-0", ignore=shutil.ignore_patterns("checkpoints"))
    write_card(folder / "comparison/score", {"key": "score", "title": "Whole", "table": "methods", "place": 6})
    trial = {"settings": ["optimizer.lr=1e-3"], "chosen": True, "acc_t1": 0.5, "acc_t2": 0.75, "delta": 0.25}
    intervals = {f"{name}_ci95": [-0.125, 0.875] for name in ("acc_t1", "acc_t2", "delta")}
    rows = {"score": [{**trial, **intervals}]}
    write_trials(folder / "comparison", {"seed": 3, "problems": 40, "titles": {"score": "Whole"}, "rows": rows})
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


def on_adapters(path: Path) -> list[tuple[list[str], Path | None]]:
    out = path.with_name("measured")
    shutil.rmtree(out, ignore_errors=True)
    command = ["eval", "--model", str(path), "--task", "addition", "--limit", "2", "-q", "--out", str(out)]
    return [*on_run(path), (command, out / "episodes/eval-attempts.jsonl")]


def on_comparison(path: Path) -> list[tuple[list[str], Path | None]]:
    page, packed = path.with_name("page.html"), path.with_name("packed")
    shutil.rmtree(packed, ignore_errors=True)
    return [
        (["report", str(path), "--out", str(page), "--tables", "text"], page),
        (["pack", str(path), "--out", str(packed)], packed / "trials.json"),
    ]


COMMANDS = {"run": on_run, "eval": on_evaluation, "lora": on_adapters, "comparison": on_comparison}


def table(folder: Path, kind: str, count: int | None) -> Table:
    chosen = list(cases(folder / kind))
    if count is not None:
        chosen = random.Random(SEED).sample(chosen, count)
    return try_all(folder / kind, chosen, COMMANDS[kind], SEED)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("run", 8),
        ("eval", 12),
        ("lora", 8),
        ("comparison", 8),
        pytest.param("run", None, marks=pytest.mark.nightly),
        pytest.param("eval", None, marks=pytest.mark.nightly),
        pytest.param("lora", None, marks=pytest.mark.nightly),
        pytest.param("comparison", None, marks=pytest.mark.nightly),
    ],
)
def test_damage_is_named_or_harmless(home: Path, kind: str, count: int | None) -> None:
    found = table(home, kind, count)
    print(f"\n{kind}\n{found}")
    assert not found.failures, "\n".join(found.failures)
    assert found.counts["named"] > 0


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.toml", "empty"),  # the settings without stages: the base instead of the trained model
        ("checkpoints/score/adapter_model.safetensors", "flip a bit"),
        ("checkpoints/score/adapter_config.json", "edit a digit"),
        ("checkpoints/base/model.safetensors", "flip a bit"),
    ],
)
def test_a_damaged_model_is_not_measured(
    home: Path, file: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = try_all(home / "lora", [Case(Path(file), change)], lambda path: on_adapters(path)[-1:], SEED)
    assert found.counts == {"named": 1}, found.failures


def test_the_events_of_tensorboard_are_read_by_nothing_and_made_again(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "lora", run)
    [events] = (run / "tensorboard").iterdir()
    chosen = [Case(events.relative_to(run), change) for change in CHANGES]
    found = try_all(run, chosen, on_run, SEED)
    assert not found.failures and set(found.counts) == {"harmless"}, found.failures
    events.write_bytes(b"damaged")
    assert main(["train", "--resume", str(run), "--set", "stages.score.steps=6", "-q", "--no-report"]) == 0
    assert all(b"damaged" not in file.read_bytes() for file in (run / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", ["run", "eval"])
def test_the_lock_and_the_page_are_read_by_nothing(home: Path, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    shutil.copytree(home / kind, folder)
    assert main(["report", str(folder), "--out", str(folder / "report.html"), "-q"]) == 0
    chosen = [Case(Path(name), change) for name in OLD_FILES for change in ("empty", "remove", "garbage", "deep")]
    found = try_all(folder, chosen, COMMANDS[kind], SEED)
    assert not found.failures and set(found.counts) == {"harmless"}, found.failures
