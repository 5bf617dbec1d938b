"""The trainer: a step is rollout, reward, reference, advantage, loss, update; a run is its stages in order.

Where this differs from the paper, or fills what the paper leaves open (docs/method.md, section 2):
1. The batch size counts episodes; the episodes of a group share a problem.
2. The kept checkpoint has the highest mean weighted, unshaped reward over the last ``log.keep_window`` steps. Candidates
   are the checkpoints written every ``log.save_every`` steps.
3. A stage starts from the previous stage's kept model, with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.engines import Engine, EngineSettings, computing_models, open_engine, open_second_engine
from selfcorrect.method.base import StepOutcome, find_method
from selfcorrect.method.kl_controller import adapted, initial_coefficient
from selfcorrect.method.objective import KLEstimator, kl_loss, policy_terms, truncated_weights
from selfcorrect.method.step_control import divergence
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import Verifies
from selfcorrect.training.batch import (
    MicroBatch,
    filler,
    micro_batch_tokens,
    micro_batches,
    pack,
    turn_sums,
    with_shared_contexts,
)
from selfcorrect.training.episode_sampler import EpisodeSampler, StepSample
from selfcorrect.training.learner import Learner
from selfcorrect.training.pending import PendingSample
from selfcorrect.training.sample import TrainingSample
from selfcorrect.training.scoring import ReferenceLogprobs, TokenScores, score, score_reference
from selfcorrect.training.stage_trainer import StageState, StepRecord
from selfcorrect.training.step_control import StepControl, StepUpdates
from selfcorrect.training.step_metrics import StepTotals, conversation_metrics, mean_reward, replay_metrics
from selfcorrect.training.timing import Clock
from selfcorrect.training.trained_turns import check_script, trained_turns
from selfcorrect.types import Episode, Problem, Role


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """A step's episodes as the learner reads them: micro-batches, and each reference's scores of their tokens.

    ``old_logprobs`` holds, per micro-batch, the policy's log-probabilities [S] before the first update, which fills it in
    unless the KL penalty needs them earlier (`AheadTrainer`).
    """

    batches: Sequence[MicroBatch]
    references: Sequence[Sequence[ReferenceLogprobs]]
    rewards_NK: Tensor
    online_NK: Tensor
    present_NK: Tensor
    old_logprobs: list[Tensor] = field(default_factory=list)


class Trainer:
    """A trainer of one stage of a policy by reinforcement learning, step by step.

    Args:
        config: the whole run's settings.
        name: the stage's name in ``config.stages``.
        policy: the model to train, in place.
        references: frozen models by name: ``base`` and earlier stages.
        problems: training problems.
        chat: the conversation, with as many turns as the stage.
        verifier: returns the verdicts.
        engine: samples the policy's turns with the policy's weights, which it reloads after every step. Unset = the
            configured engine.
        world: the processes that share each step's problems. Each learns from its share.
    """

    stage: ReinforcementStage
    ahead = 0
    """The steps between sampling and learning (`rollout.ahead`)."""

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
        assert isinstance(stage, ReinforcementStage)
        assert config.rollout.ahead == self.ahead, "rollout.ahead = 1 takes an AheadTrainer"
        self.config, self.name, self.stage, self.policy, self.world = config, name, stage, policy, world
        self.method = find_method(stage.method)
        check_script(name, stage, chat.script)
        self.turns = trained_turns(stage, chat.script)
        self.reference_names = stage.references
        self.references = [references[reference] for reference in self.reference_names]
        settings = EngineSettings.of(config)
        engine = engine or open_engine(settings, policy)
        base_engine = open_second_engine(settings, references["base"]) if stage.samples_base else None
        self.sampler = EpisodeSampler(
            config,
            name,
            problems=problems,
            chat=chat,
            verifier=verifier,
            engine=engine,
            base_engine=base_engine,
            world=world,
            sampled=computing_models(settings, policy),
            base_sampled=[references["base"]] if base_engine else [],
        )
        self.learner = Learner(policy, config.optimizer, learning_rate=stage.learning_rate, world=world)
        self.control = StepControl(self.learner, config.rollout.temperature, world)
        self.state = StageState(adaptive=initial_coefficient(stage))
        self.clock = Clock(policy.device)

    @property
    def engine(self) -> Engine:
        """Return the engine that samples the policy's turns."""
        return self.sampler.engine

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step in addition to the learner's state, as plain values and tensors."""
        return {**asdict(self.state), **self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            LookupError, ValueError: the stored first attempts are missing or malformed.
        """
        self.state = StageState(**self.sampler.load_state_dict(state))

    def step(self) -> StepRecord:
        """Sample one rollout and take its updates (docs/method.md, section 2)."""
        self.clock = Clock(self.policy.device)
        sample = self.take_sample()
        with self.clock("reference"):
            batch = self.pack_rollout(sample.learnt)
        updates = self.take_updates(batch)
        with self.clock("weights"):
            self.engine.load_weights(self.policy)
        return self.record(sample, updates)

    def take_updates(self, batch: RolloutBatch) -> StepUpdates:
        """Take the updates of a rollout. With ``optimizer.kl_stop``, the gradient of the last pass may not be used."""
        advantages_NK = self.advantages(batch)
        updates = self.control.begin()
        for update in range(self.config.optimizer.num_iterations):
            with self.clock("learn"):
                updates.totals.append(self.accumulate_gradient(batch, advantages_NK, first=update == 0))
            if self.control.ends(updates):
                break
            with self.clock("update"):
                updates.norms.append(self.update())
        self.release_references()
        with self.clock("learn"):
            self.control.end(updates, batch.batches, batch.old_logprobs)
        return updates

    def take_sample(self) -> StepSample | PendingSample:
        """Return the episodes of the step."""
        with self.clock("generate"):
            return self.sampler.sample_step(self.state.step)

    def pack_rollout(self, episodes: Sequence[Episode]) -> RolloutBatch:
        """Pack this process's share of the episodes into micro-batches and score it under every reference."""
        full = self.config.kl.estimator == "full"
        batches = self.packed(episodes, self.sampler.own(len(episodes)))
        temperature = self.config.rollout.temperature
        references = [
            [score_reference(model, rows, temperature, keep_hidden=full) for model in self.references]
            for rows in batches
        ]
        if not full:
            self.release_references()
        rewards_NK = torch.tensor([episode.trained_rewards for episode in episodes], dtype=torch.float64)
        online_NK = torch.tensor([[turn.online for turn in episode.trained] for episode in episodes])
        present_NK = torch.tensor([[not turn.skipped for turn in episode.trained] for episode in episodes])
        return RolloutBatch(batches, references, rewards_NK, online_NK, present_NK)

    def packed(self, episodes: Sequence[Episode], own: range) -> list[MicroBatch]:
        """Return micro-batches of the episodes at the positions ``own``, as many as the other processes need."""
        whole, of = self.rows(episodes, own)
        samples = with_shared_contexts(whole) if self.shares_prompts else whole
        # Without the context that is read once, so that revisions of one attempt stand together, apart from whole episodes.
        lengths = [len(one) - (two.prompt_length - one.prompt_length) for one, two in zip(whole, samples, strict=True)]
        budget = micro_batch_tokens(self.config.optimizer.micro_batch_tokens, self.policy.device)
        batches = [
            pack(samples, places, pad_id=self.policy.pad_id, share_prompts=self.shares_prompts, episodes=of)
            for places in micro_batches(lengths, budget)
        ]
        nothing = filler(pad_id=self.policy.pad_id, share_prompts=self.shares_prompts)
        return [rows.to(self.policy.device) for rows in [*batches, *[nothing] * self.learner.missing(len(batches))]]

    def rows(self, episodes: Sequence[Episode], own: Sequence[int]) -> tuple[list[TrainingSample], list[int]]:
        """Return the rows to learn from of the episodes at the positions ``own``, and the position of each row's episode."""
        return [TrainingSample.of_episode(episodes[i]) for i in own], [*own]

    def advantages(self, batch: RolloutBatch) -> Tensor:
        """Return the method's advantages [N, K] for the step's rewards, less the KL penalty if it is part of the reward."""
        penalty_NK = torch.zeros_like(batch.rewards_NK)
        if self.config.kl.placement == "reward":
            penalty_NK = torch.einsum("rk,rnk->nk", self.coefficients(), self.log_ratios(batch))
        group, revisions = self.config.rollout.group_size, self.stage.revisions
        roles = tuple(turn.role for turn in self.turns)
        present_NK = None if batch.present_NK.all() else batch.present_NK
        outcome = StepOutcome(batch.rewards_NK, penalty_NK, batch.online_NK, group, revisions, roles, present_NK)
        return self.method(outcome, self.stage)

    def accumulate_gradient(self, batch: RolloutBatch, advantages_NK: Tensor, *, first: bool) -> StepTotals:
        """Accumulate the gradient of the loss over all micro-batches; return the step's sums.

        Every sum is divided by N, the episodes of the whole step, so the split into micro-batches does not change it.
        """
        self.learner.zero_grad()
        totals = StepTotals(
            names=[turn.name for turn in self.turns],
            attempts=batch.online_NK.sum(0).tolist(),
            references=len(self.references),
        )
        apart = first and self.measures_turns()
        for place, (rows, references) in enumerate(zip(batch.batches, batch.references, strict=True)):
            scores = score(
                self.policy,
                rows,
                self.config.rollout.temperature,
                references,
                full_kl=self.config.kl.estimator == "full",
            )
            if place == len(batch.old_logprobs):
                batch.old_logprobs.append(scores.logprobs_S.detach())
            if self.config.optimizer.kl_stop is not None:
                totals.add_divergence(divergence(batch.old_logprobs[place], scores.logprobs_S.detach()))
            loss_K = self.loss(rows, scores, batch.old_logprobs[place], references, advantages_NK, totals)
            mean_K = loss_K / len(advantages_NK)
            if self.turn_scales is not None:
                mean_K = mean_K * mean_K.new_tensor(self.turn_scales)
            if apart:
                self.learner.backward_by_turn(mean_K, totals.add_turn_gradient)
            else:
                self.learner.backward(mean_K.sum())
        totals.add_up(self.world, self.learner.parameters)
        return totals

    @property
    def turn_scales(self) -> list[float] | None:
        """Return the factors [K] that make every turn's mean over all episodes one over its own; None if it is that already.

        Several episodes may share a first attempt, and half of the samples of `self_verification` verify drafts.
        """
        if self.stage.verifies_drafts:
            return [2.0] * len(self.turns)
        if self.stage.revisions > 1:
            return [float(self.stage.revisions)] + [1.0] * (len(self.turns) - 1)
        return None

    def loss(
        self,
        rows: MicroBatch,
        scores: TokenScores,
        old_S: Tensor,
        references: Sequence[ReferenceLogprobs],
        advantages_NK: Tensor,
        totals: StepTotals,
    ) -> Tensor:
        """Return the loss of each turn [K], summed over the episodes of a micro-batch.

        ``old_S`` are the policy's log-probabilities before the step's first update.
        """
        advantages_S = advantages_NK.to(scores.logprobs_S)[rows.episode_S, rows.turn_S]
        clip = self.config.optimizer.clip_epsilon if self.config.optimizer.num_iterations > 1 else None
        sampled_S = rows.logprobs_S.to(scores.logprobs_S)
        cap = self.config.optimizer.tis_cap
        weights_S = None
        if cap is not None:
            weights_S = truncated_weights(old_S, sampled_S, cap)
            totals.add_weights(weights_S, cap)
            advantages_S, sampled_S = advantages_S * weights_S, old_S
        loss_S, clipped_S = policy_terms(scores.logprobs_S, sampled_S, advantages_S, clip)
        totals.add(rows, scores, loss_S, clipped_S, references)
        if self.config.kl.placement == "loss":
            coefficients_RK = self.coefficients().to(scores.logprobs_S)
            for r, reference in enumerate(references):
                full_S = scores.kl_RS[r] if len(scores.kl_RS) else None
                kl_S = kl_loss(KLEstimator(self.config.kl.estimator), scores.logprobs_S, reference.logprobs_S, full_S)
                if self.ahead and weights_S is not None and full_S is None:  # a mean over tokens of the policy
                    kl_S = kl_S * weights_S
                loss_S = loss_S + coefficients_RK[r, rows.turn_S] * kl_S
        return loss_S.new_zeros(len(self.turns)).index_add(0, rows.turn_S, loss_S)

    def record(self, sample: StepSample | PendingSample, updates: StepUpdates) -> StepRecord:
        """Count the step and return its record.

        Rewards and rates are those of the step's first batch: groups that were chosen by their verdicts would flatter it.
        """
        first, last = updates.totals[0], updates.totals[-1]
        rate, coefficient = self.learning_rate(), self.state.adaptive
        self.state.step += 1
        reward = mean_reward(sample.first, [turn.weight for turn in self.turns])
        self.state.rewards = [*self.state.rewards, reward][-self.config.log.keep_window :]
        metrics = {
            "stage": self.name,
            "step": self.state.step,
            "reward": reward,
            **conversation_metrics(sample.first, self.config.rollout.group_size, self.stage.revisions),
            **first.metrics(self.reference_names),
            "clipped_share": last.clipped_share(),
            "gradient_norm": updates.norms[-1],
            "learning_rate": rate,
            "completions": sample.completions,
            "sampled_tokens": sample.tokens,
            "updates": len(updates.norms),
            **self.control.metrics(updates, self.state),
            **(replay_metrics(sample.learnt[len(sample.first) :]) if self.stage.replay else {}),
        }
        if self.stage.adaptive is not None and coefficient is not None:
            metrics["adaptive_coefficient"] = coefficient
            r = self.reference_names.index(self.stage.adaptive.reference)
            turn = self.attempts[self.stage.adaptive.turn - 1]
            kl_term = coefficient * float(first.log_ratio_RK[r, turn]) / max(1, first.attempts[turn])
            policy_term = float(first.policy_size_K[-1]) / len(sample.learnt)
            self.state.adaptive = adapted(coefficient, kl_term, policy_term, self.stage.adaptive)
        speed = sample.tokens / max(1e-9, self.clock.total())
        return StepRecord(metrics, self.clock.seconds, speed, sample.learnt)

    @property
    def attempts(self) -> list[int]:
        """Return the columns of the attempts among the trained turns."""
        return [k for k, turn in enumerate(self.turns) if turn.role is Role.ATTEMPT]

    def coefficients(self) -> Tensor:
        """Return lambda [R, K], the KL coefficient of every reference on every turn, with beta2 as adapted so far."""
        table = [[turn.kl_coefs.get(name, 0.0) for turn in self.turns] for name in self.reference_names]
        adaptive = self.stage.adaptive
        if adaptive is not None and self.state.adaptive is not None:
            column = self.attempts[adaptive.turn - 1]
            table[self.reference_names.index(adaptive.reference)][column] = self.state.adaptive
        return torch.tensor(table, dtype=torch.float64).view(len(table), len(self.turns))

    def log_ratios(self, batch: RolloutBatch) -> Tensor:
        """Return sum_t log(pi / pi_ref) per reference, episode and turn, [R, N, K].

        pi is the policy that sampled. Where that is no longer the policy, the batch has the policy's own log-probabilities.
        """
        count, turns = batch.rewards_NK.shape
        shape = (len(self.references), count, turns)
        summed_RNK = torch.zeros(shape, dtype=torch.float64, device=self.policy.device)
        mine = batch.old_logprobs if self.ahead else [rows.logprobs_S for rows in batch.batches]
        for rows, mine_S, references in zip(batch.batches, mine, batch.references, strict=True):
            for r, reference in enumerate(references):
                difference_S = mine_S.double() - reference.logprobs_S.double()
                summed_RNK[r] += turn_sums(difference_S, rows, count, turns)
        total_RNK = summed_RNK.cpu()
        self.world.sum([total_RNK])
        return total_RNK

    @property
    def shares_prompts(self) -> bool:
        """Return whether shared prompts are read once.

        In a sliding window the rows decide, differently in each process, and shards must be called alike.
        """
        apart = self.policy.placement.sharded and self.policy.slots_limit is not None
        return self.config.shares_prompts and not apart

    def release_references(self) -> None:
        """Shard the references again. The full KL reads their heads until the last backward pass."""
        for model in self.references:
            model.placement.release()

    def update(self) -> float:
        """Update the weights; return the gradient's norm before clipping."""
        return self.learner.update(self.learning_rate(), f"stage {self.name!r}, step {self.state.step + 1}")

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.learner.learning_rate(self.state.step, self.stage.steps) * self.state.lr_factor

    def measures_turns(self) -> bool:
        every = self.config.log.turn_gradients_every
        return every > 0 and self.state.step % every == 0

    def selection_metric(self) -> float:
        """Return the mean reward over the last ``log.keep_window`` steps, which selects the checkpoint."""
        return sum(self.state.rewards) / len(self.state.rewards)
