"""Test the model from the package index: only the pinned file with the pinned weights is accepted, and it is cached."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny_model

from selfcorrect.__main__ import main
from selfcorrect.config.toml import load_config
from selfcorrect.errors import ModelError
from selfcorrect.models.language_model import load_model
from selfcorrect.tasks import get_task
from selfcorrect.types import Split
from selfcorrect.zoo import registry, smollm2


def file_of(content: bytes, folder: Path) -> Any:
    (folder / smollm2.FILE).write_bytes(content)

    @contextlib.contextmanager
    def given() -> Iterator[Path]:
        yield folder / smollm2.FILE

    return given


def test_another_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "gguf_file", file_of(b"something else", tmp_path))
    with pytest.raises(ModelError, match=f"SHA-256 is {hashlib.sha256(b'something else').hexdigest()}, not b179c9"):
        smollm2.make_smollm2()


def test_other_weights_than_the_pinned_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_model(dtype=torch.float32)
    monkeypatch.setattr(smollm2, "gguf_file", file_of(b"", tmp_path))
    monkeypatch.setattr(smollm2, "FILE_SHA256", hashlib.sha256(b"").hexdigest())
    monkeypatch.setattr(smollm2, "_model", lambda file: other.model)
    monkeypatch.setattr(smollm2, "_tokenizer", lambda file: other.tokenizer)
    with pytest.raises(ModelError, match=f"SHA-256 is {other.digest()}, not d492b8"):
        smollm2.make_smollm2()
    monkeypatch.setattr(smollm2, "WEIGHTS_DIGEST", other.digest())
    assert smollm2.make_smollm2().digest() == other.digest()


def test_a_fetched_model_is_made_once_and_is_a_plain_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tiny_model(dtype=torch.float32)
    calls: list[int] = []
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "make_smollm2", lambda: calls.append(1) or made)
    for _ in range(2):
        assert main(["models", "fetch", "smollm2-135m"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert calls == [1]
    assert load_model(path).digest() == made.digest()
    assert main(["models", "fetch", "nope"]) == 2


def test_the_built_in_configuration_finds_its_problems_and_reads_what_stands_before_its_stop_texts() -> None:
    config = load_config("smollm2_arithmetic")
    task = get_task(config.task.name, config.task.options)
    for split, count in ((Split.TRAIN, config.task.train_problems), (Split.DEV, config.task.dev_problems)):
        assert len(task.problems(split, seed=config.task.data_seed, limit=count)) == count
    for problem in task.problems(Split.TEST, seed=config.task.data_seed, limit=config.eval.problems):
        question = problem.prompt.removesuffix("?")
        for stop in config.rollout.stop:
            assert task.verify(problem, f"{question}{problem.reference}{stop}").correct
            assert not task.verify(problem, f"{question}{int(problem.reference) + 1}{stop}").correct


def test_remote_code_is_run_only_on_request(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save(tmp_path)
    marker = tmp_path / "it-ran"
    (tmp_path / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\nPath({str(marker)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = (tmp_path / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "own"')
    auto = '{"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},'
    (tmp_path / "config.json").write_text(config.replace("{", auto, 1))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(tmp_path)
    assert not marker.exists()
