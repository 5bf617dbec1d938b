"""Sampling of a stage's episodes: the problems of each step, who samples which attempt, and the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from selfcorrect.config.schema import Config
from selfcorrect.config.settings import MAX_STEPS
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Engine, Request, Sampling
from selfcorrect.method.dynamic_sampling import informative_groups, kept_groups
from selfcorrect.method.self_verification import balanced
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator, shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.draft_verification import verify_drafts
from selfcorrect.rollout.rollout import GivenAttempt, RolloutRequest, Verifies, roll_out, shuffled_verdicts
from selfcorrect.training.replay import ReplayPool
from selfcorrect.training.stage_trainer import completions, sampled_tokens
from selfcorrect.types import Episode, Problem, Role, Turn

BEYOND = MAX_STEPS + 1
"""The distance, in steps, from a step's batch to its next one in the stream of problems and of random numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class StepSample:
    """The episodes of a step.

    Attributes:
        learnt: the batch to learn from, whole groups.
        first: the step's own batch, which no verdict selected: what is measured of a step is measured here. Of `learnt`, these
            come first if the others replay stored first attempts.
        sampled: all episodes, those that are left out included.
    """

    learnt: Sequence[Episode]
    first: Sequence[Episode]
    sampled: Sequence[Episode]

    @property
    def completions(self) -> int:
        """Return the number of completions that were sampled."""
        return completions(self.sampled)

    @property
    def tokens(self) -> int:
        """Return the number of tokens that were sampled."""
        return sampled_tokens(self.sampled)


class EpisodeSampler:
    """A sampler of a stage's episodes, which depend only on the run's seed, the step and the engines' weights.

    Args:
        config: the whole run's settings.
        name: the stage's name in ``config.stages``.
        problems: training problems.
        chat: the conversation, with as many turns as the stage.
        verifier: returns the verdicts.
        engine: samples the policy's turns.
        base_engine: samples the base model's first attempts, if the stage uses any.
        world: the processes that share the problems of a step.
        sampled: the models whose own weights ``engine`` uses; while it samples, those lie whole in every process.
        base_sampled: the same of ``base_engine``.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        *,
        problems: Sequence[Problem],
        chat: ChatFormat,
        verifier: Verifies,
        engine: Engine,
        base_engine: Engine | None = None,
        world: World = ALONE,
        sampled: Sequence[LanguageModel] = (),
        base_sampled: Sequence[LanguageModel] = (),
    ) -> None:
        self.sampled, self.base_sampled = sampled, base_sampled
        self.config, self.name, self.stage = config, name, config.stages[name]
        self.problems, self.chat, self.verifier = problems, chat, verifier
        self.engine, self.base_engine, self.world = engine, base_engine, world
        self.group = config.rollout.group_size
        self.sampling = Sampling(config.rollout.temperature, config.rollout.max_tokens, config.rollout.stop)
        self.replay = self.stage.replay if isinstance(self.stage, ReinforcementStage) else None
        self.pool = ReplayPool(self.replay.size) if self.replay else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the steps that were sampled: the stored first attempts, if there are to be any."""
        return {} if self.pool is None else {"replay": self.pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Restore what `state_dict` returned from a larger state; return the rest of that.

        Raises:
            LookupError, ValueError: the stored first attempts are missing or malformed.
        """
        rest = dict(state)
        if self.pool is not None:
            self.pool.load_state_dict(rest.pop("replay"), self.problems)
        return rest

    def sample_step(self, step: int) -> StepSample:
        """Sample a step's batch and, as `max_gen_batches` allows, further ones until enough groups have a signal.

        All processes have all episodes, so they decide alike. A further batch is that of a step that no stage reaches, its own
        for every step: nothing needs to be remembered, and a resumed run samples the same.
        """
        stage = self.stage
        if self.pool is not None:
            return self._with_replay(step, self.pool)
        sampled = first = self.sample(step)
        if stage.verifies_drafts:
            sampled = first = self.with_verifications(step, first)
        if not isinstance(stage, ReinforcementStage) or stage.max_gen_batches == 1:
            return StepSample(sampled, first, sampled)
        wanted = len(first) // self.group
        informative = self._informative(first, stage)
        for again in range(1, stage.max_gen_batches):
            if sum(informative) >= wanted:
                break
            found = self.sample(step + again * BEYOND)
            sampled, informative = [*sampled, *found], [*informative, *self._informative(found, stage)]
        kept = kept_groups(informative, wanted)
        return StepSample(
            [sampled[place * self.group + g] for place in kept for g in range(self.group)], first, sampled
        )

    def _with_replay(self, step: int, pool: ReplayPool) -> StepSample:
        """Sample a step's own groups and those that revise stored first attempts.

        The base's are sampled for the stage's first step; the policy's own are stored for the steps after this one. While the
        pool lacks a kind, own groups take the place of those that would revise it.
        """
        assert self.replay is not None
        from_base = self._base_attempts(2 * self.replay.size) if self.replay.pool == "base" and step == 0 else []
        pool.add(from_base)
        groups, each = self.config.replayed_groups(self.stage), self.group // self.again
        numbers = range(step * groups * each, (step + 1) * groups * each)
        drafts = pool.draw(numbers, generator(self.config.seed, "replay", self.name, step))
        drafts = drafts[: len(drafts) - len(drafts) % each]
        episodes = self.sample(step, drafts)
        first = episodes[: len(episodes) - len(drafts) * self.again]
        if self.replay.pool == "policy":
            pool.add(first)
        return StepSample(episodes, first, [*episodes, *from_base])

    @property
    def again(self) -> int:
        """Return how often a stored first attempt is revised: in trees as often as an own one, or else by a whole group."""
        revisions = self.stage.revisions if isinstance(self.stage, ReinforcementStage) else 1
        return revisions if revisions > 1 else self.group

    def _base_attempts(self, count: int) -> list[Episode]:
        """Return first attempts of the base, one a problem as long as there are enough problems."""
        assert self.base_engine is not None
        order = shuffled(range(count), len(self.problems), self.config.seed, "replay", self.name)
        requests = self._requests([(self.problems[i], 1) for i in order], f"replay/{self.name}", 0)
        own = self.world.share(count)
        chat = ChatFormat(self.chat.tokenizer, self.chat.script.with_turns(1), self.chat.options)
        with self._whole(self.base_sampled):
            episodes = (
                roll_out(
                    requests[own.start : own.stop],
                    engine=self.base_engine,
                    chat=chat,
                    verifier=self.verifier,
                    sampling=self.sampling,
                )
                if own
                else []
            )
        return self.world.chain(episodes)

    @contextmanager
    def _whole(self, models: Sequence[LanguageModel]) -> Iterator[None]:
        """Hold the models' weights whole within the block, in which this process samples its share."""
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(model.placement.whole())
            stack.enter_context(self.world.together())
            yield

    def _informative(self, episodes: Sequence[Episode], stage: ReinforcementStage) -> list[bool]:
        rewards_NK = torch.tensor([episode.rewards for episode in episodes], dtype=torch.float64)
        online_NK = torch.tensor([[turn.online for turn in episode.attempts] for episode in episodes])
        return informative_groups(rewards_NK, online_NK, self.group, stage)

    def sample(self, step: int, drafts: Sequence[Episode] = (), *, chat: ChatFormat | None = None) -> list[Episode]:
        """Return G episodes for each of a step's problems; the episodes of a problem are adjacent.

        Groups that revise stored first attempts (``drafts``) come last, in place of the step's last problems. Each process
        samples its share, whole groups, and gets the episodes of all. ``chat`` is another conversation than the sampler's.
        """
        problems = self.step_problems(step)
        owners = problems[: len(problems) - len(drafts) * self.again // self.group]
        counts = [(problem, self.group) for problem in owners] + [(draft.problem, self.again) for draft in drafts]
        requests = self._requests(counts, f"train/{self.name}", step)
        stored = [GivenAttempt.stored(draft.turns[0]) for draft in drafts for _ in range(self.again)]
        given = [*[None] * (len(requests) - len(stored)), *stored]
        own = self.own(len(requests))
        with self._whole([*self.sampled, *(self.base_sampled if self._offline else ())]):
            episodes = self._roll_out(requests[own.start : own.stop], given[own.start : own.stop], chat or self.chat)
        episodes = self.world.chain(episodes)
        if self.config.task.shuffle_verdicts:
            return shuffled_verdicts(episodes, self.group, generator(self.config.seed, "shuffle", self.name, step))
        return episodes

    def with_verifications(self, step: int, episodes: Sequence[Episode]) -> list[Episode]:
        """Return a step's groups of episodes, each followed by a group of verifications of one draft among their first attempts.

        All processes choose the same drafts, and each samples its share of the groups.
        """
        correct = [episode.rewards[0] > 0 for episode in episodes]
        texts = [(episode.problem.id, episode.turns[0].text) for episode in episodes]
        rng = generator(self.config.seed, "drafts", self.name, step)
        drafts = [episodes[i] for i in balanced(correct, texts, len(episodes) // self.group, rng)]
        requests = [(self._verification(draft, g, step), draft) for draft in drafts for g in range(self.group)]
        own = self.own(len(requests))
        with self._whole(self.sampled):
            found = verify_drafts(
                requests[own.start : own.stop], engine=self.engine, chat=self.chat, sampling=self.sampling
            )
        found = self.world.chain(found)
        solved = [replace(e, turns=(*e.turns, Turn.not_taken(Role.VERIFICATION, e.turns))) for e in episodes]
        places = range(0, len(episodes), self.group)
        return [each for i in places for part in (solved, found) for each in part[i : i + self.group]]

    def _verification(self, draft: Episode, g: int, step: int) -> RolloutRequest:
        sample = draft.sample * self.group + g
        return RolloutRequest(draft.problem, sample, self.config.seed, f"verify/{self.name}", step)

    def own(self, episodes: int) -> range:
        """Return the positions of this process's episodes among a step's: whole groups."""
        groups = self.world.share(-(-episodes // self.group))
        return range(*(min(episodes, place * self.group) for place in (groups.start, groups.stop)))

    @property
    def _offline(self) -> int:
        """Return how many first attempts of each group the base samples anew."""
        return round(self.stage.offline_share * self.group) if isinstance(self.stage, ReinforcementStage) else 0

    def _roll_out(
        self, requests: Sequence[RolloutRequest], given: Sequence[GivenAttempt | None], chat: ChatFormat
    ) -> list[Episode]:
        if not requests:
            return []
        offline = self._offline
        apart = isinstance(self.stage, ReinforcementStage) and self.stage.offline_apart
        return roll_out(
            requests,
            engine=self.engine,
            chat=chat,
            verifier=self.verifier,
            sampling=self.sampling,
            given=self._with_base(requests) if offline else given,
            trained=lambda sample, turn: turn == 0 or sample % self.group < offline or not apart,
            revisions=self.stage.revisions if isinstance(self.stage, ReinforcementStage) else 1,
            told=self.stage.told,
        )

    def step_problems(self, step: int) -> list[Problem]:
        """Return the step's slice of an endless stream that shuffles the data again for every pass."""
        count = self.config.batch_size(self.stage) // self.group
        places = range(step * count, (step + 1) * count)
        return [self.problems[i] for i in shuffled(places, len(self.problems), self.config.seed, "order", self.name)]

    def _with_base(self, requests: Sequence[RolloutRequest]) -> list[GivenAttempt | None]:
        """Return first attempts that the base samples for the first episodes of each group, None for the others."""
        assert self.base_engine is not None
        given: list[GivenAttempt | None] = [None] * len(requests)
        places = [i for i, request in enumerate(requests) if request.sample % self.group < self._offline]
        asked = [Request(self.chat.prompt(requests[i].problem.prompt), requests[i].key(0)) for i in places]
        for i, completion in zip(places, self.base_engine.generate(asked, self.sampling), strict=True):
            given[i] = GivenAttempt(completion)
        return given

    def _requests(self, counts: Sequence[tuple[Problem, int]], purpose: str, step: int) -> list[RolloutRequest]:
        """Return so many requests for each problem. One that appears again continues its sample numbers."""
        begun: Counter[str] = Counter()
        requests = []
        for problem, count in counts:
            first, begun[problem.id] = begun[problem.id], begun[problem.id] + count
            numbers = range(first, first + count)
            requests += [RolloutRequest(problem, g, self.config.seed, purpose, step) for g in numbers]
        return requests
