"""Whatever a model writes gets a verdict, is stored, read back and shown: no traceback, and no hang over its limit.

Examples are made from the pieces that answers are made of, damaged and glued in any order. The seed is fixed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from selfcorrect.engines import Reply, Sampling
from selfcorrect.engines.chat_api import ChatAPI
from selfcorrect.engines.completions_api import CompletionsAPI
from selfcorrect.engines.openai_chat import EndpointEngine
from selfcorrect.engines.server import Server
from selfcorrect.engines.transport import PassingError, RefusedError, parsed
from selfcorrect.report.episode_text import episode_text
from selfcorrect.storage.episode_log import StoredEpisode, StoredTurn
from selfcorrect.storage.files import json_line, read_jsonl
from selfcorrect.tasks import get_task
from selfcorrect.tasks.code.extraction import extract_program
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import Episode, Outcome, Split, StopReason, Turn, Verdict

pytestmark = pytest.mark.slow

MARKS = r"<think> </think> <answer> </answer> [BEGIN] [DONE] ```python ``` ~~~ . $ $$ #### \boxed{ \boxed } { | & \\ ; , ( ] ="
WORDS = "The answer is|Final Answer: The final answer is $|$. I hope it is correct.|Question:|wait, no|def f(x):|    return x"
LATEX = r"\frac \sqrt \text{ \left( \right] ^{ _ \% % \pi \infty \begin{pmatrix} \le \ln \cup \mathrm{ \circ ! \binom"
NUMBERS = "1 - 0 7 9^{9^{9^9}} 10^{400} 2010! 1/0 0^0 i x 1e999 nan inf 0.1 1,000 ５ ½ ²"
CODE = "import os|lambda|'|\"\"\"|#|\\|@|class A:|\t|\n|\n\n|if __name__ == '__main__':"
ODD = ("\x00", "\x1b[2J", "\r", "\u202e", "\ud800", "\udfff", "\U0001f600", "é", "−", "\u00a0", "\ufeff", "\u2028")
PIECES = (*MARKS.split(), *WORDS.split("|"), *LATEX.split(), *NUMBERS.split(), *CODE.split("|"), *ODD)
ANSWERS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join)
PHASES = (Phase.generate,)
"""A failing example is not shrunk: for programs and mathematics that takes longer than reading it."""
SOME = pytest.param(200, id="some")
MANY = pytest.param(10_000, id="many", marks=pytest.mark.nightly)


def with_examples(number: int, check: Callable[[str], None]) -> None:
    settings(max_examples=number, phases=PHASES)(given(ANSWERS)(check))()


@pytest.mark.parametrize("number", [SOME, MANY])
@pytest.mark.parametrize(
    "name",
    [
        *("gsm_symbolic", "arithmetic", "worked_sums", "worked_steps", "reasoning_gym:chain_sum"),
        pytest.param("micro_code", marks=pytest.mark.sandbox),
    ],
)
def test_every_answer_gets_a_verdict(name: str, number: int) -> None:
    """Answers go in batches of 50, because programs and mathematics are judged in other processes."""
    task = get_task(name)
    problem = task.problems(Split.TRAIN, seed=0, limit=1)[0]
    with Verifier(task, time_limit_s=20.0, workers=1) as verifier:

        def check(texts: list[str]) -> None:
            verdicts = verifier.verify([(problem, text) for text in texts])
            failed = [v.detail for v in verdicts if v.outcome in {Outcome.VERIFIER_FAILED, Outcome.TIMED_OUT}]
            assert not failed, (failed, texts)

        batches = st.lists(ANSWERS, min_size=50, max_size=50)
        settings(max_examples=max(1, number // 50), phases=PHASES)(given(batches)(check))()


@pytest.mark.parametrize("number", [SOME, MANY])
def test_a_program_is_found_or_not(number: int) -> None:
    def check(text: str) -> None:
        for mode in ("flexible", "strict"):
            program = extract_program(text, entry_point="f", mode=mode)
            assert program is None or program.strip()

    with_examples(number, check)


@pytest.mark.parametrize("number", [SOME, MANY])
def test_every_answer_is_stored_read_and_shown(number: int, tmp_path: Path) -> None:
    problem = get_task("addition").problems(Split.TRAIN, seed=0, limit=1)[0]
    log = tmp_path / "episodes.jsonl"

    def check(text: str) -> None:
        verdict = Verdict(Outcome.INCORRECT, text, text)
        turns = tuple(Turn((1,), (2,), (-0.1,), text, StopReason.END, verdict) for _ in range(2))
        record = StoredEpisode.of(Episode(problem, 0, turns), stage="s", step=1).to_json()
        log.write_text(json_line(record), encoding="utf-8")
        [line] = read_jsonl(log)
        stored = StoredEpisode.from_json(line)
        assert json.loads(json.dumps(stored.to_json())) == line
        shown = io.StringIO()
        Console(file=shown, force_terminal=False).print(episode_text(stored))
        shown.getvalue().encode("utf-8")
        assert not {c for c in shown.getvalue() if not c.isprintable()} - set("\n\t")

    with_examples(number, check)


LEAVES = st.sampled_from(
    [None, True, -5, 0, 10**400, 1.5, "", "5", "stop", "length", "assistant", "\ud800", "\x1b[2J", [], {}, "x" * 3000]
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
MESSAGES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("role", "content", "reasoning", "reasoning_content", "refusal", "type"), VALUES)
)
PROMPT = (3, 7)
IDS = st.lists(st.sampled_from([0, 5, 2, 2**31, -1, 10**400, True, 1.0, "5", None]), max_size=10)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "message": MESSAGES | VALUES,
        "finish_reason": VALUES,
        "stop_reason": VALUES,
        "token_ids": IDS | VALUES,
        "prompt_token_ids": st.just([3, 7]) | VALUES,
        "logprobs": st.fixed_dictionaries({}, optional={"token_logprobs": st.lists(VALUES, max_size=3)}) | VALUES,
    },
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(CHOICES | VALUES, max_size=3) | VALUES,
        "usage": st.fixed_dictionaries({}, optional={"completion_tokens": VALUES}) | VALUES,
        "model": VALUES,
        "error": VALUES,
    },
)
RAW = st.binary(max_size=40) | st.sampled_from(
    [b"", b"[" * 200_000, b'{"choices":' * 5000, b"\xff\xfe{}", b"9" * 10_000]
)


@pytest.mark.parametrize("number", [SOME, MANY])
@pytest.mark.parametrize("protocol", ["chat", "completions"])
def test_every_answer_of_a_server_is_a_reply_or_a_reason(protocol: str, number: int) -> None:
    server = Server("http://localhost:1/v1", "m", key="sk-secret-0123456789", extra_headers={"x": "in-the-header-9876"})
    api: Any = ChatAPI(server) if protocol == "chat" else CompletionsAPI([2])
    engine, sampling, replies = EndpointEngine[Any](server, api), Sampling(1.0, 8), list[Reply]()

    def check(body: object, raw: bytes | None, status: int, wait: str) -> None:
        content = json.dumps(body).encode() if raw is None else raw
        response = httpx.Response(status, content=content, headers={"retry-after": wait.encode("ascii", "ignore")})
        try:
            reply = engine.read(PROMPT, sampling, parsed(response, content, server, api.answer))
        except (PassingError, RefusedError) as error:
            said = str(error)
            assert said.strip() and not {c for c in said if not c.isprintable()} - set("\n")
            assert "sk-secret" not in said and "in-the-header" not in said
            return
        replies.append(reply)
        turn = Turn(
            *((), reply.ids, reply.logprobs, reply.text, reply.stop, Verdict(Outcome.INCORRECT)),
            counted=reply.counted,
            other_model=reply.other_model,
            reasoning=reply.reasoning,
        )
        assert len(reply.ids) == len(reply.logprobs) and all(math.isfinite(value) for value in reply.logprobs)
        assert json.loads(json_line(StoredTurn.of(turn).to_json())) is not None

    right = {"message": {"content": "5"}} if protocol == "chat" else {"token_ids": [5], "prompt_token_ids": [*PROMPT]}
    check({"choices": [right], "model": "n"}, None, 200, "")
    assert [(reply.text, reply.ids, reply.other_model) for reply in replies] == [
        ("5", (), "n") if protocol == "chat" else ("", (5,), "n")
    ], "a right answer is a reply"
    waits = st.sampled_from(["", "3", "1e400", "nan", "-1", "Wed, 21 Oct 99999 07:28:00 GMT"]) | st.text(max_size=8)
    statuses = st.sampled_from([200, 200, 200, 400, 404, 429, 500, 503, 204, 302])
    settings(max_examples=number, phases=PHASES)(given(BODIES | VALUES, st.none() | RAW, statuses, waits)(check))()
