"""Training one step off: a step learns from episodes that the weights of the step before sampled (docs/method.md, section 11).

With W_t the weights before step t, counted from 0 in a stage of T steps:

    step 0      samples the episodes of steps 0 and 1 with W_0, learns those of step 0
    step t      samples the episodes of step t + 1 with W_t, learns those of step t, which W_{t-1} sampled
    step T - 1  samples nothing, learns

The log-probabilities of the weights that sampled stay with the episodes, and truncated importance weights
(`optimizer.tis_cap`) correct for the difference. What waits for its step is part of every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.training.pending import PendingSample
from selfcorrect.training.scoring import score_reference
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.training.step_control import StepUpdates
from selfcorrect.training.trainer import RolloutBatch, Trainer
from selfcorrect.types import Episode


class AheadTrainer(Trainer):
    """A trainer whose sampling is one step ahead of its learning (``rollout.ahead = 1``)."""

    ahead = 1
    pending: PendingSample | None = None
    """The next step's episodes; None before the first step and after the last."""

    def take_sample(self) -> PendingSample:
        """Return the episodes of the step, and sample those of the next one with the weights that the step begins with."""
        step = self.state.step
        self.clock.seconds["generate"] = 0.0  # in the last step, too
        now = self.pending or self.sample_ahead(step)
        self.pending = self.sample_ahead(step + 1) if step + 1 < self.stage.steps else None
        return now

    def sample_ahead(self, step: int) -> PendingSample:
        """Sample the episodes of a step with the current weights."""
        with self.clock("generate"):
            sample = self.sampler.sample_step(step)
        with self.clock("reference"):
            return PendingSample.of(sample, step, self.engine_gap(sample.learnt))

    def engine_gap(self, episodes: Sequence[Episode]) -> float:
        """Return how far the engine's log-probabilities are from those of the policy that has just sampled, in nats.

        It is the largest difference over the tokens of each process's first group. When a step learns, engine and policy also
        differ by the update in between, so whether the engine has the right weights has to be seen here.
        """
        own = self.sampler.own(len(episodes))
        batches = self.packed(episodes, own[: self.config.rollout.group_size])
        gaps = [0.0]
        for rows in batches:
            policy = score_reference(self.policy, rows, self.config.rollout.temperature)
            gap_S = (policy.logprobs_S.double() - rows.logprobs_S).abs()
            gaps += [float(gap_S.max())] if len(gap_S) else []
        self.policy.placement.release()
        return max(self.world.gather(max(gaps)))

    def pack_rollout(self, episodes: Sequence[Episode]) -> RolloutBatch:
        """Pack the episodes as `Trainer` does. A KL penalty in the reward is the policy's own, so it scores them first."""
        batch = super().pack_rollout(episodes)
        if self.config.kl.placement == "reward" and self.references:
            temperature = self.config.rollout.temperature
            batch.old_logprobs.extend(
                score_reference(self.policy, rows, temperature).logprobs_S for rows in batch.batches
            )
        return batch

    def record(self, sample: StepSample | PendingSample, updates: StepUpdates) -> StepRecord:
        """Count the step and return its record, in which the engine gap and the policy's lag are told apart."""
        assert isinstance(sample, PendingSample)
        found = super().record(sample, updates)
        told_apart = {"max_logprob_diff": sample.gap, "max_logprob_lag": found.metrics["max_logprob_diff"]}
        return replace(found, metrics={**found.metrics, **told_apart})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "pending": None if self.pending is None else self.pending.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            LookupError, ValueError: the pending episodes are not those of the next step, or are malformed.
        """
        super().load_state_dict({name: value for name, value in state.items() if name != "pending"})
        stored, step = state["pending"], self.state.step
        self.pending = None if stored is None else PendingSample.of_state(stored, self.sampler.problems)
        waits = self.pending.step if self.pending else None
        if waits != (step if 0 < step < self.stage.steps else None):
            raise ValueError(f"after step {step} of {self.stage.steps}, episodes of step {waits} are pending")
