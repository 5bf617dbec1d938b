"""Running a script on token ids: turn 1, turn 2, ... of every sample of every problem, then the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from selfcorrect.engines import Completion, Engine, Request, Sampling
from selfcorrect.errors import ContextError
from selfcorrect.rng import SampleKey
from selfcorrect.rollout.chat_format import ChatFormat, draft_ids
from selfcorrect.script import UserTurn, judgement
from selfcorrect.types import Episode, Judgement, Problem, Role, Turn, Verdict


class Verifies(Protocol):
    """Anything that returns verdicts, such as `tasks.verifier.Verifier`."""

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]: ...


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request for one episode: a problem, the number of the sample, and the key of its random numbers."""

    problem: Problem
    sample: int
    seed: int
    purpose: str
    step: int

    def key(self, turn: int) -> SampleKey:
        return SampleKey(self.seed, self.purpose, self.step, self.problem.id, self.sample, turn)


@dataclass(frozen=True, slots=True)
class GivenAttempt:
    """A first attempt that the policy does not sample, but continues as context only.

    With a ``verdict`` it is a stored one: it is not verified again, and no completion of this step (`Turn.copied`).
    """

    completion: Completion
    verdict: Verdict | None = None

    @classmethod
    def stored(cls, turn: Turn) -> GivenAttempt:
        """Return an attempt of an earlier episode."""
        return cls(Completion(turn.ids, turn.logprobs, turn.stop), turn.verdict)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A model turn of any role, before its verdict."""

    observation_ids: tuple[int, ...]
    completion: Completion
    online: bool
    copied: bool
    said: Judgement | None = None


def roll_out(
    samples: Sequence[RolloutRequest],
    *,
    engine: Engine,
    chat: ChatFormat,
    verifier: Verifies,
    sampling: Sampling,
    trained: Callable[[int, int], bool] = lambda sample, turn: True,
    given: Sequence[GivenAttempt | None] = (),
    revisions: int = 1,
    told: bool = False,
    sampled: Callable[[int], None] = lambda replies: None,
) -> list[Episode]:
    """Run ``chat.script`` for every sample; the episodes come in the order of the samples.

    A truncated attempt is verified like any other, and the next attempt still follows. Feedback is sampled like an
    attempt and extends the context of the next one. A conversation ends before a user turn whose condition it does not meet;
    its remaining turns are skipped.

    Args:
        trained: whether the policy learns from an attempt that it sampled, by sample and model turn (counted from 0);
            other attempts count as offline.
        given: for each sample, the first attempt to use instead of sampling one, or None; empty = none at all.
        revisions: adjacent samples of a problem that continue one first attempt. The first of them samples it.
        told: write each verification instead of sampling it: it says of the attempt before it what the verifier says.
        sampled: called after every turn with the number of completions that were sampled.
    """
    script = chat.script.user_turns()
    contexts = [chat.prompt(sample.problem.prompt) for sample in samples]
    observation_ids: list[tuple[int, ...]] = list(contexts)
    handles: list[object] = [None] * len(samples)
    drafts: list[list[_Draft]] = [[] for _ in samples]
    said: list[Judgement | None] = [None] * len(samples)
    others = {i: attempt for i, attempt in enumerate(given) if attempt is not None}
    known = {(i, 0): attempt.verdict for i, attempt in others.items() if attempt.verdict is not None}
    going = list(range(len(samples)))
    for k, user in enumerate(script):
        if user.when is not None:
            going = _still_going(going, said, user.when, handles)
        if k > 0:
            for i in going:
                last = drafts[i][-1].completion.ids
                observation_ids[i] = chat.observation_ids(k, samples[i].problem.prompt, last)
                contexts[i] = (*contexts[i], *last, *observation_ids[i])
        requests = [Request(contexts[i], samples[i].key(k), handles[i]) for i in going]
        if not requests:
            break
        if told and user.role is Role.VERIFICATION:
            attempt = max(j for j in range(k) if script[j].role is Role.ATTEMPT)
            answers = {i: (samples[i].problem, chat.text(drafts[i][attempt].completion.ids)) for i in going}
            verdicts = dict(zip(going, verifier.verify([*answers.values()]), strict=True))
            known |= {(i, attempt): verdict for i, verdict in verdicts.items()}
            _write(verdicts, user, observation_ids, drafts, said, handles, chat=chat, max_tokens=sampling.max_tokens)
            continue
        own = range(len(requests)) if k else [i for i in going[::revisions] if i not in others]
        made = engine.generate([requests[place] for place in own], sampling, keep=k + 1 < len(script)) if own else []
        if made:
            sampled(len(made))
        completions = made if k else _first_attempts(dict(zip(own, made, strict=True)), others, len(samples), revisions)
        for i, completion in zip(going, completions, strict=True):
            online = k > 0 or i not in others
            handles[i] = completion.handle if online else None  # the only reference, so the next turn frees the cache
            copied = k == 0 and ((i, 0) in known or i % revisions > 0)
            learnt = online and not copied and trained(samples[i].sample, k)
            drafts[i].append(_Draft(observation_ids[i], replace(completion, handle=None), learnt, copied))
            if user.role is Role.VERIFICATION:
                said[i] = judgement(chat.text(completion.ids), *user.phrases)
                drafts[i][-1] = replace(drafts[i][-1], said=said[i])
    return _judge(samples, drafts, chat, verifier, revisions, known)


def _write(
    verdicts: Mapping[int, Verdict],
    user: UserTurn,
    observation_ids: Sequence[tuple[int, ...]],
    drafts: Sequence[list[_Draft]],
    said: list[Judgement | None],
    handles: list[object],
    *,
    chat: ChatFormat,
    max_tokens: int,
) -> None:
    """Write the verifications that these verdicts make true: one of the two phrases alone, up to the token limit."""
    correct, wrong = user.phrases
    for i, verdict in verdicts.items():
        said[i] = Judgement.CORRECT if verdict.correct else Judgement.WRONG
        ids, stop = draft_ids(chat, correct if verdict.correct else wrong, max_tokens)
        completion = Completion(ids, (0.0,) * len(ids), stop)
        drafts[i].append(_Draft(observation_ids[i], completion, online=False, copied=True, said=said[i]))
        handles[i] = None  # the engine did not sample this turn, so it cannot continue its cache


def _still_going(
    going: Sequence[int], said: Sequence[Judgement | None], when: Judgement, handles: list[object]
) -> list[int]:
    """Return the conversations in which the last verification said ``when``; the others release their caches."""
    kept = [i for i in going if said[i] is when]
    for i in {*going} - {*kept}:
        handles[i] = None
    return kept


def _first_attempts(
    own: Mapping[int, Completion], given: Mapping[int, GivenAttempt], count: int, revisions: int
) -> list[Completion]:
    """Return the first attempt of every sample: the given one, or the one that the first of its ``revisions`` sampled."""
    return [given[i].completion if i in given else own[i - i % revisions] for i in range(count)]


def _judge(
    samples: Sequence[RolloutRequest],
    drafts: Sequence[Sequence[_Draft]],
    chat: ChatFormat,
    verifier: Verifies,
    revisions: int,
    known: Mapping[tuple[int, int], Verdict],
) -> list[Episode]:
    """Verify the attempts, a copied one once and none of which the verdict is ``known``, and return the episodes."""
    roles = [turn.role for turn in chat.script.user_turns()]
    texts = [[chat.text(draft.completion.ids) for draft in turns] for turns in drafts]
    items = {
        (i, k): (sample.problem, texts[i][k])
        for i, sample in enumerate(samples)
        for k, (draft, role) in enumerate(zip(drafts[i], roles, strict=False))
        if role is Role.ATTEMPT and not draft.copied and (i, k) not in known
    }
    verdicts = {**known, **dict(zip(items, verifier.verify([*items.values()]), strict=True))}

    def turn(i: int, k: int) -> Turn:
        draft, done = drafts[i][k], drafts[i][k].completion
        verdict = verdicts.get((i - i % revisions if draft.copied else i, k))
        return Turn(
            draft.observation_ids,
            done.ids,
            done.logprobs,
            texts[i][k],
            done.stop,
            verdict,
            draft.online,
            roles[k],
            copied=draft.copied,
            said=draft.said,
        )

    return [
        Episode(sample.problem, sample.sample, with_skipped([turn(i, k) for k in range(len(drafts[i]))], roles))
        for i, sample in enumerate(samples)
    ]


def with_skipped(taken: Sequence[Turn], roles: Sequence[Role]) -> tuple[Turn, ...]:
    """Return the turns of a conversation, of which those after the ``taken`` ones were skipped; ``roles`` has all of them."""
    return (*taken, *(Turn.not_taken(role, taken) for role in roles[len(taken) :]))


def shuffled_verdicts(episodes: Sequence[Episode], group: int, rng: np.random.Generator) -> list[Episode]:
    """Return the episodes with their verdicts permuted within each ``group`` of samples of a problem (a control).

    A verdict then carries no information about its sample, but every group keeps its rewards: after the leave-one-out
    baseline they are noise of the usual size. The verdicts of an episode stay together.
    """
    source = np.concatenate([rng.permutation(range(at, at + group)) for at in range(0, len(episodes), group)])
    return [
        replace(episode, turns=_with_verdicts_of(episodes[source[i]].turns, episode.turns))
        for i, episode in enumerate(episodes)
    ]


def _with_verdicts_of(others: Sequence[Turn], turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return turns with the verdicts of others; a skipped attempt still repeats the attempt before it."""
    taken = [
        replace(turn, verdict=other.verdict) for turn, other in zip(turns, others, strict=True) if not turn.skipped
    ]
    return with_skipped(taken, [turn.role for turn in turns])


def check_context(problems: Sequence[Problem], chat: ChatFormat, max_tokens: int, context_limit: int) -> int:
    """Return the length of the longest possible episode of these problems, in tokens.

    Raises:
        ContextError: the episode would exceed the model's context.
    """
    turns = len(chat.script.user_turns())
    longest = max(problems, key=lambda problem: len(chat.prompt(problem.prompt)))
    prompt = len(chat.prompt(longest.prompt))
    instructions = sum(len(chat.observation_ids(k, longest.prompt, ())) for k in range(1, turns))
    total = prompt + turns * max_tokens + instructions
    if total > context_limit:
        raise ContextError(
            f"an episode could take {total} tokens (prompt {prompt} of problem {longest.id!r}, {turns} turns of at most "
            f"{max_tokens}, instructions {instructions}), but the model's context is {context_limit}: lower "
            "the token limit (rollout.max_tokens, --max-tokens) or the number of turns, or leave out long problems."
        )
    return total
