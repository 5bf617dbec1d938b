"""How an evaluation's conversations are played: on token ids, or as messages to a chat server.

The *context mode* is what the second turn continues. In mode ``tokens`` it extends the very ids that were sampled
(`rollout`). In mode ``messages`` the texts go back to a server, whose template renders the whole conversation anew: it
may trim an attempt or strip its reasoning, and tokenises it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, Protocol

from selfcorrect.engines import ChatEngine, Completion, Engine, Message, Reply, Sampling
from selfcorrect.errors import EndpointError, ModelError
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import Sample, Verifies, roll_out
from selfcorrect.script import Script
from selfcorrect.storage.evaluation_dir import MESSAGES, TOKENS
from selfcorrect.types import Aside, Episode, Problem, StopReason, Turn

CHUNK = 512
"""Episodes that are played together on token ids, unless said otherwise; a stopped evaluation loses less than this."""
AHEAD = 4
"""Conversations with a server that have begun, or wait for their turn to, for each that may be in progress."""
POLL_S = 0.2
"""Seconds between two looks at whether to stop, while replies are awaited."""

Draft = Any
"""A first attempt that is given instead of sampled, in the form of the player that made it."""
Record = Mapping[str, Any]


class Player(Protocol):
    """Plays a script for many samples.

    ``context_mode`` is recorded with the results. What a stopped evaluation has written counts up to a multiple of
    ``chunk`` episodes.
    """

    context_mode: str
    chunk: int

    def play(
        self,
        samples: Sequence[Sample],
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

    def stored_draft(self, turn: Record) -> Draft:
        """A stored turn as another conversation's first attempt."""
        ...


class TokenPlayer:
    """Plays on token ids: turn 2 extends the ids of turn 1."""

    context_mode = TOKENS

    def __init__(self, engine: Engine, tokenizer: Any, *, chunk: int = CHUNK) -> None:
        self.engine, self.tokenizer, self.chunk = engine, tokenizer, chunk

    def play(
        self,
        samples: Sequence[Sample],
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

    def stored_draft(self, turn: Record) -> Completion:
        return _not_sampled(turn["tokens"], StopReason(turn["stop"]))


def _not_sampled(ids: Sequence[int], stop: StopReason) -> Completion:
    """A draft that is given: an evaluation trains on nothing, so its log-probabilities are never asked for."""
    return Completion(tuple(ids), (0.0,) * len(ids), stop)


@dataclass(frozen=True, slots=True)
class _Written:
    """A reply, and whether the script wanted an attempt there."""

    reply: Reply
    attempt: bool
    online: bool = True


class MessagePlayer:
    """Plays as messages to a chat server, up to ``concurrency`` conversations at a time; see `connected`.

    The text of a reply is stored, verified and sent back without the white space around it.
    """

    context_mode = MESSAGES
    chunk = 1

    def __init__(self, portal: Any, engine: ChatEngine, concurrency: int, limiter: Any) -> None:
        self._portal, self._engine, self._limiter = portal, engine, limiter
        self._ahead = AHEAD * concurrency

    @classmethod
    @contextmanager
    def connected(cls, engine: ChatEngine, *, concurrency: int) -> Iterator[MessagePlayer]:
        """A player whose requests run in an event loop of their own thread, so that it works in a notebook too.

        Leaving the block cancels what is still in progress.
        """
        from anyio import CapacityLimiter
        from anyio.from_thread import start_blocking_portal

        async def limiter() -> CapacityLimiter:
            return CapacityLimiter(concurrency)

        with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(engine):
            yield cls(portal, engine, concurrency, portal.call(limiter))

    def check(self, problem: Problem, script: Script, sampling: Sampling) -> None:
        """Ask a first question, for a token, so that what the server refuses it refuses before the work starts.

        Raises:
            ModelError: the server refuses the model, the key or a setting.
            EndpointError: there is no chat server.
        """
        self._portal.call(self._engine.check, _opened(script, problem), sampling)

    def play(
        self,
        samples: Sequence[Sample],
        *,
        script: Script,
        verifier: Verifies,
        sampling: Sampling,
        drafts: Sequence[Draft] | None,
        stop: Callable[[], None],
    ) -> Iterator[list[Episode]]:
        todo = zip(samples, drafts or repeat(None))  # noqa: B905  (without drafts there is no second length)
        begun: deque[tuple[Sample, Future[list[_Written]]]] = deque()
        try:
            while True:
                stop()
                for sample, draft in islice(todo, self._ahead - len(begun)):
                    begun.append(
                        (sample, self._portal.start_task_soon(self._converse, sample, script, sampling, draft))
                    )
                if not begun:
                    return
                wait([begun[0][1]], timeout=POLL_S)
                done = _finished(begun)
                if done:
                    yield _judged(done, verifier)
        finally:
            for _, future in begun:
                future.cancel()

    async def _converse(
        self, sample: Sample, script: Script, sampling: Sampling, draft: Reply | None
    ) -> list[_Written]:
        """One conversation to its end. Only so many are in progress at a time, each with one request."""
        messages, written = _opened(script, sample.problem), list[_Written]()
        async with self._limiter:
            for k, said in enumerate(script.user_turns(sample.problem.prompt)):
                if k > 0:
                    messages.append(Message("user", said.text))
                if k == 0 and draft is not None:
                    reply = draft
                else:
                    reply = await self._reply(messages, sampling, sample, k)
                messages.append(Message("assistant", reply.text))
                written.append(_Written(reply, said.attempt, online=k > 0 or draft is None))
        return written

    async def _reply(self, messages: Sequence[Message], sampling: Sampling, sample: Sample, k: int) -> Reply:
        seed = int(sample.key(k).uniforms(1)[0] * 2**31)
        try:
            return await self._engine.reply(messages, sampling, seed)
        except (EndpointError, ModelError) as error:
            raise type(error)(f"problem {sample.problem.id!r}, turn {k + 1}: {error}") from None

    def given_draft(self, text: str) -> Reply:
        return Reply(text, StopReason.END, None)

    def stored_draft(self, turn: Record) -> Reply:
        return Reply(turn["text"], StopReason(turn["stop"]), turn.get("token_count"))


def _opened(script: Script, problem: Problem) -> list[Message]:
    """What stands before the first turn."""
    system = [Message("system", script.system)] if script.system else []
    return [*system, Message("user", script.user_turns(problem.prompt)[0].text)]


def _finished(
    begun: deque[tuple[Sample, Future[list[_Written]]]],
) -> list[tuple[Sample, list[_Written]]]:
    """Take the conversations off the head of the queue that are over. A failure is raised once it is the very first."""
    done: list[tuple[Sample, list[_Written]]] = []
    while begun and begun[0][1].done() and not (done and begun[0][1].exception()):
        sample, future = begun.popleft()
        done.append((sample, future.result()))
    return done


def _judged(played: Sequence[tuple[Sample, list[_Written]]], verifier: Verifies) -> list[Episode]:
    items = [(sample.problem, w.reply.text) for sample, written in played for w in written if w.attempt]
    verdicts = iter(verifier.verify(items))
    episodes = []
    for sample, written in played:
        turns, asides = list[Turn](), tuple[Aside, ...]()
        for w in written:
            text, stop, counted = w.reply.text, w.reply.stop, w.reply.counted
            if w.attempt:
                turns.append(
                    Turn((), (), (), text, stop, next(verdicts), online=w.online, asides=asides, counted=counted)
                )
                asides = ()
            else:
                asides += (Aside((), text, stop, counted),)
        episodes.append(Episode(sample.problem, sample.sample, tuple(turns)))
    return episodes
