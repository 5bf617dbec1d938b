"""Evaluations over HTTP, on a server that misbehaves as told; `test_endpoint_server.py` has a real one."""

from __future__ import annotations

import asyncio
import base64
import codecs
import gzip
import html
import itertools
import json
import logging
import re
import socket
import struct
import threading
from collections import Counter, deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import Answer, ChatServer, fails, says, serving

from selfcorrect.__main__ import main
from selfcorrect.engines import openai_chat as endpoint
from selfcorrect.engines.untrusted import BODY_LIMIT, shown
from selfcorrect.errors import ConfigError, DataError, EndpointError, InterruptedRun, ModelError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.evaluation.compare import compare, comparison_text
from selfcorrect.evaluation.early_episodes import early_file
from selfcorrect.evaluation.evaluate import evaluate
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.report import write_report
from selfcorrect.rollout.chat_rollout import _finished
from selfcorrect.script import UserTurn
from selfcorrect.storage.episode_log import read_episodes
from selfcorrect.storage.evaluation_dir import read_identity
from selfcorrect.tasks import get_task
from selfcorrect.types import Outcome, Role, Split, StopReason

KEY = "sk-not-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = endpoint.Server.__init__.__defaults__
    assert settings is not None and settings[-1] == 0.5
    monkeypatch.setattr(endpoint.Server.__init__, "__defaults__", (*settings[:-1], 0.01))


def total(body: dict[str, Any]) -> str:
    """The right answer to the first question of a conversation."""
    question = next(message["content"] for message in body["messages"] if message["role"] == "user")
    a, b = re.findall(r"\d+", question)
    return f"{int(a) + int(b):07d}"


def wrong_then_right(body: dict[str, Any]) -> Answer:
    return says(
        "0" if body["messages"][-1]["role"] == "user" and len(body["messages"]) < 3 else total(body),
        tokens=len(body["messages"]),
    )


def message(**fields: Any) -> Answer:
    """An answer whose message has these fields alone."""
    return says("", message={"role": "assistant", **fields})


def measure(server: ChatServer, **settings: Any) -> Any:
    return evaluate("m", "addition", **{"base_url": server.url, "limit": 6, "max_tokens": 8, **settings})


def command(server: ChatServer, out: Path, *more: str) -> list[str]:
    given = ["--base-url", server.url, "--model", "m", "--task", "addition", "--limit", "4", "--max-tokens", "8"]
    return ["eval", *given, "--out", str(out), "-q", *more]


# --- the conversation -------------------------------------------------------------------------------


def test_the_second_turn_sends_the_conversation_back(tmp_path: Path) -> None:
    with serving(wrong_then_right) as server:
        found = measure(server, limit=2, system="Be brief.", revise=[UserTurn("Any error?", Role.FEEDBACK), "Again."])
    first = found.episodes[0]
    asked = sorted((body for body in server.asked if first.prompt in str(body)), key=lambda b: len(b["messages"]))
    assert [[m["role"] for m in body["messages"]] for body in asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user", "assistant", "user", "assistant", "user"],
    ]
    said = [m["content"] for m in asked[-1]["messages"]]
    assert said[0] == "Be brief." and said[2] == first.attempts[0].text
    assert said[3:6:2] == ["Any error?", "Again."]
    assert said[4] == first.turns[1].text
    assert [turn.role for turn in first.turns] == [Role.ATTEMPT, Role.FEEDBACK, Role.ATTEMPT]
    assert asked[0] | {"messages": 0} == {"model": "m", "messages": 0, "max_tokens": 8, "temperature": 0.0}


def test_figures_lengths_and_context_mode() -> None:
    with serving(wrong_then_right) as server:
        found = measure(server).to_json()
    assert (found["acc_t1"], found["acc_t2"], found["i_to_c"], found["context_mode"]) == (0.0, 1.0, 1.0, "messages")
    assert [turn["mean"] for turn in found["lengths"]] == [1.0, 3.0]  # as many tokens as there were messages, it says
    assert found["tokens_per_problem"] == 4.0


@pytest.mark.parametrize(
    ("answer", "text", "stop", "length"),
    [
        (says("  7\n"), "7", "end", 3),
        (says("7", finish="length", tokens=8), "7", "length", 8),
        (says("7", stop_reason="."), "7", "stop", 3),
        (says("7", stop_reason=151645), "7", "end", 3),
        (says(None, finish="content_filter", tokens=None), "", "end", None),
        (says([{"type": "text", "text": "5"}]), "5", "end", 3),
        (
            says([{"type": "thinking", "thinking": [{"type": "text", "text": "9"}]}, {"text": " 4"}, "2"]),
            "42",
            "end",
            3,
        ),
        (says([]), "", "end", 3),
        (message(content=None, reasoning_content="It is 9."), "", "end", 3),
        (message(content=None, refusal="I will not add."), "I will not add.", "end", 3),
        (message(), "", "end", 3),
        (says("7", finish=["odd"], tokens=4.0), "7", "end", 4),
        *((says("7", tokens=odd), "7", "end", None) for odd in (-5, 10**399, "12", True, 1.5, [3], 2**40)),
        (Answer(b'{"choices": [{"message": {"content": "7"}}], "usage": [1]}'), "7", "end", None),
        (Answer(gzip.compress(says("7").body), headers={"Content_Encoding": "gzip"}), "7", "end", 3),
        (Answer(codecs.BOM_UTF8 + says("7").body), "7", "end", 3),
        (Answer(says("7").body, headers={"Content_Type": "application/json; charset=ebcdic-13"}), "7", "end", 3),
    ],
)
def test_a_reply_as_stored(answer: Answer, text: str, stop: str, length: int | None) -> None:
    with serving(lambda body: answer) as server:
        found = measure(server, limit=1, turns=1, stop=["."])
    (turn,) = found.episodes[0].to_json()["turns"]
    assert (turn["text"], turn["tokens"], turn["stop"], turn["token_count"]) == (text, [], stop, length)
    assert found.results.turns[0].truncated == (stop == "length")
    assert bool(found.to_json()["lengths"]) == (length is not None)
    assert found.to_json().get("tokens_per_problem") == length
    assert server.asked[0]["stop"] == ["."]


def test_samples_have_seeds_of_their_own_that_are_the_same_again() -> None:
    with serving(wrong_then_right) as server:
        for seed in (0, 0, 1):
            found = measure(server, limit=3, samples=4, temperature=0.7, seed=seed)
    assert len(found.episodes) == 12
    assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(0.7, 1.0)}
    runs = [Counter(body["seed"] for body in server.asked[i : i + 24]) for i in (0, 24, 48)]
    assert runs[0] == runs[1] and len(runs[0]) == 24 and not runs[0].keys() & runs[2].keys()
    assert all(0 <= seed < 2**31 for seed in runs[0])


def test_controls_work_on_texts() -> None:
    with serving(lambda body: says(total(body))) as server:
        found = measure(server, limit=3, controls=True)
    controls = found.to_json()["controls"]
    assert controls["draft_swap"]["n"] == controls["independent_resample"]["n"] == 3
    own = {episode.prompt: episode.attempts[0].text for episode in found.episodes}
    shown = [
        (body["messages"][0]["content"], body["messages"][1]["content"])
        for body in server.asked[6:]
        if len(body["messages"]) > 1 and "seed" not in body
    ]
    prompts = list(own)  # requests arrive in any order
    for prompt, following in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
        seen = {draft for asked, draft in shown if asked == prompt}
        assert {"", own[following]} < seen, "an empty draft, and the next problem's"
        assert [*map(sorted, seen - {"", own[following]})] == [sorted(own[prompt])], "the own draft, shuffled"


def test_options_of_the_chat_template_are_sent_and_recorded(tmp_path: Path) -> None:
    with serving(wrong_then_right) as server:
        measure(server, limit=1, chat_template_kwargs={"enable_thinking": False}, out=tmp_path / "e")
        assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in server.asked + server.checks)
        assert read_identity(tmp_path / "e")["plan"]["chat_template_kwargs"] == {"enable_thinking": False}
        server.asked.clear()
        measure(server, limit=1)
    assert not any("chat_template_kwargs" in body for body in server.asked)


def test_only_so_many_requests_at_a_time() -> None:
    five = threading.Barrier(5, timeout=60)  # lets nobody pass until five are there

    def together(body: dict[str, Any]) -> Answer:
        if body["max_tokens"] > 1:
            five.wait()
        return wrong_then_right(body)

    with serving(together) as server:
        measure(server, limit=20, max_num_seqs=5)
    assert server.most_at_once == 5
    assert len(server.asked) == 40


# --- bad days ---------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client means to wait before each further attempt; it does not wait."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay: float, result: Any = None) -> Any:
        if delay:
            found.append(delay)
        return await sleep(0, result)

    monkeypatch.setattr(asyncio, "sleep", noted)
    return found


def test_a_busy_server_is_asked_again_and_not_before_it_wants_to_be(waits: list[float]) -> None:
    asked = itertools.count(1)

    def busy(body: dict[str, Any]) -> Answer:
        return {2: fails(429, retry_after="100"), 3: fails(503)}.get(next(asked), says("1"))

    with serving(busy) as server:
        measure(server, limit=1, turns=1)
    assert next(asked) == 5, "the check, two failures, the answer"
    wanted, unasked = waits
    assert wanted >= 100
    assert 0 < unasked <= 60, "by its own growing waits alone"


def test_a_server_that_asks_for_hours_is_given_up() -> None:
    with (
        serving(lambda body: fails(429, "tomorrow", retry_after="7200")) as server,
        pytest.raises(EndpointError) as told,
    ):
        measure(server)
    assert "status 429" in str(told.value) and "tomorrow" in str(told.value)
    assert len(server.checks) == 1


def test_what_was_done_is_kept_and_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    up = threading.Event()

    def breaks(body: dict[str, Any]) -> Answer:
        return wrong_then_right(body) if up.is_set() or len(server.asked) <= 5 else fails(500, "out of memory")

    with serving(breaks) as server:
        arguments = command(server, tmp_path / "e", "--max-num-seqs", "1", "--retries", "2")
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert re.search(r"problem '\d+\+\d+', turn 2: ", told)
        assert "failed after 3 attempts" in told and "out of memory" in told and "the same command resumes" in told
        stored = (tmp_path / "e/episodes/eval-attempts.jsonl").read_text().splitlines()
        assert len(stored) == 2, "two conversations of two turns; the third broke in its second turn"
        repeated = Counter(json.dumps(body["messages"]) for body in server.asked)
        assert sorted(repeated.values())[-2:] == [1, 3], "the request that failed was made three times"
        up.set()
        server.asked.clear()
        assert main(arguments) == 0
        assert len(server.asked) == 2 * 2, "the other two, and nothing twice"
        server.asked.clear()
        server.checks.clear()
        assert main(arguments) == 0, "finished: shown again, without the server"
        assert not server.asked and not server.checks
    assert "context mode messages" in capsys.readouterr().out


def test_what_was_finished_before_a_failure_comes_first() -> None:
    futures = [Future[Any]() for _ in range(4)]
    for future in futures[:2]:
        future.set_result([])
    futures[2].set_exception(EndpointError("down"))
    begun: Any = deque(zip("abcd", futures, strict=True))
    assert [name for name, _ in _finished(begun)] == ["a", "b"]
    with pytest.raises(EndpointError):
        _finished(begun)


def test_a_stop_keeps_what_is_done(tmp_path: Path) -> None:
    with serving(wrong_then_right) as server:
        written: list[int] = []
        callbacks = Callbacks(
            on_progress=lambda what, done, count: written.append(done),
            should_stop=lambda: 15 if written and written[-1] >= 5 else None,
        )
        with pytest.raises(InterruptedRun):
            measure(server, limit=100, out=tmp_path / "e", callbacks=callbacks)
        lines = (tmp_path / "e/episodes/eval-attempts.jsonl").read_text().splitlines()
        assert 5 <= len(lines) == written[-1] < 100
        early = early_file(tmp_path / "e/episodes/eval-attempts.jsonl")
        done = len(lines) + (len(early.read_text().splitlines()) if early.exists() else 0)
        asked = len(server.asked)
        measure(server, limit=100, out=tmp_path / "e")
        assert len(server.asked) - asked == 2 * (100 - done)


def test_time_limits_hold_for_a_server_that_trickles() -> None:
    gave_up, answered = threading.Event(), []

    def late(body: dict[str, Any]) -> Answer:
        if body["max_tokens"] > 1:
            gave_up.wait(60)
            answered.append(body)
        return says("1")

    with serving(late) as server:
        with pytest.raises(EndpointError, match=r"failed after 1 attempt; the last error: no answer within 0.2 s"):
            measure(server, limit=1, request_timeout=0.2, retries=0)
        assert not answered, "it gives up before the server answers"
        gave_up.set()


def test_the_time_limit_is_for_the_whole_answer() -> None:
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def drip() -> None:
            """A byte every 50 ms, for a minute: no single read ever takes long."""
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    try:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1200\r\n\r\n")
                        while not stop.wait(0.05):
                            connection.sendall(b" ")
                    except OSError:
                        pass

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(EndpointError, match=r"no answer within 0.4 s"):
                evaluate(
                    "m", "addition", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", request_timeout=0.4
                )
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "garbage",
    [Answer(b"<html>Welcome</html>"), Answer(b""), Answer(b"{}"), Answer(b'{"choices": []}'), Answer(b"\xff\xfe")],
    ids=["html", "empty", "no choices", "no choice", "no text"],
)
def test_garbage_is_no_reply(garbage: Answer) -> None:
    with serving(lambda body: garbage if body["max_tokens"] > 1 else says("1")) as server:
        with pytest.raises(
            EndpointError, match="failed after 2 attempts; the last error: the answer does not come from"
        ):
            measure(server, limit=1, retries=1)
        assert len(server.asked) == 2


def test_a_first_request_is_not_repeated_where_no_chat_server_answers() -> None:
    with serving(lambda body: Answer(b"<html>Welcome</html>")) as server:
        with pytest.raises(EndpointError, match="not come from an OpenAI-compatible server: <html>Welcome</html>"):
            measure(server)
        assert len(server.checks) == 1


# --- refused before the work starts -----------------------------------------------------------------


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and len(err.splitlines()) == 1
    return status, err


def test_a_server_that_is_down_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    with serving(wrong_then_right) as server:
        pass
    status, told = refusal(command(server, tmp_path / "e"), capsys)
    assert status == 1 and "cannot be reached" in told and f"{server.url}: " in told and "Is it running" in told
    assert waits == [], "nobody waits for a server that is not there"
    assert not (tmp_path / "e/eval.json").exists()


def test_without_retries_nobody_speaks_of_another_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body: fails(503, "too many")) as server:
        loud = [word for word in command(server, tmp_path / "e") if word != "-q"]
        status, told = refusal([*loud, "--retries", "0"], capsys)
    assert status == 1 and len(server.checks) == 1
    assert told.endswith("status 503: too many.\n")


def test_a_wrong_name_is_told_beside_the_right_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body: fails(404, "The model `m` does not exist."), models=["a", "b"]) as server:
        status, told = refusal(command(server, tmp_path / "e"), capsys)
    assert status == 2
    assert "The model `m` does not exist." in told and "It serves a, b, not 'm'." in told


def test_a_wrong_address_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(wrong_then_right) as server:
        server.url = server.url.removesuffix("/v1")
        status, told = refusal(command(server, tmp_path / "e"), capsys)
    assert status == 2 and "status 404" in told and "Base URLs usually end in /v1." in told


def test_the_key_is_sent_and_is_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    good, echo = threading.Event(), KEY
    good.set()

    def answer(body: dict[str, Any]) -> Answer:
        return wrong_then_right(body) if good.is_set() else fails(401, "x" * 265 + f"Incorrect API key: {echo}")

    with serving(answer) as server:
        assert main(command(server, tmp_path / "e", "--key-env", "MY_KEY", "-v")) == 0
        assert server.keys == {f"Bearer {KEY}"}
        good.clear()
        assert main(command(server, tmp_path / "f", "--key-env", "MY_KEY", "--debug")) == 2
        echo = "none"
        assert main(command(server, tmp_path / "g", "--debug")) == 2
        assert server.keys == {f"Bearer {KEY}", None}
    out, err = capsys.readouterr()
    assert "status 401" in err
    assert "The key in the environment variable MY_KEY was not accepted." in err
    assert "No key was sent, because it was not found in the environment variable OPENAI_API_KEY." in err
    found = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert (tmp_path / "e/summary.json") in found
    for text in [out, err, *(file.read_text() for file in found), repr(endpoint.Server("u", "m", KEY))]:
        assert KEY[:12] not in text
        assert "MY_KEY" not in text or text == err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "not the address of a server"),
        ("http://", "not the address of a server"),
        ("http://host:port/v1", "not the address of a server"),
        ("http://two words/v1", "not the address of a server"),
        ("http://user:secret@host/v1", "holds a user, a password"),
        ("http://host/v1?api_key=secret", "holds a user, a password"),
    ],
)
def test_base_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        evaluate("m", "addition", base_url=url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bfloat16"}, "only for a model in this process"),
        ({"device": "cpu"}, "only for a model in this process"),
        ({"retries": -1}, "retries = -1"),
        ({"request_timeout": 0.0}, "request_timeout = 0.0"),
        ({"key_env": "NOT_SET_ANYWHERE"}, "environment variable is not set"),
        ({"base_url": None, "retries": 1}, "retries: only for a model on a server"),
        ({"model": "http://127.0.0.1:9/v1"}, "the name of a model on that server"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    given = {"model": "m", "base_url": "http://127.0.0.1:9/v1", **settings}
    with pytest.raises(ConfigError, match=message):
        evaluate(given.pop("model"), "addition", **given)


def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nInjected: 1")
    with pytest.raises(ConfigError, match="characters that an HTTP header cannot hold") as told:
        evaluate("m", "addition", base_url="http://127.0.0.1:9/v1")
    assert KEY not in str(told.value)


def test_the_token_limit_by_its_newer_name() -> None:
    def newer(body: dict[str, Any]) -> Answer:
        if "max_tokens" in body:
            return fails(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return wrong_then_right(body)

    with serving(newer) as server:
        measure(server)
    assert len(server.checks) == 2
    assert {body["max_completion_tokens"] for body in server.asked} == {8}


def test_a_request_that_is_refused_later_names_its_problem() -> None:
    def full(body: dict[str, Any]) -> Answer:
        return fails(400, "context length exceeded") if len(body["messages"]) > 1 else says("1")

    with serving(full) as server, pytest.raises(ModelError, match=r"problem '.*', turn 2: .* context length exceeded"):
        measure(server)


# --- one bad request ---------------------------------------------------------------------------------


def bomb() -> Answer:
    """Some 20 kB that decompress to more than the limit."""
    return Answer(gzip.compress(b" " * (BODY_LIMIT + 1)), headers={"Content_Encoding": "gzip"})


BAD = {
    "too long": (fails(400, "This model's maximum context length is 64 tokens."), "status 400: This model's maximum"),
    "filtered": (fails(403, "flagged"), "status 403: flagged"),
    "too large": (fails(413, "large"), "status 413"),
    "not to be processed": (fails(422, "unprocessable"), "status 422"),
    "crash on this prompt": (fails(500, "division by zero"), "status 500: division by zero"),
    "no text in it": (Answer(b'{"choices": []}'), "does not come from an OpenAI-compatible server"),
    "content of no known kind": (says({"text": "5"}), "does not come from an OpenAI-compatible server"),
    "an error in a success": (Answer(b'{"error": {"message": "upstream gave up"}}'), "upstream gave up"),
    "deep": (Answer(b"[" * 200_000), "does not come from"),
    "deep refusal": (Answer(b"[" * 200_000, 400), "status 400: [["),
    "undefined charset": (Answer(b"no", 400, {"Content_Type": "text/plain; charset=ebcdic-13"}), "status 400: no"),
    "endless": (Answer(b"a" * (BODY_LIMIT + 1)), "longer than 16 MiB"),
    "bomb": (bomb(), "longer than 16 MiB"),
    "compressed as nobody asked": (Answer(b"abc", headers={"Content_Encoding": "br"}), "compressed as 'br'"),
    "not compressed at all": (
        Answer(b"abc", headers={"Content_Encoding": "gzip"}),
        "said to be compressed, but is not",
    ),
}


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize(("answer", "reason"), BAD.values(), ids=BAD)
def test_one_request_that_fails_for_good_is_an_episode_without_an_answer(
    answer: Answer, reason: str, turn: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = get_task("addition").problems(Split.TEST, seed=0, limit=4)
    third = problems[2].prompt

    def picky(body: dict[str, Any]) -> Answer:
        bad = body["messages"][0]["content"] == third and len(body["messages"]) == 2 * turn - 1
        return answer if bad else says(total(body))

    with serving(picky) as server:
        arguments = command(server, tmp_path / "e", "--retries", "1")
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert (
            f"did not answer in 1 of 4 conversations, which count as without an answer; the first, problem {third!r}"
            in out
        )
        assert f"turn {turn}: " in out and reason in out
        summary = json.loads((tmp_path / "e/summary.json").read_text())["results"]["model"]
        assert (summary["acc_t1"], summary["acc_t2"]) == (0.75 if turn == 1 else 1.0, 0.75)
        assert summary["lengths"], "known of the answers that there were"
        asked = len(server.asked)
        assert main(arguments) == 0 and len(server.asked) == asked, "finished"
    bad = list(read_episodes(tmp_path / "e/episodes/eval-attempts.jsonl"))[2]
    assert [a.stop for a in bad.attempts] == [StopReason.FAILED if k + 1 >= turn else StopReason.END for k in (0, 1)]
    assert bad.attempts[1].judged.outcome is Outcome.NO_ANSWER and reason in bad.attempts[1].judged.detail
    assert rescore(tmp_path / "e").evaluation.to_json()["failed_requests"] == summary["failed_requests"]


def test_a_first_problem_that_does_not_fit_is_one_bad_request_too() -> None:
    rows = [{"prompt": f"{'0' * length}7+1", "answer": "8"} for length in (50, 3, 1, 2)]

    def small(body: dict[str, Any]) -> Answer:
        return fails(400, "too long") if len(body["messages"][0]["content"]) > 40 else says("8")

    with serving(small) as server:
        found = evaluate("m", rows, verifier=lambda text, reference, row: text == reference, base_url=server.url)
    assert found.results.acc_t1 == 0.75
    assert found.failures is not None and (found.failures.episodes, found.failures.of) == (1, 4)


def test_a_failed_draft_is_swapped_as_a_failure(tmp_path: Path) -> None:
    second = get_task("addition").problems(Split.TEST, seed=0, limit=4)[1].prompt

    def picky(body: dict[str, Any]) -> Answer:
        if not all(message["content"] for message in body["messages"]):
            return fails(400)  # so the control with an empty draft is left out
        return fails(400) if body["messages"][0]["content"] == second else says(total(body))

    with serving(picky) as server:
        found = measure(server, limit=4, controls=True, failed_limit=1.0, out=tmp_path / "e")
    assert found.controls["draft_swap"].acc_t2 == 0.5, (
        "the second problem, and the first, whose draft would be the second's"
    )
    sent = [m["content"] for body in server.asked for m in body["messages"]]
    assert sent.count("") == 1, (
        "a text that does not exist is not sent, but for the question whether the server takes it"
    )
    assert found.controls["shuffled_draft"].acc_t2 == 0.75 and "empty_draft" not in found.controls


def test_too_many_bad_requests_stop_and_the_same_command_sends_them_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = threading.Event()
    full.set()

    def picky(body: dict[str, Any]) -> Answer:
        return (
            fails(400, "no room")
            if full.is_set() and len(server.asked) > 2 and body["max_tokens"] > 1
            else says(total(body))
        )

    with serving(picky) as server:
        arguments = command(server, tmp_path / "e", "--max-num-seqs", "1")
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert "3 of 4 conversations have no answer, more than failed_limit = 0.5 allows" in err
        assert "no room" in err and "the same command resumes from here" in err
        assert "PARTIAL: the attempts at all 4 problems are there, but the evaluation stopped" in out
        assert not (tmp_path / "e/summary.json").exists()
        full.clear()
        server.asked.clear()
        assert main(arguments) == 0
        assert len(server.asked) == 2 * 3, "those that failed, and nothing twice"
        assert "did not answer" not in capsys.readouterr().out
    stored = list(read_episodes(tmp_path / "e/episodes/eval-attempts.jsonl"))
    assert [e.problem_id for e in stored] == [p.id for p in get_task("addition").problems(Split.TEST, seed=0, limit=4)]
    assert all(attempt.judged.correct for e in stored for attempt in e.attempts)


def test_a_higher_limit_takes_them_as_they_are(tmp_path: Path) -> None:
    with serving(lambda body: fails(400) if body["max_tokens"] > 1 else says("1")) as server:
        arguments = command(server, tmp_path / "e")
        assert main(arguments) == 1
        assert main([*arguments, "--set", "failed_limit=1"]) == 0


def test_what_an_unfinished_evaluation_has_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down = threading.Event()

    def breaks(body: dict[str, Any]) -> Answer:
        if len(server.asked) > 4:
            down.set()
        return fails(503, "gone") if down.is_set() else says(total(body))

    with serving(breaks) as server:
        arguments = command(server, tmp_path / "e", "--max-num-seqs", "1", "--retries", "0")
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert "PARTIAL: the evaluation stopped after 2 of 4 problems." in out
        assert "Greedy decoding, n = 2." in out and "100.0" in out
        assert "gone" in err
        assert main([*arguments, "--json"]) == 1
        assert capsys.readouterr().out == ""


# --- what a server says ------------------------------------------------------------------------------


def percent(text: str) -> str:
    return "".join(f"%{ord(c):02x}" for c in text)


SECRET = "sk-not/to+be=seen-0123456789"
ECHOES = {
    "as it is": SECRET,
    "with percent signs": percent(SECRET),
    "twice": percent(percent(SECRET)),
    "as JSON": "".join(f"\\u{ord(c):04x}" for c in SECRET),
    "slashes escaped": SECRET.replace("/", "\\/"),
    "as HTML": "".join(f"&#{ord(c)};" for c in SECRET),
    "as HTML, in hex": "".join(f"&#x{ord(c):x};" for c in SECRET),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 of the header": base64.b64encode(f"Bearer {SECRET}".encode()).decode(),
    "base64 for URLs": base64.urlsafe_b64encode(f"x{SECRET}".encode()).decode().rstrip("="),
    "hex": SECRET.encode().hex(),
    "in other letters": SECRET.upper(),
    "its greater part": SECRET[5:],
    "coloured": "\x1b[1m".join(SECRET),
    "spaced": " ".join(SECRET),
    "bytes": "".join(f"\\x{ord(c):02x}" for c in SECRET),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("form", ["json", "plain"])
def test_the_key_is_not_shown_in_any_encoding(
    echo: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    refused = fails(401, f"Wrong key: {echo}") if form == "json" else Answer(f"Wrong key: {echo}".encode(), 401)
    with serving(lambda body: refused) as server:
        assert main(command(server, tmp_path / "e", "--key-env", "MY_KEY", "--debug")) == 2
    err = capsys.readouterr().err
    assert "status 401" in err and "was not accepted" in err
    assert echo[:40] not in err and SECRET[5:15].casefold() not in err.casefold()


def test_an_ordinary_message_is_not_withheld() -> None:
    for key in ("EMPTY", "x", "sk-no-key-required", SECRET):
        assert shown('{"detail": "Field required: no such model, empty"}', key).startswith("Field re")
    assert shown("Incorrect API key provided: sk-n****6789.", SECRET) == "Incorrect API key provided: sk-n****6789."
    assert html.unescape("&#115;") == "s"


def test_nothing_that_acts_on_a_terminal_is_printed_or_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b]0;owned\x07\x1b[2J\x1b[31mno\x9b1A \x1b]52;c;YQ==\x1b\\such\x00 \u202emodel\r\b\u2028here"
    third = get_task("addition").problems(Split.TEST, seed=0, limit=4)[2].prompt

    def picky(body: dict[str, Any]) -> Answer:
        return fails(400, bad) if body["messages"][0]["content"] == third else says(total(body))

    with serving(picky) as server:
        assert main(command(server, tmp_path / "e")) == 0
    with serving(lambda body: fails(404, bad), models=["a\x1b[2Jb"]) as server:
        assert main(command(server, tmp_path / "f")) == 2
    with serving(lambda body: Answer(bad.encode(), 500)) as server:
        assert main(command(server, tmp_path / "g", "--retries", "0")) == 1
    out, err = capsys.readouterr()
    stored = "".join(file.read_text() for file in tmp_path.rglob("*.json*"))
    assert "no such model here" in out and "no such model here" in err and "It serves ab" in err
    assert "no such model here" in stored
    for text in (out, err, stored):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "\\u001b" not in text and "owned" not in text


def test_an_answer_under_another_name_is_noticed_once_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def other(body: dict[str, Any]) -> Answer:
        return Answer(json.dumps({**json.loads(says(total(body)).body), "model": "m-mini"}).encode())

    with serving(other) as server, caplog.at_level(logging.WARNING):
        found = measure(server, out=tmp_path / "e")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "'m-mini'" in warning and "'m' was requested" in warning
    assert found.to_json()["other_models"] == ["m-mini"]
    assert json.loads((tmp_path / "e/summary.json").read_text())["results"]["model"]["other_models"] == ["m-mini"]
    with serving(wrong_then_right) as server:
        assert "other_models" not in measure(server).to_json()


def test_another_name_is_remembered_when_an_evaluation_is_resumed_or_rescored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the second problem is answered by another model, and the server fails at the fourth."""
    problems = [problem.prompt for problem in get_task("addition").problems(Split.TEST, seed=0, limit=4)]
    broken = True

    def sometimes(body: dict[str, Any]) -> Answer:
        number = problems.index(body["messages"][0]["content"])
        if broken and number == 3:
            return fails(400)
        body = {**json.loads(says(total(body)).body), "model": "m-mini" if number == 1 else "m"}
        return Answer(json.dumps(body).encode())

    with serving(sometimes) as server:
        options = {"limit": 4, "max_num_seqs": 1, "failed_limit": 0, "out": tmp_path / "e"}
        with pytest.raises(EndpointError):
            measure(server, **options)
        broken = False
        assert measure(server, **options).to_json()["other_models"] == ["m-mini"]
        asked = len(server.asked)
        assert measure(server, **options).other_models == ["m-mini"], "a finished one too"
        assert len(server.asked) == asked
    assert rescore(tmp_path / "e").evaluation.other_models == ["m-mini"]
    assert json.loads((tmp_path / "e/summary.json").read_text())["results"]["model"]["other_models"] == ["m-mini"]
    second = list(read_episodes(tmp_path / "e/episodes/eval-attempts.jsonl"))[1]
    assert [turn.other_model for turn in second.turns] == ["m-mini", "m-mini"]
    capsys.readouterr()
    assert main(["show", str(tmp_path / "e"), "--problem", second.problem_id]) == 0
    assert "stop: end, answered as m-mini" in capsys.readouterr().out
    write_report([tmp_path / "e"], tmp_path / "page.html")
    assert "answered as m-mini" in (tmp_path / "page.html").read_text()
    with serving(lambda body: says(total(body))) as server:
        measure(server, limit=4, out=tmp_path / "plain")
    found = comparison_text(compare(tmp_path / "e", tmp_path / "plain"), "e", "plain")
    assert "differs: other_models: ['m-mini'] in A, None in B" in found


@pytest.mark.parametrize("said", ["7 \ud800", "\udfff", "a\ud83dz 7 \U0001f600", "\\ud800", "\x00\x1b[2J7"])
def test_an_answer_of_any_characters_is_measured_stored_shown_and_sent_back(
    said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model may say half of a character. Files and requests cannot hold it, so it becomes visible text."""
    visible = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):x}", said)

    def answer(body: dict[str, Any]) -> Answer:
        found = json.loads(says(said, finish=f"st{said}").body)
        return Answer(json.dumps({**found, "model": f"m{said}", "usage": {"completion_tokens": said}}).encode())

    path = str(tmp_path / "e")
    with serving(answer) as server:
        found = measure(server, limit=2, turns=3, out=path)
        assert [turn.text for turn in found.episodes[0].turns] == [visible.strip()] * 3
        assert {m["content"] for body in server.asked for m in body["messages"] if m["role"] == "assistant"} == {
            visible.strip()
        }
        assert measure(server, limit=2, turns=3, out=path).results == found.results
    for command in (
        ["show", path],
        ["report", path, "--out", str(tmp_path / "page.html"), "--tables", "text"],
        ["compare", path, path],
        ["rescore", path],
        ["export", path, "--out", str(tmp_path / "log.json")],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.encode()


@pytest.mark.parametrize(
    "message", [b"too long \\ud800 \\udfff", b"too long \xed\xa0\x80 \xff", b"\\u0000 too long \\ude00\\ud83d"]
)
def test_a_rejection_of_any_characters_is_stored_and_shown(
    message: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = get_task("addition").problems(Split.TEST, seed=0, limit=4)[2].prompt

    def picky(body: dict[str, Any]) -> Answer:
        if body["messages"][0]["content"] == third:
            return Answer(b'{"error": {"message": "' + message + b'"}}', 400)
        return says(total(body))

    with serving(picky) as server:
        assert main(command(server, tmp_path / "e")) == 0
        assert main(command(server, tmp_path / "f", "--set", "failed_limit=0")) == 1
    for shown_by in (
        ["show", str(tmp_path / "e")],
        ["report", str(tmp_path / "e"), "--out", str(tmp_path / "page.html")],
    ):
        assert main(shown_by) == 0
    out, err = capsys.readouterr()
    assert "too long" in out and "too long" in err and "This is a bug" not in err
    (out + err).encode()


def test_a_connection_that_ends_without_a_word_has_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.settimeout(60)
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(EndpointError, match=r"cannot be reached \(\w.*\)"):
            evaluate("m", "addition", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", limit=1)
        thread.join()


# --- the server by its address alone ----------------------------------------------------------------


def test_a_url_is_a_model_where_one_is_served(tmp_path: Path) -> None:
    with serving(wrong_then_right) as server:
        evaluate(server.url, "addition", limit=2, max_tokens=8, out=tmp_path / "e")
        assert {body["model"] for body in server.asked} == {"m"}
        count = len(server.asked)
        evaluate("m", "addition", base_url=f"{server.url}/", limit=2, max_tokens=8, out=tmp_path / "e")
        assert len(server.asked) == count, "both ways to say it mean the same evaluation"
        server.models = ["a", "b"]
        with pytest.raises(ModelError, match="serves a, b: choose one"):
            evaluate(server.url, "addition")
    with pytest.raises(EndpointError, match="did not list its models"):
        evaluate(server.url, "addition")


# --- context modes ----------------------------------------------------------------------------------


def test_context_modes_are_not_mixed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.models import tiny_model

    monkeypatch.chdir(tmp_path)
    tiny_model().save(tmp_path / "tiny")
    evaluate("tiny", "addition", limit=4, max_tokens=8, out="local", device="cpu")
    with serving(wrong_then_right) as server:
        measure(server, limit=4, out="served")
        with pytest.raises(Exception, match="context_mode: 'tokens' there, 'messages' requested"):
            measure(server, limit=4, out="local")
    assert read_identity(Path("local"))["context_mode"] == "tokens"
    identity = read_identity(Path("served"))
    assert identity["context_mode"] == "messages"
    assert identity["endpoint"] == {"base_url": server.url, "model": "m"}
    with pytest.raises(DataError, match="context_mode: 'tokens' in local, 'messages' in served"):
        compare("local", "served")
    text = comparison_text(compare("local", "served", across_modes=True), "local", "served")
    assert "The context modes differ" in text
    assert main(["compare", "local", "served"]) == 2
    assert main(["compare", "local", "served", "--across-modes"]) == 0
    assert "The context modes differ" not in comparison_text(compare("served", "served"), "served", "served")
    write_report([Path("local"), Path("served")], Path("page.html"))
    assert "served, context mode messages" in Path("page.html").read_text()
    before = json.loads(Path("served/summary.json").read_text())["results"]
    assert rescore("served").to_json()["results"] == before
    capsys.readouterr()
    assert main(["show", "served"]) == 0
    assert "3 tokens, stop: end" in capsys.readouterr().out
