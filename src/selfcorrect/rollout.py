"""Play a script: turn 1, turn 2, ... of every sample of every problem, then the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from selfcorrect.chat import ChatFormat
from selfcorrect.engines import Completion, Engine, Request, Sampling
from selfcorrect.errors import ConfigError
from selfcorrect.randomness import SampleKey
from selfcorrect.types import Episode, Problem, Turn, Verdict


class Verifies(Protocol):
    """Anything that gives verdicts: `tasks.Verifier`."""

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode to be played: a problem, the number of the sample, and where its random numbers come from."""

    problem: Problem
    sample: int
    seed: int
    purpose: str
    step: int

    def key(self, turn: int) -> SampleKey:
        return SampleKey(self.seed, self.purpose, self.step, self.problem.id, self.sample, turn)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A turn before its verdict."""

    glue: tuple[int, ...]
    completion: Completion
    online: bool


def roll_out(
    samples: Sequence[Sample],
    *,
    engine: Engine,
    chat: ChatFormat,
    verifier: Verifies,
    sampling: Sampling,
    first_engine: Engine | None = None,
    offline: Callable[[int], bool] = lambda sample: False,
    given: Sequence[Completion] | None = None,
) -> list[Episode]:
    """Play ``chat.script`` for every sample; the order of the episodes is the order of the samples.

    A truncated attempt is verified like any other and the next attempt is still made.

    Args:
        first_engine: samples the first attempts for which ``offline(sample.sample)`` holds (METHOD 2,
            "mixing first attempts sampled from the base model"); they are context only.
        given: first attempts to use instead of sampling them (the draft-swap control).
    """
    turns = chat.script.turns
    contexts = [chat.prompt(sample.problem.prompt) for sample in samples]
    glue: list[tuple[int, ...]] = list(contexts)
    handles: list[object] = [None] * len(samples)
    drafts: list[list[_Draft]] = [[] for _ in samples]
    for k in range(turns):
        if k > 0:
            glue = [
                chat.glue(k, sample.problem.prompt, played[-1].completion.ids)
                for sample, played in zip(samples, drafts, strict=True)
            ]
            contexts = [
                (*context, *played[-1].completion.ids, *extra)
                for context, played, extra in zip(contexts, drafts, glue, strict=True)
            ]
        requests = [
            Request(context, sample.key(k), handle)
            for context, sample, handle in zip(contexts, samples, handles, strict=True)
        ]
        if k == 0 and given is not None:
            played_now = [(completion, False) for completion in given]
        else:
            played_now = _generate(
                requests,
                engine,
                first_engine if k == 0 else None,
                [offline(sample.sample) for sample in samples],
                sampling,
                keep=k + 1 < turns,
            )
        for i, (completion, online) in enumerate(played_now):
            drafts[i].append(_Draft(glue[i], completion, online))
            handles[i] = completion.handle if online else None
    return _judge(samples, drafts, chat, verifier)


def _generate(
    requests: Sequence[Request],
    engine: Engine,
    other: Engine | None,
    offline: Sequence[bool],
    sampling: Sampling,
    *,
    keep: bool,
) -> list[tuple[Completion, bool]]:
    """Completions with whether the policy itself made them."""
    if other is None or not any(offline):
        return [(completion, True) for completion in engine.generate(requests, sampling, keep=keep)]
    mine = iter(engine.generate([r for r, off in zip(requests, offline, strict=True) if not off], sampling, keep=keep))
    theirs = iter(other.generate([r for r, off in zip(requests, offline, strict=True) if off], sampling))
    return [(next(theirs), False) if off else (next(mine), True) for off in offline]


def _judge(
    samples: Sequence[Sample], drafts: Sequence[Sequence[_Draft]], chat: ChatFormat, verifier: Verifies
) -> list[Episode]:
    texts = [[chat.text(draft.completion.ids) for draft in played] for played in drafts]
    items = [(sample.problem, text) for sample, played in zip(samples, texts, strict=True) for text in played]
    verdicts = iter(verifier.verify(items))
    return [
        Episode(
            sample.problem,
            sample.sample,
            tuple(
                Turn(d.glue, d.completion.ids, d.completion.logprobs, text, d.completion.stop, next(verdicts), d.online)
                for d, text in zip(played, played_texts, strict=True)
            ),
        )
        for sample, played, played_texts in zip(samples, drafts, texts, strict=True)
    ]


def shuffled_verdicts(episodes: Sequence[Episode], rng: np.random.Generator) -> list[Episode]:
    """The same episodes, their verdicts dealt out anew among the samples of each problem (a control).

    No verdict says anything of the sample that gets it, but every group keeps its rewards: what the leave-one-out
    baseline leaves of them is noise of the size that training has anyway. An episode's verdicts stay together.
    """
    groups: dict[str, list[int]] = {}
    for i, episode in enumerate(episodes):
        groups.setdefault(episode.problem.id, []).append(i)
    source = np.empty(len(episodes), dtype=int)
    for members in groups.values():
        source[members] = rng.permutation(members)
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
    """The longest episode that could come of these problems, in tokens.

    Raises:
        ConfigError: it would not fit the model's context; refused before any work starts.
    """
    turns = chat.script.turns
    longest = max(problems, key=lambda problem: len(chat.prompt(problem.prompt)))
    prompt = len(chat.prompt(longest.prompt))
    glue = sum(len(chat.glue(k, longest.prompt, ())) for k in range(1, turns))
    total = prompt + turns * max_tokens + glue
    if total > context_limit:
        raise ConfigError(
            f"an episode could take {total} tokens (prompt {prompt} of problem {longest.id!r}, {turns} turns of at most "
            f"{max_tokens}, instructions {glue}), but the model's context is {context_limit}: lower rollout.max_tokens, "
            "the number of turns, or leave out long problems."
        )
    return total
