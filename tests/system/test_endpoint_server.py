"""Test evaluations on a real OpenAI-compatible server in a separate process: `transformers serve`, offline."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny_model
from support.served import TRANSFORMERS, serve

from selfcorrect.__main__ import main
from selfcorrect.errors import ModelError
from selfcorrect.evaluation import compare as comparison
from selfcorrect.evaluation import inspect_export as inspect_log
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.models.language_model import LanguageModel, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("openai", "fastapi", "uvicorn")),
        reason="the server needs transformers[serving]",
    ),
]
MAX_TOKENS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random model whose own settings enable sampling, because this server samples only then."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    made = tiny_model(3, dtype=torch.float32)
    made.model.generation_config.do_sample = True
    made.save(path)
    return path


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    with serve(TRANSFORMERS, [str(model), "--device", "cpu"], model.parent / "log", {}) as found:
        yield found


def greedy_reply(lm: LanguageModel, messages: list[dict[str, str]]) -> str:
    """Return the model's reply to messages rendered by its template, with `generate` and nothing of this package."""
    prompt = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    out = lm.model.generate(prompt, max_new_tokens=MAX_TOKENS, do_sample=False)
    return lm.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()


def test_greedy_attempts_are_the_models_own(url: str, model: Path, tmp_path: Path, capsys: Any) -> None:
    served, local = tmp_path / "served", tmp_path / "local"
    arguments = ["--task", "addition", "--limit", "8", "--max-tokens", str(MAX_TOKENS), "--controls", "-q"]
    assert main(["eval", "--base-url", url, "--model", str(model), *arguments, "--out", str(served)]) == 0
    assert "context mode messages" in capsys.readouterr().out
    controls = json.loads((served / "summary.json").read_text())["results"]["model"]["controls"]
    assert [*controls] == ["independent_resample", "draft_swap", "empty_draft", "shuffled_draft"]
    found = [json.loads(line) for line in (served / "episodes/eval-attempts.jsonl").read_text().splitlines()]

    same = evaluate(str(model), "addition", limit=8, max_tokens=MAX_TOKENS, device="cpu", out=local)
    for ours, theirs in zip(same.episodes, found, strict=True):
        first, other = ours.attempts[0], theirs["turns"][0]
        assert (first.text, first.stop, len(first.tokens)) == (
            other["text"],
            other["stop"],
            other["token_count"],
        )
    assert len({record["turns"][0]["text"] for record in found}) > 1

    lm = load_model(str(model), dtype="float32", device="cpu")
    script = json.loads((served / "eval.json").read_text())["script"]
    for record in found:
        asked = [{"role": "user", "content": record["prompt"]}]
        assert record["turns"][0]["text"] == greedy_reply(lm, asked)
        asked += [{"role": "assistant", "content": record["turns"][0]["text"]}]
        asked += [{"role": "user", "content": script["revise"].replace("{prompt}", record["prompt"])}]
        assert record["turns"][1]["text"] == greedy_reply(lm, asked)

    text = comparison.comparison_text(comparison.compare(local, served, across_modes=True), "local", "served")
    assert "Acc@t1      0.0    0.0" in text and "The context modes differ" in text
    assert main(["rescore", str(served), "--dry-run"]) == 0
    assert "; 0 changed" in capsys.readouterr().out
    assert inspect_log.export(served, tmp_path / "log.json") == 8


def test_samples_follow_their_seeds(url: str, model: Path) -> None:
    """Requests run one at a time, because this server has one seed for the whole process."""
    settings: dict[str, Any] = {"base_url": url, "limit": 2, "turns": 1, "max_tokens": 5, "max_num_seqs": 1}

    def texts(seed: int) -> list[str]:
        found = evaluate(str(model), "addition", temperature=1.0, samples=3, seed=seed, **settings)
        return [episode.attempts[0].text for episode in found.episodes]

    one = texts(0)
    assert one == texts(0)
    assert one != texts(1)
    assert len(set(one[:3])) > 1, "samples of one problem differ"


def test_a_model_that_is_not_served(url: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["eval", "--base-url", url, "--model", "none/such", "--task", "addition", "--out", str(tmp_path / "e")]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "status 400" in told and "none/such" in told and len(told.splitlines()) == 1


def test_token_ids_are_not_possible_and_the_way_out_is_said(
    url: str, model: Path, tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = [
        "eval",
        "--base-url",
        url,
        "--model",
        str(model),
        "--task",
        "addition",
        "--limit",
        "2",
        "--max-tokens",
        "4",
    ]
    assert main([*given, "--api", "completions", "--out", str(tmp_path / "tokens")]) == 2
    told = capsys.readouterr().err
    assert "Unexpected fields in the request" in told and "return_token_ids" in told and "--api chat" in told
    caplog.set_level(logging.INFO, "selfcorrect")
    evaluate(str(model), "addition", base_url=url, limit=2, max_tokens=4, turns=1)
    assert "token ids are not possible" in caplog.text and "the chat protocol, context mode messages" in caplog.text


def test_fields_that_this_server_does_not_know_are_rejected(url: str, model: Path) -> None:
    with pytest.raises(ModelError, match=r"status 422: Unexpected fields in the request: \{'top_k'\}"):
        evaluate(str(model), "addition", base_url=url, api="chat", limit=2, max_tokens=4, extra_body={"top_k": 1})
