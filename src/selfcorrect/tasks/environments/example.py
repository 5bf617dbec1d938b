"""Problems of environments as plain values, and the protocol of an environment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Chat = tuple[tuple[str, str], ...]
"""The messages before an answer, each as its role and its text."""


@dataclass(frozen=True, slots=True)
class Example:
    """One problem: the chat before the answer, its reference ("" if it has none), and what scoring needs."""

    chat: Chat
    reference: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scores:
    """The reward of an answer and the scores of the reward functions, by their names."""

    reward: float
    by_name: Mapping[str, float]


class Environment(Protocol):
    """An environment that is imported in this process. Its code is trusted, but may print and take its time."""

    def refusal(self) -> str | None:
        """Return why it cannot be a task: it has several turns or tools, or needs another model; None if it can."""
        ...

    def names(self) -> frozenset[str] | None:
        """Return the names of its scores; None if only scoring tells."""
        ...

    def form(self) -> str:
        """Return how a correct answer is written, with ``{answer}`` in place of the reference."""
        ...

    def training(self) -> Iterator[Any] | None:
        """Yield its rows, those for training if it has others for evaluation; None if it has only those."""
        ...

    def evaluation(self) -> Iterator[Any] | None:
        """Yield its rows for evaluation; None if it has none of its own."""
        ...

    def example(self, row: Any, reference_field: str) -> Example:
        """Return a row as plain values.

        Raises:
            ValueError: it has no text that a model could read.
        """
        ...

    def scores(self, data: Mapping[str, Any], text: str) -> Scores:
        """Score an answer. An exception of a reward function is raised."""
        ...

    def extracted(self, text: str) -> str | None:
        """Return the answer that its parser finds in a text, if it has a parser that finds text."""
        ...


def chat_of(messages: Any) -> Chat:
    """Return messages, or a text, as roles and texts.

    Raises:
        ValueError: there is none, one has no text or is more than text, or the last is not the user's.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError("the prompt is empty, so the user opens the conversation")
    chat = tuple(_message(message) for message in messages)
    if chat[-1][0] != "user" or not chat[-1][1].strip():
        raise ValueError(f"the prompt ends in a message of {chat[-1][0]!r}, not in text of the user")
    return chat


def _message(message: Any) -> tuple[str, str]:
    role, content = (_member(message, name) for name in ("role", "content"))
    if _member(message, "tool_calls"):
        raise ValueError("the prompt calls tools")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"the prompt holds a message of role {role!r:.40}")
    return role, content if isinstance(content, str) else "\n".join(_part(part) for part in content or ())


def _part(part: Any) -> str:
    text = _member(part, "text")
    if _member(part, "type") not in ("text", None) or not isinstance(text, str):
        raise ValueError(f"the prompt holds {_member(part, 'type')!r:.40}, and only text can be shown")
    return text


def _member(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def reference_text(value: Any) -> str:
    """Return an answer of a row as text; "" if there is none.

    >>> reference_text("12"), reference_text(12), reference_text(None), reference_text(["a"])
    ('12', '12', '', '["a"]')
    """
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, default=str)
