"""Concurrent conversations with a chat server: messages in, messages out."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

from selfcorrect.engines import ChatEngine, Message, Reply, Sampling
from selfcorrect.errors import EndpointError, ModelError
from selfcorrect.rollout.rollout import RolloutRequest, Verifies
from selfcorrect.rollout.rollouter import Draft
from selfcorrect.script import Script
from selfcorrect.storage.episode_log import StoredTurn
from selfcorrect.types import MESSAGES, Episode, Outcome, Problem, Role, StopReason, Turn, Verdict

AHEAD = 4
"""Submitted conversations per conversation that may be in progress."""
POLL_S = 0.2
"""Seconds between two checks whether to stop, while replies are awaited."""


Replies = Callable[[Sequence[Message], int], Awaitable[Reply]]
"""Returns the next message of a chat, given those so far and the number of the model's turn, from 0."""


@dataclass(frozen=True, slots=True)
class Written:
    """A reply with its role in the script."""

    reply: Reply
    role: Role
    online: bool = True


class ChatRollouter:
    """A rollouter that runs a script as messages to a chat server, at most ``concurrency`` conversations at a time.

    Make one with `connected`. The text of a reply is stored, verified and sent back without surrounding white space.

    A request that fails for good is put to one test: does the server still answer the request of `check`? If it does, the
    failure belongs to that conversation (a prompt beyond the context, a filter, an answer that is none). Its remaining
    turns then have no text, `StopReason.FAILED`, and the reason in their verdicts. If it does not, the server is out of
    order, and the failure is raised.
    """

    context_mode = MESSAGES
    chunk = 1

    def __init__(self, portal: Any, engine: ChatEngine, concurrency: int, limiter: Any) -> None:
        self._portal, self._engine, self._limiter = portal, engine, limiter
        self._ahead = AHEAD * concurrency
        self._answered: tuple[list[Message], Sampling] | None = None

    @classmethod
    @contextmanager
    def connected(cls, engine: ChatEngine, *, concurrency: int) -> Iterator[ChatRollouter]:
        """Yield a rollouter whose requests run in an event loop in a separate thread, so it works in a notebook too.

        Leaving the block cancels all conversations in progress.
        """
        from anyio import CapacityLimiter
        from anyio.from_thread import start_blocking_portal

        async def limiter() -> CapacityLimiter:
            return CapacityLimiter(concurrency)

        with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(engine):
            yield cls(portal, engine, concurrency, portal.call(limiter))

    def check(self, problems: Sequence[Problem], script: Script, sampling: Sampling) -> None:
        """Send a first request, so that a rejection comes before the work starts.

        It opens the first problem or, where that is rejected, the shortest: the first may be the one that does not fit.

        Raises:
            ModelError: the server rejects the model, the key or a setting.
            EndpointError: there is no chat server.
        """
        first, shortest = problems[0], min(problems, key=lambda problem: len(problem.prompt))
        try:
            self._check(opened(script, first), sampling)
        except ModelError as error:
            if shortest.prompt == first.prompt:
                raise
            try:
                self._check(opened(script, shortest), sampling)
            except ModelError:
                raise error from None

    def _check(self, messages: list[Message], sampling: Sampling) -> None:
        self._portal.call(self._engine.check, messages, sampling)
        self._answered = messages, sampling

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
        todo = zip(samples, drafts or repeat(None))  # noqa: B905  (without drafts there is no second length)
        begun: deque[tuple[RolloutRequest, Future[list[Written]]]] = deque()
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
                    yield judged(done, verifier)
        finally:
            for _, future in begun:
                future.cancel()

    async def _converse(
        self, sample: RolloutRequest, script: Script, sampling: Sampling, draft: Reply | None
    ) -> list[Written]:
        """Hold one conversation to its end. The limiter bounds how many run at a time, each with one request."""
        async with self._limiter:
            replies: Replies = lambda messages, k: self._reply(messages, sampling, sample, k)  # noqa: E731
            return await converse(sample.problem, script, replies, draft)

    async def _reply(self, messages: Sequence[Message], sampling: Sampling, sample: RolloutRequest, k: int) -> Reply:
        try:
            return await self._engine.reply(messages, sampling, request_seed(sample, k))
        except (EndpointError, ModelError) as error:
            if await self._still_answers():
                return Reply("", StopReason.FAILED, None, failure=f"turn {k + 1}: {error}")
            raise type(error)(f"problem {sample.problem.id!r}, turn {k + 1}: {error}") from None

    async def _still_answers(self) -> bool:
        """Return whether the server answers the request that it answered at the beginning."""
        if self._answered is None:
            return False
        try:
            await self._engine.check(*self._answered)
        except (EndpointError, ModelError):
            return False
        return True

    def given_draft(self, text: str, limit: int | None = None) -> Reply:
        return Reply(text, StopReason.END, None)

    def stored_draft(self, turn: StoredTurn) -> Reply:
        failure = turn.judged.detail if turn.stop is StopReason.FAILED else ""
        return Reply(turn.text, turn.stop, turn.counted, failure, turn.other_model)


def request_seed(sample: RolloutRequest, turn: int) -> int:
    """Return the seed that a server gets for a turn of an episode; not every server heeds it."""
    return int(sample.key(turn).uniforms(1)[0] * 2**31)


async def converse(problem: Problem, script: Script, replies: Replies, draft: Reply | None = None) -> list[Written]:
    """Hold one conversation to its end; a ``draft`` takes the place of the first turn. Nothing follows a failed request."""
    messages, written = opened(script, problem), list[Written]()
    reply: Reply | None = None
    for k, said in enumerate(script.user_turns(problem.prompt)):
        if reply is not None:
            messages.append(Message("user", said.text))
            if reply.stop is StopReason.FAILED:
                written.append(Written(reply, said.role))
                continue
        reply = draft if k == 0 and draft is not None else await replies(messages, k)
        messages.append(Message("assistant", reply.text))
        written.append(Written(reply, said.role, online=k > 0 or draft is None))
    return written


def opened(script: Script, problem: Problem) -> list[Message]:
    """Return the messages before the first turn."""
    system = [Message("system", script.system)] if script.system else []
    return [*system, Message("user", script.user_turns(problem.prompt)[0].text)]


def _finished(
    begun: deque[tuple[RolloutRequest, Future[list[Written]]]],
) -> list[tuple[RolloutRequest, list[Written]]]:
    """Take the finished conversations off the head of the queue. A failure is raised once it is the first in the queue."""
    done: list[tuple[RolloutRequest, list[Written]]] = []
    while begun and begun[0][1].done() and not (done and begun[0][1].exception()):
        sample, future = begun.popleft()
        done.append((sample, future.result()))
    return done


def judged(finished: Sequence[tuple[RolloutRequest, list[Written]]], verifier: Verifies) -> list[Episode]:
    """Return finished conversations as episodes, with the verdict of every attempt."""
    items = [(sample.problem, w.reply.text) for sample, written in finished for w in written if _is_verified(w)]
    verdicts = iter(verifier.verify(items))
    return [
        Episode(sample.problem, sample.sample, tuple(_turn(w, verdicts) for w in written))
        for sample, written in finished
    ]


def _is_verified(written: Written) -> bool:
    return written.role is Role.ATTEMPT and written.reply.stop is not StopReason.FAILED


def _turn(written: Written, verdicts: Iterator[Verdict]) -> Turn:
    """Return a reply as a turn without ids; an attempt takes the next verdict, or that of a failed request."""
    reply, verdict = written.reply, None
    if written.role is Role.ATTEMPT:
        verdict = next(verdicts) if _is_verified(written) else Verdict(Outcome.NO_ANSWER, None, reply.failure)
    own = (written.online, written.role, reply.counted, reply.other_model)
    return Turn((), (), (), reply.text, reply.stop, verdict, *own)
