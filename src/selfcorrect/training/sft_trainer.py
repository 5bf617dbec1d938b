"""The supervised methods STaR, Pair-SFT and self-rewarding's first stage, with the trainer's rollouts and optimizer.

A stage consists of rounds. Each step in the first half of a round samples a batch of episodes; each step in the second half
takes an update. With the same `steps`, a stage thus samples and updates as often as one of reinforcement learning. A round
samples with the model of the previous round and trains the stage's initial weights from scratch, with a fresh optimizer and
schedule. The last model is kept, because there is no training reward to select by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import SupervisedStage
from selfcorrect.distributed.shards import like
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Engine, EngineSettings, computing_models, open_engine
from selfcorrect.errors import TrainingError
from selfcorrect.method.pairs import Pair, chosen_pairs, from_tensors, to_tensors
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator, shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import Verifies
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.episode_sampler import EpisodeSampler
from selfcorrect.training.learner import Learner
from selfcorrect.training.sample import CONTEXT, Segment, TrainingSample
from selfcorrect.training.sft import supervised_batches, supervised_gradient
from selfcorrect.training.stage_trainer import StageState, StepRecord, completions, sampled_tokens
from selfcorrect.training.step_metrics import episode_metrics
from selfcorrect.training.timing import Clock
from selfcorrect.types import Episode, Problem


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a stage's rounds: ``step`` of the round's 2 * ``length`` steps, the first half of which sample."""

    round: int
    step: int
    length: int

    @property
    def samples(self) -> bool:
        return self.step < self.length

    @property
    def update(self) -> int:
        return self.step - self.length


def place_of(step: int, steps: int, rounds: int) -> Place:
    """Return the place of a trainer's step, counted from 0, in a stage of ``steps`` updates.

    >>> [place_of(step, 3, 2).round for step in range(6)]
    [0, 0, 1, 1, 1, 1]
    >>> [place_of(step, 3, 2).samples for step in range(6)]
    [True, False, True, True, False, False]
    """
    starts = [2 * (steps * r // rounds) for r in range(rounds + 1)]
    current = next(r for r in range(rounds) if step < starts[r + 1])
    return Place(current, step - starts[current], (starts[current + 1] - starts[current]) // 2)


class SFTTrainer:
    """A trainer of one supervised stage, step by step. It takes the arguments of `Trainer` and ignores the references."""

    stage: SupervisedStage

    def __init__(
        self,
        config: Config,
        name: str,
        *,
        policy: LanguageModel,
        references: Mapping[str, LanguageModel],
        problems: Sequence[Problem],
        chat: ChatFormat,
        verifier: Verifies,
        engine: Engine | None = None,
        world: World = ALONE,
    ) -> None:
        stage = config.stages[name]
        assert isinstance(stage, SupervisedStage)
        self.config, self.name, self.stage, self.policy = config, name, stage, policy
        self.problems, self.chat, self.world = problems, chat, world
        settings = EngineSettings.of(config)
        engine = engine or open_engine(settings, policy)
        self.sampler = EpisodeSampler(
            config,
            name,
            problems=problems,
            chat=chat,
            verifier=verifier,
            engine=engine,
            world=world,
            sampled=computing_models(settings, policy),
        )
        self.learner = Learner(policy, config.optimizer, learning_rate=stage.learning_rate, world=world)
        self.state = StageState()
        self.clock = Clock(policy.device)
        self.place_of_problem = {problem.id: i for i, problem in enumerate(problems)}
        self.collected: list[Pair] = []
        self.start = self.learner.weights()
        self._chosen: tuple[int, list[Pair]] | None = None

    @property
    def place(self) -> Place:
        """Return the place of the next step."""
        return place_of(self.state.step, self.stage.steps, self.stage.rounds)

    def step(self) -> StepRecord:
        """Sample a batch of episodes, or take an update on pairs chosen from the round's episodes."""
        self.clock = Clock(self.policy.device)
        return self.collect() if self.place.samples else self.fit()

    # -- sampling --------------------------------------------------------------------------------------------------

    def collect(self) -> StepRecord:
        """Sample a batch of episodes from the current model and keep their pairs for the round's updates."""
        if self.place.step == 0:
            self.collected = []
        with self.clock("generate"):
            episodes = self.sampler.sample(self.state.step)
        self.collected += [self.pair(episode) for episode in episodes]
        rewards_NK = torch.tensor([episode.rewards for episode in episodes], dtype=torch.float64)
        found = episode_metrics(episodes, rewards_NK, self.config.rollout.group_size)
        spent = {"completions": completions(episodes), "sampled_tokens": sampled_tokens(episodes), "updates": 0}
        return self.step_record({**found, **spent}, episodes)

    def pair(self, episode: Episode) -> Pair:
        first, second = episode.attempts
        one, two = (verdict.correct for verdict in episode.verdicts)
        place = self.place_of_problem[episode.problem.id]
        if self.stage.told:
            said = episode.turns[1]
            return Pair(
                place, first.ids, said.observation_ids, second.ids, (one, two), said.ids, second.observation_ids
            )
        return Pair(place, first.ids, episode.observations[1], second.ids, (one, two))

    # -- training --------------------------------------------------------------------------------------------------

    def fit(self) -> StepRecord:
        """Take one update on a batch of pairs."""
        if self.place.update == 0:
            self.learner.restart(self.start)
        pairs, rate = self.pairs(), self.learning_rate()
        with self.clock("learn"):
            chosen = self.batch_of(pairs)
            own = self.world.share(len(chosen))
            samples = [self.sample(pair) for pair in chosen[own.start : own.stop]]
            fit = supervised_gradient(self.learner, samples, rows=len(chosen))
        with self.clock("update"):
            norm = self.update()
        self.engine.load_weights(self.policy)
        found = {
            "loss": fit.loss,
            "known": fit.known,
            "pairs": len(pairs),
            "correct_pairs": sum(pair.correct[0] for pair in pairs),
            "gradient_norm": norm,
            "learning_rate": rate,
            "completions": 0,
            "sampled_tokens": 0,
            "updates": 1,
        }
        return self.step_record(found, [])

    def pairs(self) -> list[Pair]:
        """Return the pairs that this round trains on; every call in a round returns the same ones.

        Raises:
            TrainingError: no episode of the round yields a pair.
        """
        current = self.place.round
        if self._chosen is None or self._chosen[0] != current:
            rng = generator(self.config.seed, "pairs", self.name, current)
            self._chosen = current, chosen_pairs(self.collected, self.stage, rng)
        if not self._chosen[1]:
            raise TrainingError(
                f"stage {self.name!r}, round {current + 1}: none of {len(self.collected)} episodes yields a pair to train on, "
                "because the model is never correct where this method needs it. Start from a better model, or sample more."
            )
        return self._chosen[1]

    def batch_of(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Return this update's slice of an endless stream that shuffles the pairs again for every pass."""
        size, place = self.config.batch_size(self.stage), self.place
        places = range(place.update * size, (place.update + 1) * size)
        return [pairs[i] for i in shuffled(places, len(pairs), self.config.seed, "fit", self.name, place.round)]

    def rows(self, pairs: Sequence[Pair]) -> list[MicroBatch]:
        """Pack the pairs into micro-batches that train the second attempts, or both (`learn`), and verifications."""
        return supervised_batches(self.learner, [self.sample(pair) for pair in pairs])

    def sample(self, pair: Pair) -> TrainingSample:
        """Return a pair as the conversation to train on."""
        prompt = self.chat.prompt(self.problems[pair.problem].prompt)
        first = Segment(prompt, pair.first, 0 if self.stage.learn == "both" else CONTEXT)
        if not self.stage.told:
            return TrainingSample.of_segments([first, Segment(pair.observation_ids, pair.second, 1)])
        if not pair.correct[0]:
            first = Segment(prompt, pair.first)
        verification = Segment(pair.observation_ids, pair.verification, 1)
        return TrainingSample.of_segments([first, verification, Segment(pair.asked_again, pair.second, 2)])

    def update(self) -> float:
        """Update the weights; return the gradient's norm before clipping."""
        return self.learner.update(self.learning_rate(), f"stage {self.name!r}, step {self.state.step + 1}")

    def learning_rate(self) -> float:
        """Return the learning rate of the next update; the schedule spans one round."""
        return self.learner.learning_rate(self.place.update, self.place.length)

    # -- what is logged and saved ----------------------------------------------------------------------------------

    def step_record(self, metrics: Mapping[str, Any], episodes: Sequence[Episode]) -> StepRecord:
        """Count the step and return its record."""
        where = {"stage": self.name, "step": self.state.step + 1, "round": self.place.round + 1}
        self.state.step += 1
        speed = sampled_tokens(episodes) / max(1e-9, self.clock.total())
        return StepRecord({**where, **metrics}, self.clock.seconds, speed, episodes)

    def selection_metric(self) -> float:
        """Return the step, so that the last model is kept."""
        return float(self.state.step)

    @property
    def engine(self) -> Engine:
        """Return the engine that samples the policy's turns."""
        return self.sampler.engine

    def state_dict(self) -> dict[str, Any]:
        return {
            "state": asdict(self.state),
            "step": self.state.step,
            "start": self.start,
            "collected": to_tensors(self.collected),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = StageState(**state["state"])
        self.collected = from_tensors(state["collected"])
        for weight, saved in zip(self.start, state["start"], strict=True):
            weight.copy_(like(saved, weight))
