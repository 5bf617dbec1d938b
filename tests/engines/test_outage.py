"""What is said while a server does not answer."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
from support.chat_server import Answer, fails, says, serving

from selfcorrect.engines import outage
from selfcorrect.engines.outage import Outage
from selfcorrect.evaluation.evaluate import evaluate


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "selfcorrect")
    return caplog


def test_one_line_for_a_change_and_not_for_each_request(said: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    told = Outage(lambda: now[0])
    for request in range(16):
        told.failed(request, ValueError("cannot be reached"), busy=False, next_s=0.4)
    assert len(said.messages) == 1
    assert (
        said.messages[0].startswith("the server does not answer since ")
        and "(cannot be reached); 1 request" in said.messages[0]
    )
    now[0] += 10.5
    for request in range(16):
        told.failed(request, ValueError("cannot be reached"), busy=False, next_s=8.0)
    assert len(said.messages) == 2 and "16 requests wait; the next try is in 8.0 s" in said.messages[1]
    told.failed(3, ValueError("status 503"), busy=True, next_s=2.0)
    assert "the server is busy since" in said.messages[2] and "status 503" in said.messages[2]
    for request in range(15):
        told.ended(request, answered=True)
    told.ended(99, answered=True)
    assert len(said.messages) == 3, "one request still waits"
    now[0] += 2.0
    told.ended(15, answered=True)
    assert said.messages[3] == "the server answers again, after 12 s; no request waits"
    told.failed(16, ValueError("cannot be reached"), busy=False, next_s=0.4)
    assert len(said.messages) == 5, "a new outage is told at once"
    told.ended(16, answered=False)
    assert len(said.messages) == 5, "a request that is given up is no answer"


def test_requests_that_fail_together_are_one_line(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "QUIET_S", float("inf"))
    lock, failures = threading.Lock(), [0]

    def moody(body: dict[str, Any]) -> Answer:
        with lock:
            failures[0] += 1
            first = failures[0] > 1 and failures[0] <= 9
        return fails(503, "warming up") if first else says("1")

    with serving(moody) as server:
        evaluate("m", "addition", base_url=server.url, limit=8, turns=1, retries=5, max_num_seqs=8)
    lines = [message for message in said.messages if message.startswith("the server is busy")]
    assert len(lines) == 1 and "warming up" in lines[0], said.messages
    assert sum("answers again" in message for message in said.messages) == 1
