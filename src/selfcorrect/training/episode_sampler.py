"""Sampling of a stage's episodes: the problems of each step, who samples which attempt, and the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from selfcorrect.config.schema import Config
from selfcorrect.config.settings import MAX_STEPS
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Engine, Sampling
from selfcorrect.method.dynamic_sampling import informative_groups, kept_groups
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator, shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, Verifies, roll_out, shuffled_verdicts
from selfcorrect.training.stage_trainer import completions, sampled_tokens
from selfcorrect.types import Episode, Problem, Turn

BEYOND = MAX_STEPS + 1
"""The distance, in steps, from a step's batch to its next one in the stream of problems and of random numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class StepSample:
    """The episodes of a step.

    Attributes:
        learnt: the batch to learn from, whole groups.
        first: the step's own batch, which no verdict selected: what is measured of a step is measured here.
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
        sampled: the models whose own weights the engines use; while they sample, those lie whole in every process.
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
    ) -> None:
        self.sampled = sampled
        self.config, self.name, self.stage = config, name, config.stages[name]
        self.problems, self.chat, self.verifier = problems, chat, verifier
        self.engine, self.base_engine, self.world = engine, base_engine, world
        self.group = config.rollout.group_size
        self.sampling = Sampling(config.rollout.temperature, config.rollout.max_tokens, config.rollout.stop)

    def sample_step(self, step: int) -> StepSample:
        """Sample a step's batch and, as `max_gen_batches` allows, further ones until enough groups have a signal.

        All processes have all episodes, so they decide alike. A further batch is that of a step that no stage reaches, its own
        for every step: nothing needs to be remembered, and a resumed run samples the same.
        """
        stage = self.stage
        sampled = first = self.sample(step)
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

    def _informative(self, episodes: Sequence[Episode], stage: ReinforcementStage) -> list[bool]:
        rewards_NK = torch.tensor([episode.rewards for episode in episodes], dtype=torch.float64)
        online_NK = torch.tensor([[turn.online for turn in episode.attempts] for episode in episodes])
        return informative_groups(rewards_NK, online_NK, self.group, stage)

    def sample(
        self, step: int, *, chat: ChatFormat | None = None, revised: Sequence[Turn] | None = None
    ) -> list[Episode]:
        """Return G episodes for each of a step's problems; the episodes of a problem are adjacent.

        Each process samples its share, whole groups, and gets the episodes of all.

        Args:
            chat: another conversation than the sampler's.
            revised: first attempts of an earlier step, one for each group, whose episodes all continue it.
        """
        stage = self.stage if isinstance(self.stage, ReinforcementStage) else None
        offline = round(stage.offline_share * self.group) if stage else 0
        apart = stage is not None and stage.offline_apart
        requests = self._requests(step)
        own = self.own(len(requests))
        with ExitStack() as stack:
            for model in self.sampled:
                stack.enter_context(model.placement.whole())
            stack.enter_context(self.world.together())
            drafts = None if revised is None else [revised[place // self.group] for place in own]
            episodes = self._roll_out(
                requests[own.start : own.stop], offline, apart=apart, chat=chat or self.chat, revised=drafts
            )
        episodes = self.world.chain(episodes)
        if self.config.task.shuffle_verdicts:
            return shuffled_verdicts(episodes, self.group, generator(self.config.seed, "shuffle", self.name, step))
        return episodes

    def own(self, episodes: int) -> range:
        """Return the positions of this process's episodes among a step's: whole groups."""
        groups = self.world.share(-(-episodes // self.group))
        return range(*(min(episodes, place * self.group) for place in (groups.start, groups.stop)))

    def _roll_out(
        self,
        requests: Sequence[RolloutRequest],
        offline: int,
        *,
        apart: bool,
        chat: ChatFormat,
        revised: Sequence[Turn] | None,
    ) -> list[Episode]:
        if not requests:
            return []
        return roll_out(
            requests,
            engine=self.engine,
            chat=chat,
            verifier=self.verifier,
            sampling=self.sampling,
            base_engine=self.base_engine,
            offline=lambda sample: sample % self.group < offline,
            trained=lambda sample, turn: turn == 0 or sample % self.group < offline or not apart,
            revised=revised,
            revisions=self.stage.revisions if isinstance(self.stage, ReinforcementStage) else 1,
            told=self.stage.told,
        )

    def step_problems(self, step: int) -> list[Problem]:
        """Return the step's slice of an endless stream that shuffles the data again for every pass."""
        count = self.config.batch_size(self.stage) // self.group
        places = range(step * count, (step + 1) * count)
        return [self.problems[i] for i in shuffled(places, len(self.problems), self.config.seed, "order", self.name)]

    def _requests(self, step: int) -> list[RolloutRequest]:
        """Continue the sample numbers of a problem that appears twice, where one pass over the data meets the next."""
        begun: Counter[str] = Counter()
        requests = []
        for problem in self.step_problems(step):
            first, begun[problem.id] = begun[problem.id], begun[problem.id] + self.group
            numbers = range(first, first + self.group)
            requests += [RolloutRequest(problem, g, self.config.seed, f"train/{self.name}", step) for g in numbers]
        return requests
