"""The episodes of a stage's steps: which problems come, who samples what, and the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfcorrect.config.schema import Config, ReinforcementStage
from selfcorrect.engines import Engine, Sampling
from selfcorrect.rng import generator, shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, Verifies, roll_out, shuffled_verdicts
from selfcorrect.types import Episode, Problem


class EpisodeSampler:
    """Samples the episodes of any step of a stage, a function of the run's seed and the step alone.

    Args:
        config: the whole run's settings.
        name: the stage's name in ``config.stages``.
        problems: training problems.
        chat: the conversation, with as many turns as the stage.
        verifier: gives the verdicts.
        engine: samples the policy's turns.
        base_engine: samples the base model's first attempts, where the stage has some.
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
    ) -> None:
        self.config, self.name, self.stage = config, name, config.stages[name]
        self.problems, self.chat, self.verifier = problems, chat, verifier
        self.engine, self.base_engine = engine, base_engine
        self.group = config.rollout.group_size
        self.sampling = Sampling(config.rollout.temperature, config.rollout.max_tokens, config.rollout.stop)

    def sample(self, step: int) -> list[Episode]:
        """Return G episodes for each of a step's problems, the episodes of a problem next to each other."""
        stage = self.stage if isinstance(self.stage, ReinforcementStage) else None
        offline = round(stage.offline_share * self.group) if stage else 0
        apart = stage is not None and stage.offline_apart
        episodes = roll_out(
            self._requests(step),
            engine=self.engine,
            chat=self.chat,
            verifier=self.verifier,
            sampling=self.sampling,
            base_engine=self.base_engine,
            offline=lambda sample: sample % self.group < offline,
            trained=lambda sample, turn: turn == 0 or sample % self.group < offline or not apart,
        )
        if self.config.task.shuffle_verdicts:
            return shuffled_verdicts(episodes, self.group, generator(self.config.seed, "shuffle", self.name, step))
        return episodes

    def step_problems(self, step: int) -> list[Problem]:
        """Return the step's part of an endless stream: each pass over the data in an order of its own."""
        count = self.config.batch_size(self.stage) // self.group
        places = range(step * count, (step + 1) * count)
        return [self.problems[i] for i in shuffled(places, len(self.problems), self.config.seed, "order", self.name)]

    def _requests(self, step: int) -> list[RolloutRequest]:
        """A problem that comes twice, at the end of one pass over the data and the start of the next, has further samples."""
        begun: Counter[str] = Counter()
        requests = []
        for problem in self.step_problems(step):
            first, begun[problem.id] = begun[problem.id], begun[problem.id] + self.group
            numbers = range(first, first + self.group)
            requests += [RolloutRequest(problem, g, self.config.seed, f"train/{self.name}", step) for g in numbers]
        return requests
