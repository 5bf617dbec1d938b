"""Evaluations in the completions protocol, on a server that mimics `vllm serve`; `test_vllm_serve.py` has the real one."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.chat_server import Answer, ChatServer, fails, says, serving
from support.models import tiny_model
from support.token_server import completes, of_ids

from selfcorrect.__main__ import main
from selfcorrect.engines import Sampling
from selfcorrect.engines.completions_api import CompletionsAnswer, CompletionsAPI
from selfcorrect.engines.server import Server
from selfcorrect.engines.transport import PassingError, RefusedError
from selfcorrect.errors import ConfigError, ContextError, EndpointError, ModelError
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.report.commands import _server_options
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import Script
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.types import StopReason
from selfcorrect.zoo.addition import make_tokenizer

Completions = Callable[[dict[str, Any]], Answer]
HOW = {"limit": 4, "max_tokens": 6}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Return a tiny model whose turns end at different times."""
    made = tiny_model(3)
    with torch.no_grad():
        made.model.lm_head.weight[min(made.end_ids)] *= 2.5
    return made


@pytest.fixture(scope="module")
def folder(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.save(path)
    return path


def no_chat(body: dict[str, Any]) -> Answer:
    return fails(400, "this model has no chat template")


def measure(server: ChatServer, model: LanguageModel, **settings: Any) -> Any:
    return evaluate(
        "m", "addition", base_url=server.url, **{"tokenizer": model.tokenizer, "retries": 0, **HOW, **settings}
    )


def turns(found: Any) -> list[Any]:
    return [[(turn.text, turn.tokens, turn.stop, turn.role) for turn in episode.turns] for episode in found.episodes]


def lines(path: Path, part: str) -> list[Any]:
    text = (path / "episodes" / f"eval-{part}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# --- the same as a model in this process ---------------------------------------------------------------


def test_greedy_attempts_and_blind_drafts_are_those_of_the_same_model_here(
    model: LanguageModel, tmp_path: Path
) -> None:
    how = {**HOW, "limit": 7, "controls": True, "sampled": False, "stop": ["9"]}
    local = evaluate(model, "addition", out=tmp_path / "local", **how)
    with serving(no_chat, completions=completes(model), context_limit=256) as server:
        served = measure(server, model, out=tmp_path / "served", **how)
    for part in ("attempts", "swap", "empty", "shuffled"):
        assert lines(tmp_path / "served", part) == lines(tmp_path / "local", part)
    assert len({stop for episode in turns(local) for _, _, stop, _ in episode}) == 3, "ends, stop texts and limits"
    ours, theirs = served.to_json(), local.to_json()
    assert ours == theirs and ours["context_mode"] == "tokens" and [*ours["controls"]] == [*theirs["controls"]]


def test_what_is_sent(model: LanguageModel) -> None:
    with serving(no_chat, completions=completes(model)) as server:
        found = measure(server, model, limit=1, temperature=0.5, max_num_seqs=1, extra_body={"priority": 3})
    first, second = server.asked
    chat = ChatFormat(model.tokenizer, Script(revise="Correct any error. {prompt}"))
    prompt, ids = chat.prompt(found.episodes[0].prompt), found.episodes[0].turns[0].tokens
    assert tuple(first["prompt"]) == prompt
    assert tuple(second["prompt"]) == (*prompt, *ids, *chat.observation_ids(1, found.episodes[0].prompt, ids))
    del first["prompt"], first["seed"]
    assert first == {
        **{"model": "m", "max_tokens": 6, "temperature": 0.5, "top_p": 1.0, "priority": 3},
        **{"return_token_ids": True, "logprobs": 0, "stop_token_ids": [2], "include_stop_str_in_output": True},
        **{"skip_special_tokens": False, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
    }
    text, check = server.checks
    assert text["prompt"] == chat.rendered(found.episodes[0].prompt) and text["add_special_tokens"] is False
    assert tuple(check["prompt"]) == prompt


@pytest.mark.slow
def test_a_shared_pool_is_cut_at_the_token_limit(model: LanguageModel, tmp_path: Path) -> None:
    cut = {"limit": 7, "max_tokens": 2}
    evaluate(model, "addition", out=tmp_path / "pool", **{**HOW, "limit": 7})
    with serving(no_chat, completions=completes(model)) as server:
        found = measure(server, model, drafts=str(tmp_path / "pool"), **cut)
    assert {len(e.turns[0].tokens): e.turns[0].stop for e in found.episodes}[2] is StopReason.LENGTH
    local = evaluate(model, "addition", drafts=str(tmp_path / "pool"), **cut)
    assert turns(found) == turns(local)


# --- which protocol ---------------------------------------------------------------------------------------


def mode(out: Path) -> tuple[str, dict[str, str]]:
    identity = read_identity(out)
    return identity["context_mode"], {k: v for k, v in identity["endpoint"].items() if k in ("api", "tokenizer")}


@pytest.mark.slow
def test_a_named_tokenizer_means_token_ids_and_a_resumption_keeps_them(
    model: LanguageModel, folder: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "e", Counter[str]()

    def breaks(body: dict[str, Any]) -> Answer:
        asked["times"] += 1
        return completes(model)(body) if asked["times"] < 6 else fails(500)

    with serving(no_chat, completions=breaks) as server:
        with pytest.raises(EndpointError, match="status 500"):
            measure(server, model, tokenizer=folder, out=out, max_num_seqs=1)
        server.completions = completes(model)
        assert mode(out) == ("tokens", {"api": "completions", "tokenizer": str(folder)})
        stored = len(lines(out, "attempts"))
        server.asked.clear()
        with pytest.raises(ConfigError, match="so it needs the tokenizer of the served model"):
            measure(server, model, tokenizer=None, out=out)
        again = measure(server, model, tokenizer=folder, out=out)
    assert stored == 1 and len(server.asked) == 2 * (4 - stored)
    assert turns(again) == turns(evaluate(model, "addition", **HOW))
    assert _server_options(read_identity(out)["endpoint"])[-4:] == ["--api", "completions", "--tokenizer", str(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("can", [True, False])
def test_a_directory_as_name_leaves_it_to_the_first_request(
    can: bool, model: LanguageModel, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "selfcorrect")
    name, out = str(folder), tmp_path / "e"
    unknown = fails(422, "Unexpected fields in the request: {'return_token_ids'}")  # transformers serve
    how = {"base_url": "", "out": out, "retries": 0, **HOW}
    answer = completes(model, name=name) if can else lambda body: unknown
    with serving(lambda body: says("7"), completions=answer, models=[name]) as server:
        how["base_url"] = server.url
        evaluate(name, "addition", **how)
        assert mode(out)[0] == ("tokens" if can else "messages")
        server.asked.clear()
        server.checks.clear()
        evaluate(name, "addition", **how)
        assert not server.asked and not server.checks, "it is finished, so nothing is asked"
    assert ("token ids are not possible: " in caplog.text and "Unexpected fields" in caplog.text) == (not can)
    assert f"the {'completions' if can else 'chat'} protocol, context mode" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"api": "completions", "tokenizer": None}, r"needs the tokenizer of the served model.*\(--tokenizer\)"),
        (
            {"api": "chat", "tokenizer": "addition-base"},
            "tokenizer = 'addition-base' is only for the completions protocol",
        ),
        ({"chat_template_kwargs": {"nope": 1}}, "chat_template_kwargs sets 'nope', which the model's chat template"),
        ({"extra_body": {"n": 2, "prompt": "x"}}, "extra_body sets n, prompt, which the package sets itself"),
        ({"drop_fields": ["stop"]}, "drop_fields names stop: only temperature, top_p, seed can be left out"),
        ({"drop_fields": ["temperature"]}, "leaves out the temperature.* but temperature = 0 is to be measured"),
        ({"extra_headers": {"Host": "x"}}, "extra_headers sets 'Host'"),
        ({"extra_headers": {"a b": "x"}}, "extra_headers sets 'a b'"),
        ({"extra_headers": {"a": "x\r\nb: c"}}, "extra_headers.a: the value has characters that an HTTP header cannot"),
        ({"extra_headers": {"a": "env:NO_SUCH_VARIABLE"}}, "the environment variable 'NO_SUCH_VARIABLE' is not set"),
    ],
)
def test_settings_that_are_rejected_before_anything_is_asked(
    model: LanguageModel, settings: dict[str, Any], message: str
) -> None:
    with serving(no_chat, completions=completes(model)) as server, pytest.raises(ConfigError, match=message):
        measure(server, model, **settings)
    assert not server.checks and not server.asked


@pytest.mark.parametrize("name", ["api", "tokenizer", "extra_body", "extra_headers", "drop_fields"])
def test_settings_of_a_server_are_rejected_without_one(name: str, model: LanguageModel, folder: Path) -> None:
    value = {
        "api": "chat",
        "tokenizer": "x",
        "extra_body": {"a": 1},
        "extra_headers": {"a": "b"},
        "drop_fields": ["seed"],
    }
    with pytest.raises(ConfigError, match=f"^{name}: only for a model on a server"):
        evaluate(str(folder), "addition", **HOW, **{name: value[name]})


# --- what a server cannot do --------------------------------------------------------------------------------


def test_a_server_that_returns_no_ids_is_rejected_with_the_way_out(
    model: LanguageModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(no_chat, completions=completes(model, ids=False)) as server:
        given = ["--base-url", server.url, "--model", "m", "--api", "completions", "--tokenizer", str(folder)]
        assert main(["eval", *given, "--task", "addition", "--limit", "4", "--out", str(tmp_path / "e")]) == 2
    told = capsys.readouterr().err
    assert "hold no token ids" in told and "--api chat" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("failure", [fails(400, "prompt must be a string."), fails(404)])
def test_a_server_without_such_completions_is_rejected_with_the_way_out(failure: Answer, model: LanguageModel) -> None:
    with serving(no_chat, completions=lambda body: failure) as server, pytest.raises(ModelError, match="--api chat"):
        measure(server, model)


def test_another_tokenizer_is_noticed(model: LanguageModel) -> None:
    other = make_tokenizer()
    other.add_tokens(["+0"])
    with serving(no_chat, completions=completes(model)) as server, pytest.raises(ModelError) as told:
        measure(server, model, tokenizer=other)
    assert "the tokenizer here is not that of http" in str(told.value) and "differs" in str(told.value)
    assert not server.asked


def test_a_context_that_is_too_short_is_noticed_before_the_work(model: LanguageModel) -> None:
    with serving(no_chat, completions=completes(model), context_limit=40) as server:
        with pytest.raises(ContextError, match="but the model's context is 40"):
            measure(server, model)
        assert not server.asked


@pytest.mark.slow
def test_one_request_that_fails_is_an_episode_without_an_answer(model: LanguageModel, tmp_path: Path) -> None:
    bad: list[int] = []

    def answer(body: dict[str, Any]) -> Answer:
        if body["max_tokens"] > 1 and body["prompt"] not in ([], bad) and not bad:
            bad.extend(body["prompt"])
        return fails(400, "filtered") if body["max_tokens"] > 1 and body["prompt"] == bad else completes(model)(body)

    with serving(no_chat, completions=answer) as server:
        found = measure(server, model, controls=True, sampled=False, max_num_seqs=1, out=tmp_path / "e")
    (failed,) = [episode for episode in found.episodes if episode.failure]
    assert [turn.stop for turn in failed.turns] == [StopReason.FAILED] * 2 and "filtered" in (failed.failure or "")
    assert found.controls["draft_swap"].n == 4
    swapped = lines(tmp_path / "e", "swap")
    assert sum(record["turns"][0]["stop"] == "failed" for record in swapped) == 1, (
        "a failed draft is swapped as a failure"
    )


# --- what is read from an answer --------------------------------------------------------------------------


PROMPT = (3, 7, 2, 4)


def read(sampled: Any, stop: StopReason = StopReason.END, **choice: Any) -> Any:
    answer = of_ids(make_tokenizer(), PROMPT, [5], stop, **{"token_ids": sampled, **choice})
    return CompletionsAPI([2]).reply(
        CompletionsAnswer.model_validate_json(answer.body), PROMPT, Sampling(0.0, 3, ("+",))
    )


@pytest.mark.parametrize(
    ("ids", "choice", "stop"),
    [
        ([5, 2], {}, StopReason.END),
        ([5, 7, 2], {"finish_reason": "length"}, StopReason.END),  # the last token that was allowed
        ([5, 7, 9], {"finish_reason": "length"}, StopReason.LENGTH),
        ([5, 16], {"stop_reason": "+"}, StopReason.STOP),
        ([5, 16], {"stop_reason": 16}, StopReason.END),  # an end token that only the server knows
        ([5], {"finish_reason": ["odd"], "stop_reason": {}}, StopReason.END),
    ],
)
def test_why_a_turn_ended(ids: list[int], choice: dict[str, Any], stop: StopReason) -> None:
    found = read(ids, **choice)
    assert (found.ids, found.stop, found.text, found.counted) == (tuple(ids), stop, "", None)


def test_an_answer_without_sampled_ids_is_rejected_and_one_without_those_of_the_prompt_is_not() -> None:
    with pytest.raises(RefusedError, match=r"hold no token ids.*--api chat"):
        read(None)
    assert read([5, 2], prompt_token_ids=None).ids == (5, 2)


@pytest.mark.parametrize("ids", [[], [5, 5, 5, 5], [5, -1], [5, 2**40], [5, True], [5, "7"], "57", {"0": 5}, [[5]]])
def test_ids_that_are_none_are_no_reply(ids: Any) -> None:
    with pytest.raises(PassingError, match="token ids"):
        read(ids)


def test_malformed_ids_are_asked_for_again_and_then_a_failure(model: LanguageModel) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        right = completes(model)(body)
        return (
            right
            if body["max_tokens"] == 1
            else of_ids(model.tokenizer, body["prompt"], [5], StopReason.END, token_ids=[-1])
        )

    with serving(no_chat, completions=answer) as server:
        found = measure(server, model, limit=1, turns=1, max_tokens=3, failed_limit=1.0, retries=1)
        assert len(server.asked) == 2
    assert "token ids" in (found.episodes[0].failure or "")


def test_a_server_that_changes_the_prompt_is_rejected(model: LanguageModel) -> None:
    def starts_anew(body: dict[str, Any]) -> Answer:
        start = [] if isinstance(body["prompt"], str) else [1]
        prompt = body["prompt"] if isinstance(body["prompt"], str) else [*start, *body["prompt"]]
        return completes(model)({**body, "prompt": prompt})

    with (
        serving(no_chat, completions=starts_anew) as server,
        pytest.raises(ModelError, match="continued another prompt"),
    ):
        measure(server, model)


@pytest.mark.parametrize(
    ("logprobs", "kept"),
    [
        ({"token_logprobs": [-0.5, -1]}, (-0.5, -1.0)),
        ({"token_logprobs": [-0.5]}, (0.0, 0.0)),
        ({"token_logprobs": [None, 10**400]}, (0.0, 0.0)),
        ("none", (0.0, 0.0)),
        (None, (0.0, 0.0)),
    ],
)
def test_log_probabilities_are_finite_numbers(logprobs: Any, kept: tuple[float, ...]) -> None:
    assert read([5, 2], logprobs=logprobs).logprobs == kept


# --- headers and fields ---------------------------------------------------------------------------------------


def test_headers_are_sent_and_repeated_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "azure-0123456789-secret"
    monkeypatch.setenv("MY_KEY", secret)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-sent-000")
    headers = 'extra_headers={ api-key = "env:MY_KEY", authorization = "Basic dXNlcjpwYXNzd29yZA" }'
    with serving(lambda body: fails(403, f"bad key {secret[3:]} dXNlcjpwYXNzd29yZA")) as server:
        given = ["--base-url", server.url, "--model", "m", "--task", "addition", "--limit", "2", "--set", headers]
        assert main(["eval", *given, "--out", str(tmp_path / "e")]) == 2
        told = capsys.readouterr().err
        assert "withheld" in told and "0123456789" not in told and "dXNl" not in told
        assert server.headers["api-key"] == secret and server.keys == {"Basic dXNlcjpwYXNzd29yZA"}
        server.answer = lambda body: says("7")
        assert main(["eval", *given, "--out", str(tmp_path / "e"), "-q"]) == 0
    stored = "".join(file.read_text() for file in (tmp_path / "e").rglob("*") if file.is_file())
    assert "env:MY_KEY" not in stored and secret not in stored and "dXNl" not in stored
    assert secret not in repr(Server("u", "m", extra_headers={"api-key": secret}))


def test_fields_that_a_server_rejects_can_be_left_out(tmp_path: Path) -> None:
    def picky(body: dict[str, Any]) -> Answer:
        bad = next((name for name in ("top_p", "seed") if name in body), None)
        return (
            says("7")
            if bad is None
            else fails(400, f"Unsupported parameter: '{bad}' is not supported with this model.")
        )

    with serving(picky) as server:
        how = {"base_url": server.url, "limit": 2, "temperature": 1.0}
        with pytest.raises(
            ModelError, match=r"To leave a field out of all requests: --set 'drop_fields=\[\"top_p\"\]'"
        ):
            evaluate("m", "addition", **how)
        dropped = ["temperature", "top_p", "seed"]
        evaluate(
            "m", "addition", **how, drop_fields=dropped, extra_body={"reasoning_effort": "low"}, out=tmp_path / "e"
        )
    assert {frozenset(body) for body in server.asked} == {
        frozenset(("model", "messages", "max_tokens", "reasoning_effort"))
    }
    plan = read_identity(tmp_path / "e")["plan"]
    assert plan["drop_fields"] == sorted(dropped) and plan["extra_body"] == {"reasoning_effort": "low"}


@pytest.mark.parametrize("heeds", ["max_completion_tokens", "neither"])
def test_a_token_limit_that_is_ignored_gets_its_other_name(heeds: str, caplog: pytest.LogCaptureFixture) -> None:
    def ignores(body: dict[str, Any]) -> Answer:
        return says("7", tokens=body.get(heeds, 90))

    with serving(ignores, as_is=True) as server:
        evaluate("m", "addition", base_url=server.url, limit=2)
    used = "max_completion_tokens" if heeds != "neither" else "max_tokens"
    assert all(
        used in body and len(body.keys() & {"max_tokens", "max_completion_tokens"}) == 1 for body in server.asked
    )
    assert caplog.text.count("the server ignores the token limit") == (heeds == "neither")


# --- reasoning that comes apart from the text -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"content": "7", "reasoning": " 3 and 4. "}, "3 and 4."),  # vLLM
        ({"content": "7", "reasoning_content": "3 and 4."}, "3 and 4."),  # SGLang, DeepSeek
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "3 and 4."}]}, {"text": "7"}]},
            "3 and 4.",
        ),
        ({"content": [{"type": "reasoning", "text": "3 and 4."}, {"type": "text", "text": "7"}]}, "3 and 4."),
        ({"content": "7", "reasoning": None, "reasoning_content": ""}, None),
        ({"content": "7", "reasoning": ["odd"], "reasoning_content": {"a": 1}}, None),
        ({"content": [{"type": "thinking", "thinking": 9}, {"type": ["odd"]}, "7"]}, None),
    ],
)
def test_reasoning_is_stored_and_shown_and_not_sent_back(
    fields: dict[str, Any], kept: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda body: says("", message={"role": "assistant", **fields})) as server:
        found = evaluate("m", "addition", base_url=server.url, limit=1, out=tmp_path / "e")
    assert [(turn.text, turn.reasoning) for turn in found.episodes[0].turns] == [("7", kept)] * 2
    assert "3 and 4" not in str(server.asked)
    assert [turn.get("reasoning") for turn in lines(tmp_path / "e", "attempts")[0]["turns"]] == [kept] * 2
    assert main(["show", str(tmp_path / "e")]) == 0
    assert ("8 characters of reasoning apart from the text" in capsys.readouterr().out) == (kept is not None)


def test_reasoning_in_place_of_every_answer_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    swallowed = says("", message={"role": "assistant", "content": None, "reasoning": "7"})
    with serving(lambda body: swallowed) as server:
        evaluate("m", "addition", base_url=server.url, limit=3)
    assert caplog.text.count("the server's reasoning parser takes its answers") == 1
