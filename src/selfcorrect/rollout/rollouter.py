"""How an evaluation's conversations are played: on token ids, or as messages to a chat server.

The *context mode* is what the second turn continues. In mode ``tokens`` it extends the very ids that were sampled
(`rollout`). In mode ``messages`` the texts go back to a server, whose template renders the whole conversation anew: it
may trim an attempt or strip its reasoning, and tokenises it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from selfcorrect.engines import Completion, Engine, Sampling
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, Verifies, roll_out
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredTurn
from selfcorrect.types import TOKENS, Episode, StopReason

CHUNK = 512
"""Episodes that are played together on token ids, unless said otherwise; a stopped evaluation loses less than this."""

Draft = Any
"""A first attempt that is given instead of sampled, in the form of the rollouter that made it."""


class Rollouter(Protocol):
    """Plays a script for many samples.

    ``context_mode`` is recorded with the results. What a stopped evaluation has written counts up to a multiple of
    ``chunk`` episodes.
    """

    context_mode: str
    chunk: int

    def run(
        self,
        samples: Sequence[RolloutRequest],
        *,
        script: Script,
        verifier: Verifies,
        sampling: Sampling,
        drafts: Sequence[Draft] | None,
        stop: Callable[[], None],
    ) -> Iterator[list[Episode]]:
        """The episodes, in order, a few at a time; ``stop`` is asked now and then and may raise."""
        ...

    def given_draft(self, text: str) -> Draft:
        """A first attempt of somebody else."""
        ...

    def stored_draft(self, turn: StoredTurn) -> Draft:
        """A stored turn as another conversation's first attempt."""
        ...


class TokenRollouter:
    """Plays on token ids: turn 2 extends the ids of turn 1."""

    context_mode = TOKENS

    def __init__(self, engine: Engine, tokenizer: Any, *, chunk: int = CHUNK) -> None:
        self.engine, self.tokenizer, self.chunk = engine, tokenizer, chunk

    def run(
        self,
        samples: Sequence[RolloutRequest],
        *,
        script: Script,
        verifier: Verifies,
        sampling: Sampling,
        drafts: Sequence[Draft] | None,
        stop: Callable[[], None],
    ) -> Iterator[list[Episode]]:
        chat = ChatFormat(self.tokenizer, script)
        for start in range(0, len(samples), self.chunk):
            stop()
            chunk = slice(start, start + self.chunk)
            given = None if drafts is None else drafts[chunk]
            yield roll_out(
                samples[chunk], engine=self.engine, chat=chat, verifier=verifier, sampling=sampling, given=given
            )

    def given_draft(self, text: str) -> Completion:
        """The text's ids and the end token."""
        ids = (*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id)
        return _not_sampled(ids, StopReason.END)

    def stored_draft(self, turn: StoredTurn) -> Completion:
        return _not_sampled(turn.tokens, turn.stop)


def _not_sampled(ids: Sequence[int], stop: StopReason) -> Completion:
    """A draft that is given: an evaluation trains on nothing, so its log-probabilities are never asked for."""
    return Completion(tuple(ids), (0.0,) * len(ids), stop)
