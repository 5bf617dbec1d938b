"""The trainer: one step is roll out, reward, reference, advantage, loss, update; a run is its stages in order.

How we differ from the paper, or fill what it leaves open (METHOD 2):
1. A batch counts episodes; a group of episodes shares a problem.
2. The kept checkpoint has the highest mean, over the last ``log.keep_window`` steps, of the stage's weighted,
   unshaped reward; candidates are the checkpoints written every ``log.save_every`` steps.
3. A stage starts from the kept model of the stage before, with a fresh optimizer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfcorrect.config.schema import Config
from selfcorrect.engines import Engine, HFEngine, Sampling
from selfcorrect.errors import TrainingError
from selfcorrect.method.kl_controller import adapted, initial_coefficient
from selfcorrect.method.objective import (
    KLEstimator,
    kl_loss,
    leave_one_out,
    policy_terms,
    returns,
    shaped_rewards,
    truncated_weights,
)
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator, shuffled
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, Verifies, roll_out, shuffled_verdicts
from selfcorrect.training.batch import Rows, micro_batches, pack, token_budget, turn_sums
from selfcorrect.training.master_weights import MasterWeights
from selfcorrect.training.schedule import scheduled
from selfcorrect.training.scoring import ReferenceLogprobs, TokenScores, score, score_reference
from selfcorrect.training.step_metrics import StepTotals, episode_metrics
from selfcorrect.training.timing import Clock
from selfcorrect.types import Episode, Problem


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step leaves behind: its metrics, its seconds by phase, sampled tokens a second, and its episodes."""

    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    tokens_per_second: float
    episodes: Sequence[Episode]


@dataclass
class StageState:
    """What changes from step to step of a stage, beside weights and optimizer; saved with every checkpoint."""

    step: int = 0
    rewards: list[float] = field(default_factory=list)
    adaptive: float | None = None


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """A step's episodes as the learner sees them: micro-batches with the references' scores of their tokens.

    ``start`` is what the policy itself gives each micro-batch's tokens before the first update, which fills it in.
    """

    batches: Sequence[Rows]
    references: Sequence[Sequence[ReferenceLogprobs]]
    rewards_NK: Tensor
    online_NK: Tensor
    start: list[Tensor] = field(default_factory=list)


class Trainer:
    """Trains one stage of a policy, step by step.

    Args:
        config: the whole run's settings.
        name: the stage's name in ``config.stages``.
        policy: the model to train, in place.
        references: frozen models by name; ``base`` and earlier stages.
        problems: training problems.
        chat: the conversation, with as many turns as the stage.
        verifier: gives the verdicts.
        engine: samples the policy's turns; it holds the policy's weights and gets them anew after every step.
            Unset = the policy itself.
    """

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
    ) -> None:
        self.config, self.name, self.stage = config, name, config.stages[name]
        self.policy, self.problems, self.chat, self.verifier = policy, problems, chat, verifier
        self.reference_names = sorted({reference for turn in self.stage.anchors for reference in turn})
        self.references = [references[reference] for reference in self.reference_names]
        rows = config.rollout.max_rows
        self.engine: Engine = engine or HFEngine(policy, max_rows=rows)
        self.base_engine = HFEngine(references["base"], max_rows=rows) if self.stage.offline_share else None
        self.sampling = Sampling(config.rollout.temperature, config.rollout.max_tokens, config.rollout.stop)
        self.master_weights = MasterWeights(policy.parameters())
        self.optimizer = self.new_optimizer()
        self.state = StageState(adaptive=initial_coefficient(self.stage))
        self.clock = Clock(self.policy.device)

    def new_optimizer(self) -> torch.optim.Optimizer:
        settings = self.config.optimizer
        return torch.optim.AdamW(
            self.master_weights.parameters,
            lr=self.stage.learning_rate or settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )

    def state_dict(self) -> dict[str, Any]:
        """What changes from step to step beside weights and optimizer, as plain values and tensors."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.state = StageState(**state)

    def step(self) -> StepRecord:
        """One rollout and its update (METHOD 2)."""
        self.clock = Clock(self.policy.device)
        with self.clock("generate"):
            episodes = self.roll_out()
        with self.clock("reference"):
            batch = self.pack_rollout(episodes)
        advantages_NK = self.advantages(batch)
        totals: list[StepTotals] = []
        for update in range(self.config.optimizer.updates_per_rollout):
            with self.clock("learn"):
                totals.append(self.accumulate_gradient(batch, advantages_NK, first=update == 0))
            with self.clock("update"):
                norm = self.update()
        with self.clock("weights"):
            self.engine.load_weights(self.policy)
        return self.record(episodes, batch, totals, norm)

    def roll_out(self) -> list[Episode]:
        """G episodes for each of this step's problems, side by side.

        A problem that comes twice, at the end of one pass over the data and the beginning of the next, has further samples.
        """
        group = self.config.rollout.group_size
        offline = round(self.stage.offline_share * group)
        begun: Counter[str] = Counter()
        samples = []
        for problem in self.step_problems():
            first, begun[problem.id] = begun[problem.id], begun[problem.id] + group
            numbers = range(first, first + group)
            samples += [
                RolloutRequest(problem, g, self.config.seed, f"train/{self.name}", self.state.step) for g in numbers
            ]
        episodes = roll_out(
            samples,
            engine=self.engine,
            chat=self.chat,
            verifier=self.verifier,
            sampling=self.sampling,
            base_engine=self.base_engine,
            offline=lambda sample: sample % group < offline,
            trained=lambda sample, turn: turn == 0 or sample % group < offline or not self.stage.offline_apart,
        )
        if self.config.task.shuffle_verdicts:
            return shuffled_verdicts(
                episodes, group, generator(self.config.seed, "shuffle", self.name, self.state.step)
            )
        return episodes

    def step_problems(self) -> list[Problem]:
        """The next problems of an endless stream: each pass over the data in an order of its own."""
        count = self.config.batch_size(self.stage) // self.config.rollout.group_size
        places = range(self.state.step * count, (self.state.step + 1) * count)
        return [self.problems[i] for i in shuffled(places, len(self.problems), self.config.seed, "order", self.name)]

    def pack_rollout(self, episodes: Sequence[Episode]) -> RolloutBatch:
        """Pack the episodes and have every reference score their sampled tokens."""
        full = self.config.kl.estimator == "full"
        lengths = [len(episode.ids) for episode in episodes]
        batches = [
            pack(episodes, places, pad_id=self.policy.pad_id, share_prompts=self.config.shares_prompts).to(
                self.policy.device
            )
            for places in micro_batches(lengths, token_budget(self.config.optimizer.token_budget, self.policy.device))
        ]
        temperature = self.config.rollout.temperature
        references = [
            [score_reference(model, rows, temperature, keep_hidden=full) for model in self.references]
            for rows in batches
        ]
        rewards_NK = torch.tensor([episode.rewards for episode in episodes], dtype=torch.float64)
        online_NK = torch.tensor([[turn.online for turn in episode.attempts] for episode in episodes])
        return RolloutBatch(batches, references, rewards_NK, online_NK)

    def advantages(self, batch: RolloutBatch) -> Tensor:
        """Reward, shaped, credit (less KL where it is placed in the reward), return, advantage: [N, K]."""
        stage = self.stage
        credit_NK = shaped_rewards(batch.rewards_NK, stage.reward_weights, stage.bonus)
        if self.config.kl.placement == "reward":
            credit_NK = credit_NK - torch.einsum("rk,rnk->nk", self.coefficients(), self.log_ratios(batch))
        returns_NK = returns(credit_NK, stage.discount)
        if stage.baseline == "none":
            return returns_NK * batch.online_NK
        return leave_one_out(returns_NK, self.config.rollout.group_size, batch.online_NK)

    def accumulate_gradient(self, batch: RolloutBatch, advantages_NK: Tensor, *, first: bool) -> StepTotals:
        """Loss and backward over all micro-batches; every sum is divided by the number of episodes N."""
        self.optimizer.zero_grad()
        totals = StepTotals(episodes=len(advantages_NK), turns=self.stage.turns, references=len(self.references))
        apart = first and self.measures_turns()
        for place, (rows, references) in enumerate(zip(batch.batches, batch.references, strict=True)):
            scores = score(
                self.policy,
                rows,
                self.config.rollout.temperature,
                references,
                full_kl=self.config.kl.estimator == "full",
            )
            if place == len(batch.start):
                batch.start.append(scores.logprobs_S.detach())
            loss_K = self.loss(rows, scores, batch.start[place], references, advantages_NK, totals)
            self.backward(loss_K / len(advantages_NK), totals if apart else None)
            self.master_weights.grads_to_master()
        return totals

    def loss(
        self,
        rows: Rows,
        scores: TokenScores,
        start_S: Tensor,
        references: Sequence[ReferenceLogprobs],
        advantages_NK: Tensor,
        totals: StepTotals,
    ) -> Tensor:
        """The loss of each turn, summed over the episodes of a micro-batch: [K].

        ``start_S`` are the policy's own log-probabilities before the step's first update.
        """
        advantages_S = advantages_NK.to(scores.logprobs_S)[rows.episode_S, rows.turn_S]
        clip = self.config.optimizer.clip_ratio if self.config.optimizer.updates_per_rollout > 1 else None
        sampled_S = rows.logprobs_S.to(scores.logprobs_S)
        cap = self.config.optimizer.importance_cap
        if cap is not None:
            weights_S = truncated_weights(start_S, sampled_S, cap)
            totals.add_weights(weights_S, cap)
            advantages_S, sampled_S = advantages_S * weights_S, start_S
        loss_S, clipped_S = policy_terms(scores.logprobs_S, sampled_S, advantages_S, clip)
        totals.add(rows, scores, loss_S, clipped_S, references)
        if self.config.kl.placement == "loss":
            coefficients_RK = self.coefficients().to(scores.logprobs_S)
            for r, reference in enumerate(references):
                full_S = scores.kl_RS[r] if len(scores.kl_RS) else None
                kl_S = kl_loss(KLEstimator(self.config.kl.estimator), scores.logprobs_S, reference.logprobs_S, full_S)
                loss_S = loss_S + coefficients_RK[r, rows.turn_S] * kl_S
        return loss_S.new_zeros(self.stage.turns).index_add(0, rows.turn_S, loss_S)

    def backward(self, loss_K: Tensor, totals: StepTotals | None) -> None:
        """Add the gradient of the sum; with ``totals``, turn by turn, so that each turn's norm can be told."""
        if totals is None:
            torch.autograd.backward(loss_K.sum())
            return
        parameters = self.policy.parameters()
        for k in range(len(loss_K)):
            keep = k + 1 < len(loss_K)
            gradients = torch.autograd.grad(loss_K[k], parameters, retain_graph=keep, allow_unused=True)
            totals.add_turn_gradient(k, gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    # A copy: clipping scales this one in place, and the turn's own is still to be told.
                    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    def update(self) -> float:
        """Clip, check, step. Returns the gradient's norm before clipping.

        Raises:
            TrainingError: the gradient is not finite; the weights are left as they were.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.master_weights.parameters, self.config.optimizer.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"stage {self.name!r}, step {self.state.step + 1}: the gradient's norm is {norm}; nothing was updated. "
                "Lower optimizer.learning_rate or use model.dtype = 'float32'; the last checkpoint is intact."
            )
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate()
        self.optimizer.step()
        self.master_weights.master_to_model()
        return norm

    def record(
        self, episodes: Sequence[Episode], batch: RolloutBatch, totals: Sequence[StepTotals], norm: float
    ) -> StepRecord:
        """Count the step and describe it; ``totals`` are those of its updates."""
        first, last = totals[0], totals[-1]
        rate, coefficient = self.learning_rate(), self.state.adaptive
        self.state.step += 1
        weights = batch.rewards_NK.new_tensor(list(self.stage.reward_weights))
        reward = float((batch.rewards_NK * weights).sum(1).mean())
        self.state.rewards = [*self.state.rewards, reward][-self.config.log.keep_window :]
        metrics = {
            "stage": self.name,
            "step": self.state.step,
            "reward": reward,
            **episode_metrics(episodes, batch.rewards_NK, self.config.rollout.group_size),
            **first.metrics(self.reference_names),
            "clipped_share": last.clipped_share(),
            "gradient_norm": norm,
            "learning_rate": rate,
            "completions": completions(episodes),
            "updates": len(totals),
        }
        if self.stage.adaptive is not None and coefficient is not None:
            metrics["adaptive_coefficient"] = coefficient
            r = self.reference_names.index(self.stage.adaptive.reference)
            kl_term = coefficient * float(first.log_ratio_RK[r, self.stage.adaptive.turn - 1]) / len(episodes)
            policy_term = float(first.policy_size_K[-1]) / len(episodes)
            self.state.adaptive = adapted(coefficient, kl_term, policy_term, self.stage.adaptive)
        tokens = sum(turn.sampled for episode in episodes for turn in episode.turns)
        return StepRecord(metrics, self.clock.seconds, tokens / max(1e-9, self.clock.total()), episodes)

    def coefficients(self) -> Tensor:
        """lambda: the KL coefficient of every reference on every turn, [R, K]; beta2 as adapted so far."""
        table = [[turn.get(name, 0.0) for turn in self.stage.anchors] for name in self.reference_names]
        adaptive = self.stage.adaptive
        if adaptive is not None and self.state.adaptive is not None:
            table[self.reference_names.index(adaptive.reference)][adaptive.turn - 1] = self.state.adaptive
        return torch.tensor(table, dtype=torch.float64).view(len(table), self.stage.turns)

    def log_ratios(self, batch: RolloutBatch) -> Tensor:
        """sum_t log(pi / pi_ref) of each turn against each reference, [R, N, K], from the sampling log-probabilities."""
        count, turns = batch.rewards_NK.shape
        total_RNK = torch.zeros(len(self.references), count, turns, dtype=torch.float64)
        for rows, references in zip(batch.batches, batch.references, strict=True):
            for r, reference in enumerate(references):
                difference_S = rows.logprobs_S - reference.logprobs_S.double()
                total_RNK[r] += turn_sums(difference_S, rows, count, turns).cpu()
        return total_RNK

    def learning_rate(self) -> float:
        """The learning rate of the step about to be taken."""
        peak = self.stage.learning_rate or self.config.optimizer.learning_rate
        return scheduled(peak, self.state.step, self.stage.steps, self.config.optimizer)

    def measures_turns(self) -> bool:
        every = self.config.log.turn_gradients_every
        return every > 0 and self.state.step % every == 0

    def selection_metric(self) -> float:
        """What decides which checkpoint is kept: the mean reward over the last ``log.keep_window`` steps."""
        return sum(self.state.rewards) / len(self.state.rewards)


def completions(episodes: Sequence[Episode]) -> int:
    """How many texts were sampled for these episodes: attempts, feedback, and first attempts of the base."""
    return sum(len(episode.turns) for episode in episodes)
