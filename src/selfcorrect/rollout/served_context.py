"""What a turn on a server continues: the conversation as messages, or as token ids.

As messages, the server renders the whole conversation again with its own template. As ids, `ChatFormat` renders the
prompt and the observations here, and every turn extends the sampled ids, as it does for a model in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from selfcorrect.engines import Message, Reply
from selfcorrect.rollout.chat_format import ChatFormat, draft_ids
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredTurn
from selfcorrect.types import MESSAGES, TOKENS, Problem, StopReason

Prompt_co = TypeVar("Prompt_co", covariant=True)


class History(Protocol[Prompt_co]):
    """One conversation so far."""

    @property
    def prompt(self) -> Prompt_co:
        """Return what the next turn continues."""
        ...

    @property
    def observation_ids(self) -> tuple[int, ...]:
        """Return the ids before the next turn's first one, as in `Turn`; none as messages."""
        ...

    def text(self, reply: Reply) -> str:
        """Return the text of a reply, which is verified and stored."""
        ...

    def add(self, reply: Reply) -> None:
        """Append the model's turn."""
        ...

    def ask(self, turn: int, text: str) -> None:
        """Append the user's words before the model's turn ``turn``, counted from 0."""
        ...


class Context(Protocol[Prompt_co]):
    """A way to hold conversations."""

    mode: str

    def begin(self, script: Script, problem: Problem) -> History[Prompt_co]:
        """Return a conversation that ends with the first question."""
        ...

    def given_draft(self, text: str, limit: int | None = None) -> Reply:
        """Return a text from elsewhere as a first attempt, cut after ``limit`` tokens where it is made of tokens."""
        ...


class MessageHistory:
    """A conversation as messages."""

    observation_ids: tuple[int, ...] = ()

    def __init__(self, script: Script, problem: Problem) -> None:
        system = [Message("system", script.system)] if script.system else []
        self.prompt: list[Message] = [*system, Message("user", script.user_turns(problem.prompt)[0].text)]

    def text(self, reply: Reply) -> str:
        return reply.text

    def add(self, reply: Reply) -> None:
        self.prompt.append(Message("assistant", reply.text))

    def ask(self, turn: int, text: str) -> None:
        self.prompt.append(Message("user", text))


class MessageContext:
    """Conversations as messages; the text of a reply goes back as it is stored."""

    mode = MESSAGES

    def begin(self, script: Script, problem: Problem) -> MessageHistory:
        return MessageHistory(script, problem)

    def given_draft(self, text: str, limit: int | None = None) -> Reply:
        return Reply(text, StopReason.END, None)


class TokenHistory:
    """A conversation as token ids."""

    def __init__(self, chat: ChatFormat, problem: Problem) -> None:
        self._chat, self._problem = chat, problem
        self.prompt = self.observation_ids = chat.prompt(problem.prompt)
        self._last: tuple[int, ...] = ()

    def text(self, reply: Reply) -> str:
        return self._chat.text(reply.ids) if reply.ids else ""

    def add(self, reply: Reply) -> None:
        self._last = reply.ids
        self.prompt = (*self.prompt, *reply.ids)

    def ask(self, turn: int, text: str) -> None:
        self.observation_ids = self._chat.observation_ids(turn, self._problem.prompt, self._last)
        self.prompt = (*self.prompt, *self.observation_ids)


class TokenContext:
    """Conversations as token ids, rendered with a tokenizer and the options of its chat template."""

    mode = TOKENS

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.chat = lru_cache(8)(self._chat)

    def begin(self, script: Script, problem: Problem) -> TokenHistory:
        return TokenHistory(self.chat(script), problem)

    def given_draft(self, text: str, limit: int | None = None) -> Reply:
        ids, stop = draft_ids(self.chat(Script()), text, limit)
        return Reply(text, stop, None, ids=ids)

    def _chat(self, script: Script) -> ChatFormat:
        return ChatFormat(self.tokenizer, script, self.options)


def stored_draft(turn: StoredTurn) -> Reply:
    """Return a stored turn as the first attempt of another conversation."""
    failure = turn.judged.detail if turn.stop is StopReason.FAILED else ""
    return Reply(turn.text, turn.stop, turn.counted, failure, turn.other_model, turn.reasoning, ids=turn.tokens)
