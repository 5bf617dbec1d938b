"""An estimate of the time of a step and of a whole run, on GPUs or a CPU. The formulas stand in docs/scale.md."""

from __future__ import annotations

from dataclasses import dataclass

from selfcorrect.config.engine_names import HF
from selfcorrect.config.schema import Config
from selfcorrect.config.stages import DemonstrationStage, ReinforcementStage, StageConfig
from selfcorrect.evaluation.planned_parts import EvalPlan, planned_parts
from selfcorrect.rollout.rollouter import CHUNK
from selfcorrect.runs.model_shape import Cluster, Lengths, ModelShape
from selfcorrect.tasks.base import model_turns

LEARNING_SHARE, READING_SHARE = 0.35, 0.6
"""The fractions of a card's peak product rate and memory bandwidth that learning and decoding reach."""
CPU_LEARNING_SHARE, CPU_DECODING_SHARE = 0.5, 0.35
"""The same of a CPU's measured rates, where decoding many rows at once waits for products as well (docs/dev/bench.md)."""
LAUNCHES, LAUNCH_S = 42, 1e-5
"""Kernel launches of a decoded token per layer with the built-in engine, and the seconds of one: assumptions."""
FORWARD, BACKWARD = 2, 4
"""Operations per weight and token."""


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds of a run: of its largest step, and of the whole of it, without verifiers and the loading of models.

    Attributes:
        sample_s, learn_s: the two phases of a step.
        training_s: all steps of all stages.
        looks_s: the looks at the development problems, the base's included.
        final_s: the final evaluations of the base and of every stage, with their controls.
        launching: whether launching kernels, not reading weights, is what a decoded token waits for.
    """

    sample_s: float
    learn_s: float
    training_s: float
    looks_s: float
    final_s: float
    launching: bool

    @property
    def step_s(self) -> float:
        return self.sample_s + self.learn_s

    @property
    def evaluations_s(self) -> float:
        return self.looks_s + self.final_s

    @property
    def run_s(self) -> float:
        return self.training_s + self.evaluations_s


@dataclass(frozen=True, slots=True)
class Clock:
    """Estimates seconds on one of the GPUs that share the work, or on a CPU.

    ``width`` are the bytes of a number where it samples; ``held`` is the number of episodes whose keys and values the engine
    holds at once.
    """

    config: Config
    shape: ModelShape
    cluster: Cluster
    lengths: Lengths
    width: int
    held: int

    def times(self) -> Times:
        """Return the seconds of a step and of the whole run."""
        config = self.config
        stages = [*config.stages.values()]
        largest = max(stages, key=self.step_s, default=None)
        turns = config.turns if largest is None else largest.turns
        count = config.rollout.batch_size if largest is None else config.batch_size(largest)
        rows = min(config.rollout.max_num_seqs, self._share(count))
        return Times(
            sample_s=0.0 if largest is None else self._sampling_s(largest),
            learn_s=0.0 if largest is None else self._learn_s(largest),
            training_s=sum(stage.steps * self.step_s(stage) for stage in stages),
            looks_s=sum(map(self.looks_s, stages)) + self._look_at_base_s(),
            final_s=(1 + len(stages)) * self.final_s(),
            launching=self._launching_s() > self._reading_s(rows, turns),
        )

    def step_s(self, stage: StageConfig) -> float:
        """Return the seconds of a batch of episodes: of sampling it, and of learning from it."""
        return self._sampling_s(stage) + self._learn_s(stage)

    # -- learning --------------------------------------------------------------------------------------------------

    def _learn_s(self, stage: StageConfig) -> float:
        """Return the seconds of scoring and of the backward pass of a batch."""
        episode: float = self._tokens(stage)
        if isinstance(stage, ReinforcementStage) and stage.alternates:
            episode = (self._episode(1) + episode) / 2
        if isinstance(stage, ReinforcementStage) and stage.distills:  # second attempts once more, after their prompts
            episode += self._episode(1)
        tokens = self._share(self.config.batch_size(stage)) * episode
        rate = (CPU_LEARNING_SHARE if self.cluster.cpu else LEARNING_SHARE) * self.cluster.tflops * 1e12
        return self._operations(stage) * self.shape.parameters * tokens / rate

    def _tokens(self, stage: StageConfig) -> int:
        """Return the tokens that an episode gives the learner; a draft and its verification are as long as two attempts."""
        return self._episode(stage.turns) + (self.lengths.episode(2) if stage.verifies_drafts else 0)

    def _operations(self, stage: StageConfig) -> float:
        """Return the operations per weight and token of a step: of the references, and of the policy's passes."""
        again = FORWARD * self.config.model.gradient_checkpointing
        learning = FORWARD + BACKWARD + again
        if not isinstance(stage, ReinforcementStage):
            return learning
        references = len({"base", *stage.references})
        every = self.config.log.turn_gradients_every
        by_turn = (stage.turns - 1) * (BACKWARD + again) / every if every else 0.0
        own_penalty = self.config.rollout.ahead and self.config.kl.placement == "reward" and bool(stage.references)
        control = self.config.optimizer.kl_control is not None  # the policy after the step
        return (
            FORWARD * (references + own_penalty + control) + self.config.optimizer.num_iterations * learning + by_turn
        )

    # -- sampling --------------------------------------------------------------------------------------------------

    def _sampling_s(self, stage: StageConfig) -> float:
        """Return the seconds of sampling a batch; demonstrations are given, and verifications that are written.

        Here and in learning, the steps of a stage that alternates count as the mean of their two kinds.
        """
        if isinstance(stage, DemonstrationStage):
            return 0.0
        episodes = self.config.batch_size(stage)
        if isinstance(stage, ReinforcementStage) and stage.alternates:  # first attempts, then what continues given ones
            return (self._sample_s(episodes, 1, 0) + self._sample_s(episodes, stage.turns, 1)) / 2
        written = self._turns(stage.turns) - model_turns(self.config, stage.turns, told=stage.told)
        verdicts = self._sample_s(episodes, 2, self._turns(2) - 1) if stage.verifies_drafts else 0.0
        return self._sample_s(episodes, stage.turns, written) + verdicts

    def _sample_s(self, episodes: int, turns: int, given: int) -> float:
        share = self._share(episodes)
        rows = min(self.config.rollout.max_num_seqs, share)
        return self._decode_s(-(-share // rows), rows, turns, given)

    def _share(self, episodes: int) -> int:
        """Return the most episodes that one GPU has of a step; a group stays on one GPU."""
        group = self.config.rollout.group_size
        return -(-episodes // (group * self.cluster.gpus)) * group

    def _decode_s(self, batches: int, rows: int, turns: int, given: int = 0) -> float:
        """Return the seconds of batches of ``rows`` conversations on a GPU, as many at once as the engine holds.

        ``turns`` counts attempts; ``given`` of the model's turns are not sampled.
        """
        at_once = min(rows, self.held)
        waves = batches * -(-rows // at_once)
        return (
            waves
            * (self._turns(turns) - given)
            * self.lengths.answer
            * max(self._launching_s(), self._reading_s(at_once, turns))
        )

    def _reading_s(self, rows: int, turns: int) -> float:
        """Return the seconds of reading what a token needs: all weights and, half full on average, the cache of all rows.

        On a CPU, the products of many rows may take longer.
        """
        cache = rows * self._episode(turns) / 2 * self.shape.kv_numbers * self.width
        share = CPU_DECODING_SHARE if self.cluster.cpu else READING_SHARE
        reading = (self.shape.parameters * self.width + cache) / (share * self.cluster.bandwidth * 1e9)
        products = FORWARD * self.shape.parameters * rows / (share * self.cluster.tflops * 1e12)
        return max(reading, products) if self.cluster.cpu else reading

    def _turns(self, attempts: int) -> int:
        """Return the most turns of the model in a conversation: attempts, feedback and verifications."""
        return model_turns(self.config, attempts)

    def _episode(self, attempts: int) -> int:
        return self.lengths.episode(self._turns(attempts))

    def _launching_s(self) -> float:
        return self.shape.layers * LAUNCHES * LAUNCH_S if self.config.rollout.engine == HF else 0.0

    # -- evaluations -----------------------------------------------------------------------------------------------

    def conversations_s(self, count: int, turns: int, given: int = 0) -> float:
        """Return the seconds of an evaluation's conversations; all GPUs share a chunk (`rollout.rollouter`)."""
        chunk = min(CHUNK, self.config.rollout.max_num_seqs)
        whole, rest = divmod(count, chunk)
        seconds = whole * self._decode_s(1, -(-chunk // self.cluster.gpus), turns, given)
        return seconds + (self._decode_s(1, -(-rest // self.cluster.gpus), turns, given) if rest else 0.0)

    def final_s(self) -> float:
        """Return the seconds of one model's final evaluation (`evaluation.evaluator`): attempts, samples and controls."""
        problems, parts = self.config.eval.problems, planned_parts(EvalPlan.of_run(self.config))
        return sum(self.conversations_s(problems * part.samples, part.turns, part.given) for part in parts)

    def looks_s(self, stage: StageConfig) -> float:
        """Return the seconds of a stage's looks at the development problems."""
        return self._looks(stage) * self.conversations_s(self._looked_at, stage.turns)

    def look_conversations(self, stage: StageConfig) -> int:
        """Return the number of conversations of a stage's looks, sampled ones included."""
        return self._looks(stage) * self._looked_at

    def _look_at_base_s(self) -> float:
        looks = any(map(self.config.looks_in, self.config.stages.values()))
        return self.conversations_s(self._looked_at, min(2, self.config.turns_trained)) if looks else 0.0

    @property
    def _looked_at(self) -> int:
        """Return the number of development problems of a look."""
        problems = self.config.task.dev_problems
        return min(problems, self.config.eval.dev_limit or problems)

    def _looks(self, stage: StageConfig) -> int:
        """Return how often a stage goes through the development problems, sampled as well as greedily.

        A stage that may stop looks first and last too.
        """
        if not self.config.looks_in(stage):
            return 0
        every, stops = self.config.eval.dev_every, self.config.log.stop_if_worse
        looks = stage.length // every + (stops and stage.length % every > 0) + stops
        return looks * (1 + self.config.eval.dev_sampled)
