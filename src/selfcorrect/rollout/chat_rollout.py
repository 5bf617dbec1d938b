"""Concurrent conversations with a server, as messages or as token ids (`served_context`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any, TypeVar

from selfcorrect.engines import ChatEngine, Reply, Sampling
from selfcorrect.errors import EndpointError, ModelError
from selfcorrect.rollout.rollout import RolloutRequest, Verifies, with_skipped
from selfcorrect.rollout.rollouter import Draft
from selfcorrect.rollout.served_context import Context, stored_draft
from selfcorrect.script import Script, judgement
from selfcorrect.storage.episode_log import StoredTurn
from selfcorrect.types import Episode, Judgement, Outcome, Problem, Role, StopReason, Turn, Verdict

AHEAD = 4
"""Submitted conversations per conversation that may be in progress."""
NOT_ASKED = Reply("", StopReason.SKIPPED, 0)
"""The reply of a turn that was skipped."""
POLL_S = 0.2
"""Seconds between two checks whether to stop, while replies are awaited."""

Prompt = TypeVar("Prompt")
Replies = Callable[[Prompt, int], Awaitable[Reply]]
"""Returns the model's next turn, given what it continues and the turn's number, from 0."""


@dataclass(frozen=True, slots=True)
class Written:
    """A reply with its role in the script."""

    reply: Reply
    role: Role
    observation_ids: tuple[int, ...] = ()
    online: bool = True
    said: Judgement | None = None


class ChatRollouter:
    """A rollouter that runs a script on a server, at most ``concurrency`` conversations at a time.

    Make one with `connected`. The text of a reply is stored and verified without surrounding white space; what goes back
    to the server is up to the ``context``.

    A request that fails for good is put to one test: does the server still answer the request of `check`? If it does, the
    failure belongs to that conversation (a prompt beyond the context, a filter, an answer that is none). Its remaining
    turns then have no text, `StopReason.FAILED`, and the reason in their verdicts. If it does not, the server is out of
    order, and the failure is raised.
    """

    chunk = 1

    def __init__(
        self, portal: Any, engine: ChatEngine[Any], context: Context[Any], concurrency: int, limiter: Any
    ) -> None:
        self._portal, self._engine, self._limiter = portal, engine, limiter
        self.context, self.context_mode = context, context.mode
        self.concurrency, self._ahead = concurrency, AHEAD * concurrency
        self.sampled: Callable[[int], None] = lambda replies: None
        self._answered: tuple[Any, Sampling] | None = None
        self._early: list[tuple[RolloutRequest, list[Written]]] = []

    @classmethod
    @contextmanager
    def connected(
        cls, engine: ChatEngine[Prompt], context: Context[Prompt], *, concurrency: int
    ) -> Iterator[ChatRollouter]:
        """Yield a rollouter whose requests run in an event loop in a separate thread, so it works in a notebook too.

        Leaving the block cancels all conversations in progress.
        """
        from anyio import CapacityLimiter
        from anyio.from_thread import start_blocking_portal

        async def limiter() -> CapacityLimiter:
            return CapacityLimiter(concurrency)

        with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(engine):
            yield cls(portal, engine, context, concurrency, portal.call(limiter))

    def check(self, problems: Sequence[Problem], script: Script, sampling: Sampling) -> None:
        """Send a first request, so that a rejection comes before the work starts.

        It opens the first problem or, where that is rejected, the shortest: the first may be the one that does not fit.

        Raises:
            ModelError: the server rejects the model, the key or a setting.
            EndpointError: there is no chat server.
        """
        first, shortest = problems[0], min(problems, key=lambda problem: len(problem.prompt))
        try:
            self._check(self.context.begin(script, first).prompt, sampling)
        except ModelError as error:
            if shortest.prompt == first.prompt:
                raise
            try:
                self._check(self.context.begin(script, shortest).prompt, sampling)
            except ModelError:
                raise error from None

    def _check(self, prompt: Any, sampling: Sampling) -> None:
        self.call(self._engine.check, prompt, sampling)
        self._answered = prompt, sampling

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a coroutine function of the engine returns, which runs in its event loop."""
        return self._portal.call(function, *arguments)

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
            self._early = [(sample, future.result()) for sample, future in begun if _has_ended_well(future)]
            for _, future in begun:
                future.cancel()

    def finished_early(self, verifier: Verifies) -> list[Episode]:
        return judged(self._early, verifier)

    async def _converse(
        self, sample: RolloutRequest, script: Script, sampling: Sampling, draft: Reply | None
    ) -> list[Written]:
        """Hold one conversation to its end. The limiter bounds how many run at a time, each with one request."""
        async with self._limiter:

            def replies(prompt: Any, k: int) -> Awaitable[Reply]:
                return self._reply(prompt, sampling, sample, k)

            return await converse(sample.problem, script, self.context, replies, draft)

    async def _reply(self, prompt: Any, sampling: Sampling, sample: RolloutRequest, k: int) -> Reply:
        try:
            return await self._engine.reply(prompt, sampling, request_seed(sample, k))
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
        return self.context.given_draft(text, limit)

    def stored_draft(self, turn: StoredTurn) -> Reply:
        return stored_draft(turn)


def request_seed(sample: RolloutRequest, turn: int) -> int:
    """Return the seed that a server gets for a turn of an episode; not every server heeds it."""
    return int(sample.key(turn).uniforms(1)[0] * 2**31)


async def converse(
    problem: Problem, script: Script, context: Context[Prompt], replies: Replies[Prompt], draft: Reply | None = None
) -> list[Written]:
    """Hold one conversation to its end; a ``draft`` takes the place of the first turn.

    Nothing follows a failed request, or a turn that the script does not ask for because of what a verification said.
    """
    history, written = context.begin(script, problem), list[Written]()
    reply: Reply | None = None
    said: Judgement | None = None
    for k, user in enumerate(script.user_turns(problem.prompt)):
        if reply is not None:
            if user.when is not None and said is not user.when and reply.stop is not StopReason.FAILED:
                reply = NOT_ASKED
            if reply.stop in (StopReason.FAILED, StopReason.SKIPPED):
                written.append(Written(reply, user.role, online=reply.stop is StopReason.FAILED))
                continue
            history.ask(k, user.text)
        before = history.observation_ids
        reply = draft if k == 0 and draft is not None else await replies(history.prompt, k)
        reply = replace(reply, text=history.text(reply))
        history.add(reply)
        if user.role is Role.VERIFICATION:
            said = judgement(reply.text, *user.phrases)
        stated = said if user.role is Role.VERIFICATION else None
        written.append(Written(reply, user.role, before, online=k > 0 or draft is None, said=stated))
    return written


def _finished(
    begun: deque[tuple[RolloutRequest, Future[list[Written]]]],
) -> list[tuple[RolloutRequest, list[Written]]]:
    """Take the finished conversations off the head of the queue. A failure is raised once it is the first in the queue."""
    done: list[tuple[RolloutRequest, list[Written]]] = []
    while begun and begun[0][1].done() and not (done and begun[0][1].exception()):
        sample, future = begun.popleft()
        done.append((sample, future.result()))
    return done


def _has_ended_well(future: Future[list[Written]]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def judged(finished: Sequence[tuple[RolloutRequest, list[Written]]], verifier: Verifies) -> list[Episode]:
    """Return finished conversations as episodes, with the verdict of every attempt."""
    items = [(sample.problem, w.reply.text) for sample, written in finished for w in written if _is_verified(w)]
    verdicts = iter(verifier.verify(items))
    return [Episode(sample.problem, sample.sample, _turns(written, verdicts)) for sample, written in finished]


def _turns(written: Sequence[Written], verdicts: Iterator[Verdict]) -> tuple[Turn, ...]:
    taken = [_turn(w, verdicts) for w in written if w.reply.stop is not StopReason.SKIPPED]
    return with_skipped(taken, [w.role for w in written])


def _is_verified(written: Written) -> bool:
    return written.role is Role.ATTEMPT and written.reply.stop not in (StopReason.FAILED, StopReason.SKIPPED)


def _turn(written: Written, verdicts: Iterator[Verdict]) -> Turn:
    """Return a reply as a turn; an attempt takes the next verdict, or that of a failed request."""
    reply, verdict = written.reply, None
    if written.role is Role.ATTEMPT:
        verdict = next(verdicts) if _is_verified(written) else Verdict(Outcome.NO_ANSWER, None, reply.failure)
    return Turn(
        written.observation_ids,
        reply.ids,
        reply.logprobs or (0.0,) * len(reply.ids),  # a given draft was not sampled
        reply.text,
        reply.stop,
        verdict,
        written.online,
        written.role,
        reply.counted,
        reply.other_model,
        reasoning=reply.reasoning,
        said=written.said,
    )
