"""Commands that need only files stay off the network; what needs the hub says at once that it does not answer."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants as hub_settings
import pytest

from selfcorrect import hub
from selfcorrect.cli.app import main
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.tasks.base import get_task, scripted
from selfcorrect.tasks.code.data import read_rows
from selfcorrect.tasks.dataset.examples import example_files
from selfcorrect.tasks.sources import read_parts

SIZES = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuse every connection, and return what was asked for."""
    found: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        found.append(arguments[-1] if len(arguments) == 2 else arguments[0])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


@pytest.mark.parametrize(
    "command",
    [
        *(["paper", "qwen_math", "--print", row] for row in ("score", "self-refine", "pag")),
        ["paper", "--list"],
        ["config", "qwen_math"],
        ["config", "--list"],
        ["tasks", "math"],
        ["plan", "qwen_math", "--gpus", "1", "--set", "model.source=DIR"],
        ["plan", "qwen_math", "--gpus", "1", "--set", "model.source=some/model"],
    ],
    ids=" ".join,
)
def test_what_needs_only_files_asks_nobody(
    command: list[str], asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command[0] == "plan":
        pytest.importorskip("peft")
    folder = tmp_path / "models--some--model/snapshots/0123"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / "models--some--model/refs").mkdir()
    (tmp_path / "models--some--model/refs/main").write_text("0123")
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path))
    assert main([part.replace("DIR", str(folder)) for part in command]) == 0
    assert asked == []


@pytest.mark.parametrize("place", ["nobody/nothing", "nobody/nothing:train"])
def test_a_data_set_of_the_hub_is_missed_after_one_request(place: str, asked: list[Any]) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="the hub does not answer, and the local cache does not have it"):
        read_parts(place, [], extra="data")
    assert len(asked) <= 1  # `datasets` alone would ask six times, with pauses of half a minute
    with pytest.raises(ConfigError, match="the hub does not answer, and the local cache does not have it"):
        read_rows(place, "humaneval")
    assert len(asked) <= 2


def test_without_an_answer_the_clients_are_offline_and_only_meanwhile(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets.config", datasets)
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", False)

    def seen() -> tuple[bool, bool]:
        return hub_settings.HF_HUB_OFFLINE, datasets.HF_HUB_OFFLINE

    with pytest.raises(DataError), hub.cache_without_network() as answers:
        assert (answers, *seen()) == (False, True, True)
        raise DataError("something else")
    assert seen() == (False, False)
    monkeypatch.setattr(hub, "answers", lambda: True)
    with hub.cache_without_network() as answers:
        assert (answers, *seen()) == (True, False, False)


def test_the_hub_answers_with_whatever_status(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, address: str, timeout: float) -> object:
            assert (address, timeout) == (hub_settings.ENDPOINT, hub.ANSWER_S)
            return SimpleNamespace(status_code=503)

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", False)
    assert hub.answers()
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    assert not hub.answers()


def _math(folder: Path) -> dict[str, Any]:
    (folder / "math.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    return {"path": str(folder / "math.jsonl"), "dev": 0}


def _science(folder: Path) -> dict[str, Any]:
    (folder / "science.csv").write_bytes(example_files()["science.csv"])
    return {
        "path": str(folder / "science.csv"),
        "prompt_field": "question",
        "reference_field": "key",
        "verifier": "choice",
        "options_field": ["a", "b", "c", "d"],
    }


@pytest.mark.filterwarnings("ignore::selfcorrect.tasks.sandbox.sandbox.SandboxWarning")
@pytest.mark.parametrize(
    ("name", "options", "changes"),
    [
        ("math", _math, {}),
        ("math", _math, {"first": "Q: {prompt}", "revise": "Again.", "system": "Be brief.", "turns": 3}),
        ("dataset", _science, {}),
        ("dataset", _science, {"first": "Q: {prompt}", "revise": ["Again.", "And again."], "turns": 3}),
        ("micro_code", lambda folder: {"level": 0}, {"sandbox": "process", "first": "Q: {prompt}", "revise": "Again."}),
        ("addition", lambda folder: {}, {}),
    ],
)
def test_a_script_alone_is_that_of_the_task(
    name: str, options: Callable[[Path], dict[str, Any]], changes: dict[str, Any], tmp_path: Path
) -> None:
    if name == "math":
        pytest.importorskip("math_verify")
    given = options(tmp_path) | changes
    assert scripted(name, given).script == get_task(name, given).script
