"""Running a script on token ids: turn 1, turn 2, ... of every sample of every problem, then the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from selfcorrect.engines import Completion, Engine, Request, Sampling
from selfcorrect.errors import ContextError
from selfcorrect.rng import SampleKey
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.types import Episode, Problem, Role, Turn, Verdict


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
class _Draft:
    """A model turn of any role, before its verdict."""

    observation_ids: tuple[int, ...]
    completion: Completion
    online: bool
    copied: bool


def roll_out(
    samples: Sequence[RolloutRequest],
    *,
    engine: Engine,
    chat: ChatFormat,
    verifier: Verifies,
    sampling: Sampling,
    base_engine: Engine | None = None,
    offline: Callable[[int], bool] = lambda sample: False,
    trained: Callable[[int, int], bool] = lambda sample, turn: True,
    given: Sequence[Completion] | None = None,
    revisions: int = 1,
) -> list[Episode]:
    """Run ``chat.script`` for every sample; the episodes come in the order of the samples.

    A truncated attempt is verified like any other, and the next attempt still follows. Feedback is sampled like an
    attempt and extends the context of the next one.

    Args:
        base_engine: samples the first attempts for which ``offline(sample.sample)`` holds (docs/method.md, section 6,
            "mixing first attempts sampled from the base model"); they are context only.
        trained: whether the policy learns from an attempt that it sampled, by sample and model turn (counted from 0);
            other attempts count as offline.
        given: first attempts to use instead of sampling them (the draft-swap control).
        revisions: adjacent samples of a problem that continue one first attempt. The first of them samples it.
    """
    turns = len(chat.script.user_turns())
    contexts = [chat.prompt(sample.problem.prompt) for sample in samples]
    observation_ids: list[tuple[int, ...]] = list(contexts)
    handles: list[object] = [None] * len(samples)
    drafts: list[list[_Draft]] = [[] for _ in samples]
    for k in range(turns):
        if k > 0:
            observation_ids = [
                chat.observation_ids(k, sample.problem.prompt, turns_so_far[-1].completion.ids)
                for sample, turns_so_far in zip(samples, drafts, strict=True)
            ]
            contexts = [
                (*context, *turns_so_far[-1].completion.ids, *extra)
                for context, turns_so_far, extra in zip(contexts, drafts, observation_ids, strict=True)
            ]
        requests = [
            Request(context, sample.key(k), handle)
            for context, sample, handle in zip(contexts, samples, handles, strict=True)
        ]
        if k == 0 and given is not None:
            completions = [(completion, False) for completion in given]
        elif k == 0 and revisions > 1:
            drafted = engine.generate(requests[::revisions], sampling, keep=k + 1 < turns)
            completions = [(drafted[i // revisions], True) for i in range(len(samples))]
        else:
            completions = _generate(
                requests,
                engine,
                base_engine if k == 0 else None,
                [offline(sample.sample) for sample in samples],
                sampling,
                keep=k + 1 < turns,
            )
        for i, (completion, online) in enumerate(completions):
            handles[i] = completion.handle if online else None  # the only reference, so the next turn frees the cache
            copied = k == 0 and i % revisions > 0
            learnt = online and not copied and trained(samples[i].sample, k)
            drafts[i].append(_Draft(observation_ids[i], replace(completion, handle=None), learnt, copied))
    return _judge(samples, drafts, chat, verifier, revisions)


def _generate(
    requests: Sequence[Request],
    engine: Engine,
    other: Engine | None,
    offline: Sequence[bool],
    sampling: Sampling,
    *,
    keep: bool,
) -> list[tuple[Completion, bool]]:
    """Return completions, each with whether the policy itself sampled it."""
    if other is None or not any(offline):
        return [(completion, True) for completion in engine.generate(requests, sampling, keep=keep)]
    mine = iter(engine.generate([r for r, off in zip(requests, offline, strict=True) if not off], sampling, keep=keep))
    theirs = iter(other.generate([r for r, off in zip(requests, offline, strict=True) if off], sampling))
    return [(next(theirs), False) if off else (next(mine), True) for off in offline]


def _judge(
    samples: Sequence[RolloutRequest],
    drafts: Sequence[Sequence[_Draft]],
    chat: ChatFormat,
    verifier: Verifies,
    revisions: int,
) -> list[Episode]:
    """Verify the attempts, a copied one once, and return the episodes."""
    roles = [turn.role for turn in chat.script.user_turns()]
    texts = [[chat.text(draft.completion.ids) for draft in turns] for turns in drafts]
    items = {
        (i, k): (sample.problem, texts[i][k])
        for i, sample in enumerate(samples)
        for k, (draft, role) in enumerate(zip(drafts[i], roles, strict=True))
        if role is Role.ATTEMPT and not draft.copied
    }
    verdicts = dict(zip(items, verifier.verify([*items.values()]), strict=True))

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
        )

    return [
        Episode(sample.problem, sample.sample, tuple(turn(i, k) for k in range(len(roles))))
        for i, sample in enumerate(samples)
    ]


def shuffled_verdicts(episodes: Sequence[Episode], group: int, rng: np.random.Generator) -> list[Episode]:
    """Return the episodes with their verdicts permuted within each ``group`` of samples of a problem (a control).

    A verdict then carries no information about its sample, but every group keeps its rewards: after the leave-one-out
    baseline they are noise of the usual size. The verdicts of an episode stay together.
    """
    source = np.concatenate([rng.permutation(range(at, at + group)) for at in range(0, len(episodes), group)])
    return [
        replace(
            episode,
            turns=tuple(
                replace(turn, verdict=other.verdict)
                for turn, other in zip(episode.turns, episodes[source[i]].turns, strict=True)
            ),
        )
        for i, episode in enumerate(episodes)
    ]


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
