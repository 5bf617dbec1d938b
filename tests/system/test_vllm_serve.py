"""Test evaluations on a real `vllm serve` in a separate process, against the same weights in this process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.served import VLLM, serve
from support.two_turns import real

from selfcorrect import evaluate
from selfcorrect.__main__ import main
from selfcorrect.errors import ContextError, ModelError
from selfcorrect.storage.evaluation_dir import read_identity

pytestmark = pytest.mark.vllm

CONTEXT = 200
HOW: dict[str, Any] = {"limit": 12, "max_tokens": 8, "retries": 0}
TERSE = "{% if terse %}error.{% endif %}"
PLAIN = {"repetition_penalty": 1.0, "top_k": 0}
"""What a chat request needs so that the model's own generation settings change no greedy reply."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model with generation settings of its own (a repetition penalty of 5) and a template with an option."""
    path = tmp_path_factory.mktemp("served") / "tiny"
    made = real(3)
    made.tokenizer.chat_template = made.tokenizer.chat_template.replace("<|assistant|>", "<|assistant|>" + TERSE)
    made.save(path)
    return path


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    arguments = [
        str(model),
        "--enforce-eager",
        "--dtype",
        "float32",
        "--max-model-len",
        str(CONTEXT),
        "--max-num-seqs",
        "16",
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # three processes import vLLM, which takes 20 s each where nothing is compiled
    }
    with serve(VLLM, arguments, model.parent / "log", environment) as found:
        yield found


def turns(out: Path, part: str) -> list[Any]:
    lines = (out / "episodes" / f"eval-{part}.jsonl").read_text().splitlines()
    return [[(turn["text"], turn["tokens"], turn["stop"]) for turn in json.loads(line)["turns"]] for line in lines]


@pytest.mark.parametrize("options", [{}, {"terse": True}], ids=["plain", "option"])
def test_over_token_ids_attempts_and_controls_are_those_of_the_same_weights_here(
    options: dict[str, Any], url: str, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "selfcorrect")
    local, served = tmp_path / "local", tmp_path / "served"
    how = {"limit": 12, "max_tokens": 8, "controls": True, "stop": ["7"], "chat_template_kwargs": options or None}
    expected = evaluate(str(model), "addition", device="cpu", out=local, **how)
    found = evaluate(str(model), "addition", base_url=url, out=served, **how)
    assert "the completions protocol, context mode tokens" in caplog.text, "the model's name is a directory here"
    for part in ("attempts", "swap", "empty", "shuffled"):
        assert turns(served, part) == turns(local, part), part
    assert len({stop for episode in turns(served, "attempts") for _, _, stop in episode}) == 3
    assert found.controls.keys() == expected.controls.keys()
    assert turns(served, "sampled") != turns(served, "attempts")


def test_samples_over_token_ids_follow_their_seeds(url: str, model: Path) -> None:
    def texts(seed: int) -> list[str]:
        how = {"limit": 4, "max_tokens": 8, "temperature": 1.0, "samples": 3, "turns": 1, "seed": seed}
        return [episode.turns[0].text for episode in evaluate(str(model), "addition", base_url=url, **how).episodes]

    one = texts(0)
    assert one == texts(0) and one != texts(1) and len(set(one[:3])) > 1


@pytest.mark.parametrize("options", [{}, {"terse": True}], ids=["plain", "option"])
def test_as_messages_first_attempts_are_those_of_the_same_weights_here(
    options: dict[str, Any], url: str, model: Path, tmp_path: Path
) -> None:
    how = {"limit": 12, "max_tokens": 8, "chat_template_kwargs": options or None}
    expected = evaluate(str(model), "addition", device="cpu", **how)
    out = tmp_path / "e"
    found = evaluate(str(model), "addition", base_url=url, api="chat", controls=True, extra_body=PLAIN, out=out, **how)
    first = [[(e.turns[0].text, e.turns[0].stop, e.turns[0].length) for e in one.episodes] for one in (found, expected)]
    assert first[0] == first[1]
    assert [*found.controls] == ["independent_resample", "draft_swap", "empty_draft", "shuffled_draft"]
    assert read_identity(out)["context_mode"] == "messages" and read_identity(out)["plan"]["extra_body"] == PLAIN
    own = evaluate(str(model), "addition", base_url=url, api="chat", **how)
    assert [e.turns[0].text for e in own.episodes] != [e.turns[0].text for e in expected.episodes], (
        "the model's own penalty"
    )


def test_what_the_server_cannot_do_is_said_with_the_way_out(
    url: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ContextError, match=f"the model's context is {CONTEXT}"):
        evaluate(str(model), "addition", base_url=url, **{**HOW, "max_tokens": 500})
    with pytest.raises(ModelError, match="the tokenizer here is not that of"):
        evaluate(str(model), "addition", base_url=url, tokenizer="worked-sums-base", **HOW)
    given = ["--base-url", url, "--model", "none", "--tokenizer", str(model), "--task", "addition", "--limit", "2"]
    assert main(["eval", *given, "--out", str(tmp_path / "e")]) == 2
    told = capsys.readouterr().err
    assert "status 404: The model `none` does not exist" in told and f"It serves {model}, not 'none'" in told


def test_a_conversation_that_is_too_long_has_no_answer_and_the_others_have(
    url: str, model: Path, tmp_path: Path
) -> None:
    """As messages, nobody knows the tokenizer, so only the server can say."""
    rows = [{"prompt": "1+2", "answer": "3"}, {"prompt": "7" * 300, "answer": "7"}]
    found = evaluate(
        str(model), rows, verifier=lambda row, text: row["answer"] in text, base_url=url, api="chat", max_tokens=4
    )
    assert [bool(episode.failure) for episode in found.episodes] == [False, True]
    assert "status 400" in (found.episodes[1].failure or "") and str(CONTEXT) in (found.episodes[1].failure or "")
