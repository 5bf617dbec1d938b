"""The conversations that one problem needs, wherever they are sampled: its attempts, and the drafts of the controls.

`Evaluator` runs them part by part. An evaluation by inspect_ai runs them problem by problem, so a control that needs the first
attempt at another problem asks for it here (`FirstAttempts`), whichever of the two problems comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import Any

from selfcorrect.engines import Message, Reply
from selfcorrect.errors import DataError
from selfcorrect.evaluation.blind_drafts import shuffled_draft
from selfcorrect.evaluation.evaluation import BLIND, PARTS, Evaluation, evaluation_of
from selfcorrect.evaluation.planned_parts import EvalPlan
from selfcorrect.evaluation.problem_set import ProblemSet
from selfcorrect.rollout.chat_rollout import Written, converse, judged, request_seed
from selfcorrect.rollout.rollout import RolloutRequest
from selfcorrect.rollout.served_context import MessageContext
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.types import MESSAGES, Episode, Judgement, Part, Role, StopReason

Ask = Callable[[Sequence[Message], float | None, int], Awaitable[Reply]]
"""Returns the next message of a chat at a temperature (None: that of the evaluation), with a seed."""
Conversations = dict[Part, list[list[Written]]]
"""The conversations about one problem: one of each part for every sample."""


class FirstAttempts:
    """First attempts, each sampled once, by whoever needs it first. A failure is the sampler's; the next one tries again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Reply] = {}
        self._locks: dict[Hashable, Any] = {}

    async def get(self, key: Hashable, sample: Callable[[], Awaitable[Reply]]) -> Reply:
        """Return the attempt of a key, sampled unless it is known."""
        from anyio import Lock as TaskLock

        async with self._locks.setdefault(key, TaskLock()):
            if key not in self._known:
                self._known[key] = await sample()
            return self._known[key]


@dataclass(eq=False)
class Measurement:
    """What to measure, and the verifier that judges it."""

    problem_set: ProblemSet
    plan: EvalPlan
    verifier: Verifier
    _place_of: Mapping[str, int] = field(init=False)
    _one_at_a_time: Any = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._place_of = {problem.id: i for i, problem in enumerate(self.problem_set.problems)}

    def place(self, problem_id: str) -> int:
        """Return the place of a problem among those that are measured.

        Raises:
            DataError: there is none of this id; a log holds other problems than the settings say.
        """
        if problem_id not in self._place_of:
            raise DataError(
                f"problem {problem_id!r:.100} is not among the {len(self._place_of)} problems of task "
                f"{self.problem_set.task.name!r}: give the split, limit, data_seed and task_options of the log."
            )
        return self._place_of[problem_id]

    @property
    def samples(self) -> int:
        """Return the main conversations about a problem; greedy ones are all the same."""
        return self.plan.samples if self.plan.temperature > 0 else 1

    def request(self, part: Part, place: int, sample: int) -> RolloutRequest:
        """Return what names an episode, and feeds its seeds."""
        return RolloutRequest(self.problem_set.problems[place], sample, self.plan.seed, f"eval/{part}", 0)

    def judge(self, place: int, first: int, conversations: Conversations) -> dict[Part, list[Episode]]:
        """Return the episodes of conversations about one problem, whose samples are numbered from ``first``."""
        finished = [
            (self.request(part, place, first + s), written)
            for part, several in conversations.items()
            for s, written in enumerate(several)
        ]
        with self._one_at_a_time:
            episodes = iter(judged(finished, self.verifier))
        return {part: [next(episodes) for _ in several] for part, several in conversations.items()}


class Interview:
    """Holds the conversations of a measurement with one model.

    Args:
        fatal: exceptions that no rejected message explains, such as a limit of the caller.
    """

    def __init__(self, measurement: Measurement, fatal: tuple[type[Exception], ...] = ()) -> None:
        self._what, self._firsts, self._fatal = measurement, FirstAttempts(), fatal
        self._no_empty_drafts = False

    async def about(self, place: int, first: int, ask: Ask) -> Conversations:
        """Return all conversations about the problem at a place, whose samples are numbered from ``first``."""
        plan = self._what.plan
        own = [await self._first(place, s, ask) for s in range(first, first + self._what.samples)]
        given = self._given(place)
        found: Conversations = {
            Part.ATTEMPTS: [
                await self._held(Part.ATTEMPTS, place, s, ask, plan.turns, draft=given, opening=reply)
                for s, reply in enumerate(own, first)
            ]
        }
        again = range(first, first + plan.samples) if plan.sampled_temperature is not None else range(0)
        if again:
            found[Part.SAMPLED] = [
                await self._held(Part.SAMPLED, place, s, ask, plan.turns, draft=given) for s in again
            ]
        if again and plan.controls:
            found[Part.RESAMPLE] = [await self._held(Part.RESAMPLE, place, s, ask, 1) for s in again]
        for part in BLIND if plan.controls else ():
            several = await self._blind(part, place, first, ask, own)
            if several is not None:
                found[part] = several
        return found

    async def _blind(
        self, part: Part, place: int, first: int, ask: Ask, own: Sequence[Reply]
    ) -> list[list[Written]] | None:
        """Return the second attempts at one kind of blind draft; None if the model's provider rejects empty messages."""
        if part is Part.EMPTY and self._no_empty_drafts:
            return None
        found = []
        for s, reply in enumerate(own, first):
            draft = await self._draft(part, place, s, ask, reply)
            try:
                found.append(await self._held(part, place, s, ask, 2, draft=draft))
            except self._fatal:
                raise
            except Exception:  # the boundary to the provider, each of which has its own errors
                if part is not Part.EMPTY:
                    raise
                self._no_empty_drafts = True
                return None
        return found

    async def _draft(self, part: Part, place: int, sample: int, ask: Ask, own: Reply) -> Reply:
        if part is Part.EMPTY:
            return Reply("", StopReason.END, None)
        if part is Part.SWAP:
            return await self._first((place + 1) % len(self._what.problem_set.problems), sample, ask)
        name = self._what.problem_set.problems[place].id
        text = shuffled_draft(own.text, seed=self._what.plan.seed, problem_id=name, sample=sample)
        return Reply(text, StopReason.END, None)

    def _given(self, place: int) -> Reply | None:
        """Return the first attempt that the task supplies (repair); None if the model writes it."""
        supplied = getattr(self._what.problem_set.task, "first_attempt", None)
        return (
            None if supplied is None else Reply(supplied(self._what.problem_set.problems[place]), StopReason.END, None)
        )

    async def _first(self, place: int, sample: int, ask: Ask) -> Reply:
        """Return the first attempt at a problem, sampled as its own conversation samples it."""
        given = self._given(place)
        if given is not None:
            return given
        opening = MessageContext().begin(self._what.problem_set.script, self._what.problem_set.problems[place]).prompt
        seed = self._seed(Part.ATTEMPTS, place, sample, 0)
        return await self._firsts.get((place, sample), lambda: ask(opening, None, seed))

    async def _held(
        self,
        part: Part,
        place: int,
        sample: int,
        ask: Ask,
        turns: int,
        *,
        draft: Reply | None = None,
        opening: Reply | None = None,
    ) -> list[Written]:
        """Hold one conversation; ``opening`` is the model's own first attempt, if it has written that already."""
        temperature = self._what.plan.sampled_temperature if part in (Part.SAMPLED, Part.RESAMPLE) else None

        async def replies(messages: Sequence[Message], k: int) -> Reply:
            if k == 0 and opening is not None:
                return opening
            return await ask(messages, temperature, self._seed(part, place, sample, k))

        problem_set = self._what.problem_set
        script = problem_set.script.with_turns(turns)
        return await converse(problem_set.problems[place], script, MessageContext(), replies, draft)

    def _seed(self, part: Part, place: int, sample: int, turn: int) -> int:
        return request_seed(self._what.request(part, place, sample), turn)


# --- from conversations to figures ------------------------------------------------------------------


def stored(conversations: Conversations) -> dict[str, Any]:
    """Return conversations as plain values."""
    return {part.value: [[asdict(turn) for turn in one] for one in several] for part, several in conversations.items()}


def restored(plain: Mapping[str, Any]) -> Conversations:
    """Invert `stored`."""
    return {Part(part): [[_turn(turn) for turn in one] for one in several] for part, several in plain.items()}


def _turn(plain: Mapping[str, Any]) -> Written:
    said = plain["reply"]
    sampled = {"ids": tuple(said["ids"]), "logprobs": tuple(said["logprobs"])}
    reply = Reply(**{**said, **sampled, "stop": StopReason(said["stop"])})
    stated = None if plain.get("said") is None else Judgement(plain["said"])
    return Written(reply, Role(plain["role"]), tuple(plain["observation_ids"]), online=plain["online"], said=stated)


def evaluation_of_problems(problems: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], *, seed: int) -> Evaluation:
    """Return the evaluation of the stored episodes of several problems, each by part.

    A part that is missing at some problem is left out, as are the empty drafts that a provider rejects.
    """
    parts = [part for part in PARTS if all(part in problem for problem in problems)]
    episodes = {part: [StoredEpisode.from_json(e) for problem in problems for e in problem[part]] for part in parts}
    return evaluation_of(episodes, seed=seed, context_mode=MESSAGES)
