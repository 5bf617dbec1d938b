"""The chat protocol, ``POST BASE_URL/chat/completions``: messages in, a message out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from selfcorrect.engines.base import Message, Reply, Sampling
from selfcorrect.engines.server import Server
from selfcorrect.engines.transport import count
from selfcorrect.types import StopReason

log = logging.getLogger(__name__)

TEXT_PARTS = ("text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")


class _Message(BaseModel):
    content: str | list[str | dict[str, Any]] | None = None
    refusal: Any = None
    reasoning: Any = None
    reasoning_content: Any = None

    @property
    def text(self) -> str:
        """Return the answer: the content, joined where it is a list of parts, or else the refusal, which is an answer too.

        Parts that are not text (``thinking``, images) and reasoning that the server reports separately are left out.
        """
        if isinstance(self.content, list):
            return "".join(part if isinstance(part, str) else _part(part, TEXT_PARTS) for part in self.content).strip()
        return (self.content or (self.refusal if isinstance(self.refusal, str) else "")).strip()

    @property
    def thought(self) -> str | None:
        """Return the reasoning that the server reports apart: in a field (two names are in use) or in parts of the content."""
        fields = (text for text in (self.reasoning_content, self.reasoning) if isinstance(text, str))
        found = next((text for text in fields if text.strip()), None)
        if found is None and isinstance(self.content, list):
            found = "".join(_part(part, REASONING_PARTS) for part in self.content if not isinstance(part, str))
        return (found or "").strip() or None


def _part(part: dict[str, Any], kinds: Sequence[str]) -> str:
    """Return the text of a part of one of these kinds; a part of reasoning may hold parts of text itself."""
    kind = part.get("type", "text")
    if kind not in kinds:
        return ""
    inner = part.get("text", part.get(kind) if isinstance(kind, str) else None)
    return inner if isinstance(inner, str) else "".join(_inner(inner))


def _inner(parts: Any) -> Iterator[str]:
    for part in parts if isinstance(parts, list) else ():
        text = part.get("text") if isinstance(part, dict) else part
        yield text if isinstance(text, str) else ""


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None
    stop_reason: Any = None


class ChatAnswer(BaseModel):
    """The body of an answer, as far as it is read."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Any = None
    model: Any = None


class ChatAPI:
    """The chat protocol on one server. The server renders every conversation with the template of its model."""

    path = "chat/completions"
    answer = ChatAnswer

    def __init__(self, server: Server) -> None:
        self.server = server
        self._warned = False

    def body(self, prompt: Sequence[Message]) -> dict[str, Any]:
        """Return the fields of a request that are the protocol's own."""
        options = self.server.chat_template_kwargs
        messages = {"messages": [asdict(message) for message in prompt]}
        return {**messages, **({"chat_template_kwargs": dict(options)} if options else {})}

    def reply(self, answer: ChatAnswer, prompt: Sequence[Message], sampling: Sampling) -> Reply:
        """Return what the server said."""
        choice, counted = answer.choices[0], counted_in(answer.usage)
        stop = StopReason.END
        if choice.finish_reason == "length":
            stop = StopReason.LENGTH
        elif choice.stop_reason in sampling.stop:  # vLLM reports which text ended the turn; others do not
            stop = StopReason.STOP
        text, reasoning = choice.message.text, choice.message.thought
        if reasoning and not text and stop is not StopReason.LENGTH and not self._warned:
            self._warned = True
            log.warning(
                "a reply ended with reasoning and no content, so it counts as no answer. If the model does not reason with "
                "these settings, the server's reasoning parser takes its answers: start the server without one."
            )
        return Reply(text, stop, counted, reasoning=reasoning)


def counted_in(usage: Any) -> int | None:
    """Return the sampled tokens that an answer reports."""
    return count(usage.get("completion_tokens")) if isinstance(usage, dict) else None
