"""Serve chat completions that the test chooses, including the failures that a real server rarely shows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def says(text: Any, *, finish: str = "stop", tokens: Any = 3, **choice: Any) -> Answer:
    """Return a chat completion."""
    found = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}]}
    found["choices"][0] |= choice
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return Answer(json.dumps({**found, **usage}).encode())


def fails(status: int, message: str = "no", **headers: str) -> Answer:
    return Answer(json.dumps({"error": {"message": message}}).encode(), status, headers)


def within(limit: int, answer: Answer) -> Answer:
    """Return an answer whose count of tokens is at most the limit, as a real server's is, whatever the test's function says."""
    try:
        found = json.loads(answer.body)
        found["usage"]["completion_tokens"] = min(limit, found["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return answer
    return replace(answer, body=json.dumps(found).encode())


@dataclass
class ChatServer:
    """A server that calls ``answer(body)`` for every request; ``asked`` has the requests without the first check.

    ``completions`` answers those of the completions protocol; None has no such address. ``context_limit`` is listed with
    the models, as vLLM does. Answers to the check count at most its one token, unless they are sent ``as_is``.
    """

    answer: Callable[[dict[str, Any]], Answer]
    models: list[str] = field(default_factory=lambda: ["m"])
    completions: Callable[[dict[str, Any]], Answer] | None = None
    context_limit: int | None = None
    as_is: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    url: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    most_at_once: int = 0
    at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def received(self, body: dict[str, Any], path: str) -> Answer:
        answer = {"/v1/chat/completions": self.answer, "/v1/completions": self.completions}.get(path)
        if answer is None:
            return fails(404, "no such page")
        with self.lock:
            check = body.get("max_tokens", body.get("max_completion_tokens")) == 1
            (self.checks if check else self.asked).append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return within(1, answer(body)) if check and not self.as_is else answer(body)
        finally:
            with self.lock:
                self.at_once -= 1


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer], **settings: Any) -> Iterator[ChatServer]:
    found = ChatServer(answer, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            found.keys.add(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.headers |= dict(self.headers)
            self.send(found.received(body, self.path))

        def do_GET(self) -> None:
            limit = {} if found.context_limit is None else {"max_model_len": found.context_limit}
            listed = {"data": [{"id": name, **limit} for name in found.models]}
            self.send(Answer(json.dumps(listed).encode()) if self.path == "/v1/models" else fails(404, "no such page"))

        def send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that gave up

    with Quiet(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        found.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield found
        finally:
            http.shutdown()
            thread.join()
