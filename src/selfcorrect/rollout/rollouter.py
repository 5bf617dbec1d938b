"""Rollouters, which run an evaluation's conversations on token ids or as messages to a chat server.

The *context mode* says what the second turn continues. In mode ``tokens`` it extends the sampled ids themselves
(`rollout`; on a server, the completions protocol). In mode ``messages`` the texts go back to a server, whose template
renders the whole conversation again: it may trim an attempt or strip its reasoning, and tokenises it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Completion, Engine, Sampling
from selfcorrect.rollout.chat_format import ChatFormat, draft_ids
from selfcorrect.rollout.rollout import GivenAttempt, RolloutRequest, Verifies, roll_out
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredTurn
from selfcorrect.types import TOKENS, Episode, StopReason

CHUNK = 512
"""The default number of episodes that run together on token ids; a stopped evaluation loses fewer than this."""

Draft = Any
"""A first attempt that is given instead of sampled, in the form of its rollouter."""


class Rollouter(Protocol):
    """The protocol of anything that runs a script for many samples.

    ``context_mode`` is recorded with the results. A resumed evaluation keeps a multiple of ``chunk`` episodes. ``sampled`` is
    called with a number of replies of the model, where a rollouter knows of some before it yields their episodes.
    """

    context_mode: str
    chunk: int
    sampled: Callable[[int], None]

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
        """Yield the episodes in order, a few at a time; call ``stop`` now and then, which may raise."""
        ...

    def finished_early(self, verifier: Verifies) -> list[Episode]:
        """Return the episodes that the last `run` had finished when it stopped, but not yielded because of an earlier one."""
        ...

    def given_draft(self, text: str, limit: int | None = None) -> Draft:
        """Return a text from elsewhere as a first attempt, cut after ``limit`` tokens where it is made of tokens."""
        ...

    def stored_draft(self, turn: StoredTurn) -> Draft:
        """Return a stored turn as the first attempt of another conversation."""
        ...


class TokenRollouter:
    """A rollouter on token ids: turn 2 extends the ids of turn 1. Several processes share every chunk.

    ``options`` are those of the chat template.
    """

    context_mode = TOKENS

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        chunk: int = CHUNK,
        options: Mapping[str, Any] | None = None,
        world: World = ALONE,
    ) -> None:
        self.engine, self.tokenizer, self.chunk = engine, tokenizer, chunk
        self.options, self.world = options, world
        self.sampled: Callable[[int], None] = lambda replies: None

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
        chat = ChatFormat(self.tokenizer, script, self.options)
        for start in range(0, len(samples), self.chunk):
            stop()
            own = self.world.share(min(self.chunk, len(samples) - start))
            chunk = slice(start + own.start, start + own.stop)
            given = () if drafts is None else [GivenAttempt(draft) for draft in drafts[chunk]]
            episodes: list[Episode] = []
            with self.world.together():
                if own:
                    episodes = roll_out(
                        samples[chunk],
                        engine=self.engine,
                        chat=chat,
                        verifier=verifier,
                        sampling=sampling,
                        given=given,
                        sampled=self.sampled,
                    )
            yield self.world.chain(episodes)

    def finished_early(self, verifier: Verifies) -> list[Episode]:
        return []  # a chunk ends as a whole

    def given_draft(self, text: str, limit: int | None = None) -> Completion:
        """Return the text's ids and the end of the turn, or the first ``limit`` of them as a truncated turn."""
        return _not_sampled(*draft_ids(ChatFormat(self.tokenizer, Script(), self.options), text, limit))

    def stored_draft(self, turn: StoredTurn) -> Completion:
        return _not_sampled(turn.tokens, turn.stop)


def _not_sampled(ids: Sequence[int], stop: StopReason) -> Completion:
    """Return a given draft; an evaluation never reads its log-probabilities, so they are zeros."""
    return Completion(tuple(ids), (0.0,) * len(ids), stop)
