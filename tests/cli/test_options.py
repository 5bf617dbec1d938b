"""Every number on the command line has two ends, and nothing that is printed steers the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from support.stored_runs import record, write_evaluation, write_run
from typer.models import OptionInfo

from selfcorrect.cli.app import app, main
from selfcorrect.cli.ray_train import worker_range
from selfcorrect.config.evaluation import EvalSettings
from selfcorrect.config.toml import load_config, to_toml
from selfcorrect.errors import ConfigError
from selfcorrect.paper.rows import chosen_seeds
from selfcorrect.report import write_report

HUGE = "1" + "0" * 25
STEERING = "\x1b[2J\x9b2J\x07\x08\r\u202e\x00"


def options(commands: typer.Typer) -> Iterator[tuple[str, str, Any]]:
    """Every numeric option of every command: the command's function, the option's name, and its description."""
    for command in commands.registered_commands:
        assert command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            for kind in [hint, *get_args(hint)]:  # an option that may be unset is Annotated, or a union with one
                described = [item for item in getattr(kind, "__metadata__", ()) if isinstance(item, OptionInfo)]
                if described and {int, float} & {kind.__origin__, *get_args(kind.__origin__)}:
                    yield command.callback.__name__, name, described[0]
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        yield from options(group.typer_instance)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and an evaluation whose every text would steer a terminal."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), seed=0, models={"score": [record(0, ("6", "7"))]})
    bad = record(0, ("6", "7"))
    for key in ("stage", "problem_id", "prompt", "reference", "difficulty"):
        bad[key] = f"{bad[key]}{STEERING}"
    for turn in bad["turns"]:
        check = {"label": STEERING, "outcome": f"failed{STEERING}", "detail": STEERING}
        turn |= {"text": STEERING, "extracted": STEERING, "detail": STEERING, "checks": [check]}
        turn["by_rule"] = {f"rule{STEERING}": "correct"}
    write_evaluation(Path("e"), [bad], digest="d")
    for name in ("eval.json", "summary.json"):
        text = (tmp_path / "e" / name).read_text()
        for word in ("some/model", "addition", "Wilson score"):
            text = text.replace(word, word + json.dumps(STEERING)[1:-1])
        (tmp_path / "e" / name).write_text(text)
    return tmp_path


def test_every_number_of_every_command_has_two_ends() -> None:
    found = list(options(app))
    assert len(found) > 15
    for command, name, option in found:
        if command == "evaluate" and name in EvalSettings.model_fields:
            continue  # the setting's range, see tests/config/test_ranges.py
        assert option.min is not None and option.max is not None, f"{command}: {name}"


@pytest.mark.parametrize(
    "command",
    [
        ["show", "run", "--limit", HUGE],
        ["report", "run", "--out", "page.html", "--episodes", HUGE],
        ["compare", "run", "run", "--seed", HUGE],
        ["pack", "run", "--out", "packed", "--episodes", HUGE],
        *(
            ["eval", "--model", "m", "--task", "addition", "--out", "o", o, HUGE]
            for o in ("--limit", "--seed", "--data-seed")
        ),
        ["paper", "demo", "--out", "o", "--seeds", HUGE],
        ["paper", "demo", "--out", "o", "--seeds", "0-999999999"],
    ],
    ids=lambda command: " ".join(command)[:40],
)
def test_a_number_beyond_the_range_is_rejected(
    command: list[str], stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    message = capsys.readouterr().err
    assert message.startswith("selfcorrect: error: ") and "This is a bug" not in message


def test_the_same_in_python(stored: Path) -> None:
    with pytest.raises(ConfigError, match="episodes = "):
        write_report(["run"], "page.html", episodes=int(HUGE))
    assert chosen_seeds("1000")[-1] == 999
    with pytest.raises(ConfigError, match="more than 1000 seeds"):
        chosen_seeds("1001")


@pytest.mark.parametrize(
    "command",
    [
        ["show", "e"],
        ["show", "e", "--json"],
        ["show", "e", "--problem", STEERING],
        ["compare", "e", "e"],
        ["compare", "e", "e", "--json"],
        ["report", "e", "--out", "page.html", "--tables", "text"],
        ["report", "e", "--out", "page.html", "--tables", "markdown"],
        ["report", "e", "--out", "page.html", "--tables", "text", "--json"],
        ["rescore", "e"],
        ["train", "--resume", f"nowhere{STEERING[:-1]}"],
        ["train", f"nowhere{STEERING[:-1]}", "--out", "x"],
        ["config", "demo", "--set", f"task.system=x{STEERING[:-1]}"],
    ],
    ids=lambda command: " ".join(command[:2])[:20].encode("unicode_escape").decode(),
)
def test_nothing_that_is_printed_steers_the_terminal(
    command: list[str], stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    out, err = capsys.readouterr()
    assert "This is a bug" not in err and out + err
    assert [c for c in out + err if not c.isprintable() and c not in "\n\t"] == []
    if "--json" in command and out:
        json.loads(out)


@pytest.mark.parametrize(
    ("text", "expected"), [("3", (3, 3)), ("2:4", (2, 4)), ("1:1", (1, 1)), ("10000", (10_000, 10_000))]
)
def test_workers_are_a_number_or_a_range(text: str, expected: tuple[int, int]) -> None:
    assert worker_range(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":", "2:", ":4", "0", "0:2", "4:2", "2:4:6", "-1", "2.5", "two", "10001", HUGE, "\u0662"]
)
def test_other_workers_are_rejected(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="MIN"):
        worker_range(text)


def test_a_cluster_is_not_asked_for_a_run_that_would_be_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module that names Ray is imported after the checks: here it cannot be, which only an accepted run gets to see."""
    monkeypatch.setitem(sys.modules, "selfcorrect.distributed.ray_workers", None)
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text(to_toml(load_config("demo")))
    stored = ["--out", str(out), "--workers", "1:2"]
    for words, message in (
        (
            ["demo", "--out", str(tmp_path / "new"), "--workers", "2", "--set", "task.name=nope"],
            "task 'nope' is not known",
        ),
        (["demo", "--out", str(tmp_path / "new"), "--workers", "2", "--set", "rollout.ahead=1"], "optimizer.tis_cap"),
        (["demo", *stored, "--set", "seed=99"], "seed: 0 there, 99 requested"),
        (["demo", *stored], "ray_workers"),
    ):
        assert main(["ray", *words]) != 0
        assert message in capsys.readouterr().err, words
    assert not (tmp_path / "new").exists()
