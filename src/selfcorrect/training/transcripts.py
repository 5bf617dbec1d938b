"""Transcripts: written conversations of one or more turns, as chat data sets hold them, of which chosen replies are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfcorrect.documents import is_unicode
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.training.sample import CONTEXT, Segment, TrainingSample


@dataclass(frozen=True, slots=True)
class WrittenReply:
    """The assistant's reply of one turn; one that is not ``trained`` is context only."""

    text: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation: an optional system message, and a user's message and a reply in each turn."""

    system: str | None
    users: tuple[str, ...]
    replies: tuple[WrittenReply, ...]

    @property
    def where(self) -> str:
        """Return a name for messages."""
        return f"the transcript that begins {self.users[0]!r:.60}"

    @property
    def trained(self) -> list[str]:
        """Return the texts that the model is to write."""
        return [reply.text for reply in self.replies if reply.trained]

    def sample(self, chat: ChatFormat) -> TrainingSample:
        """Return the conversation in a chat template; only the trained replies, with the token that ends each, are scored."""
        turns = chat.written_turns(self.system, self.users, [reply.text for reply in self.replies])
        return TrainingSample.of_segments(
            [
                Segment(before, ids, turn=k if reply.trained else CONTEXT)
                for k, ((before, ids), reply) in enumerate(zip(turns, self.replies, strict=True))
            ]
        )


def transcript_of(messages: Any) -> Transcript:
    """Read a list of chat messages: ``role``, ``content`` and, for a reply, ``weight`` (1 trained, 0 context; default 1).

    >>> made = transcript_of([{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}])
    >>> made.users, made.replies
    (('2+2',), (WrittenReply(text='4', trained=True),))

    Raises:
        ValueError: they are no conversation that alternates between the user and the assistant, or train no reply.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"messages = {messages!r:.60} is no list of objects: give each message its role and content")
    roles = [message.get("role") for message in messages]
    first = int(roles[:1] == ["system"])
    talk = messages[first:]
    if not talk or len(talk) % 2 or roles[first:] != ["user", "assistant"] * (len(talk) // 2):
        raise ValueError(
            f"messages have the roles {', '.join(map(str, roles)) or 'none'}: after at most one system message, user and "
            "assistant take turns, and the assistant has the last word"
        )
    texts = [written_text(message.get("content"), f"the {message['role']}'s content") for message in messages]
    weights = [_weight(message) for message in talk[1::2]]
    replies = tuple(WrittenReply(*given) for given in zip(texts[first + 1 :: 2], weights, strict=True))
    if not any(reply.trained for reply in replies):
        raise ValueError("every reply has weight 0, so there is nothing to train: leave the line out, or a weight")
    return Transcript(texts[0] if first else None, tuple(texts[first::2]), replies)


def written_text(value: Any, name: str) -> str:
    """Return the value of a field called ``name``, which must be a text.

    Raises:
        ValueError: it is no text, blank, or cannot be written in UTF-8.
    """
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise ValueError(f"{name} = {value!r:.60} is no text: write a JSON string that is not blank")
    return value


def _weight(message: Mapping[str, Any]) -> bool:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"weight = {weight!r:.20}: a reply is trained (1) or context only (0)")
    return bool(weight)
