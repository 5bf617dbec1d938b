"""Training second attempts as first attempts, too (docs/method.md, section 15).

An episode has two rows: the conversation, and the second attempt as an answer to the bare prompt. The tokens of the second row
are those of the conversation, not sampled again, and so they were sampled in another context than that in which they are learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selfcorrect.method.distilled import DISTILLED
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.training.pending import PendingSample
from selfcorrect.training.sample import Segment, TrainingSample
from selfcorrect.training.scoring import ReferenceLogprobs, TokenScores
from selfcorrect.training.stage_trainer import StepRecord
from selfcorrect.training.step_control import StepUpdates
from selfcorrect.training.step_metrics import StepTotals
from selfcorrect.training.trained_turns import TrainedTurn
from selfcorrect.training.trainer import RolloutBatch, Trainer
from selfcorrect.types import Episode, Role

NAME = "d2"
"""What metrics call second attempts that are learnt as first attempts."""


class DistillingTrainer(Trainer):
    """A trainer that also trains second attempts as first attempts (`ReinforcementStage.distills`)."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.turns = (*self.turns, TrainedTurn(Role.ATTEMPT, NAME, weight=0.0, kl_coefs={}))

    def rows(self, episodes: Sequence[Episode], own: Sequence[int]) -> tuple[list[TrainingSample], list[int]]:
        """Return the rows of the conversations, then those of the second attempts after their bare prompts."""
        conversations, of = super().rows(episodes, own)
        return [*conversations, *(distilled(episodes[i]) for i in own)], [*of, *own]

    def pack_rollout(self, episodes: Sequence[Episode]) -> RolloutBatch:
        """Pack the episodes as `Trainer` does; their last column is the second attempt once more."""
        batch = super().pack_rollout(episodes)

        def with_last_again(values_NK: Tensor) -> Tensor:
            return torch.cat([values_NK, values_NK[:, -1:]], 1)

        return replace(
            batch,
            rewards_NK=with_last_again(batch.rewards_NK),
            online_NK=with_last_again(batch.online_NK),
            present_NK=with_last_again(batch.present_NK),
        )

    def loss(
        self,
        rows: MicroBatch,
        scores: TokenScores,
        old_S: Tensor,
        references: Sequence[ReferenceLogprobs],
        advantages_NK: Tensor,
        totals: StepTotals,
    ) -> Tensor:
        """Return the loss of each column [3], summed over the episodes of a micro-batch.

        What the engine says of a distilled token holds in another context, so the policy's own log-probability before the first
        update takes its place: importance weights are 1, and ratios are those between updates. Such tokens have no KL term.
        """
        distilled_S = rows.turn_S == DISTILLED
        learnt = replace(rows, logprobs_S=torch.where(distilled_S, old_S.to(rows.logprobs_S), rows.logprobs_S))
        learnt.__dict__["scored"] = rows.scored  # found already
        mine_S = scores.logprobs_S.detach()
        apart = [
            replace(each, logprobs_S=torch.where(distilled_S, mine_S, each.logprobs_S.to(mine_S)))
            for each in references
        ]
        return super().loss(learnt, scores, old_S, apart, advantages_NK, totals)

    def record(self, sample: StepSample | PendingSample, updates: StepUpdates) -> StepRecord:
        """Count the step and return its record, without a KL of distilled tokens, which the policy did not sample as such."""
        found = super().record(sample, updates)
        kept = {k: v for k, v in found.metrics.items() if not (k.startswith("kl_") and k.endswith(f"_{NAME}"))}
        return replace(found, metrics=kept)


def distilled(episode: Episode) -> TrainingSample:
    """Return the row that trains an episode's second attempt as an answer to the bare prompt."""
    first, second = episode.attempts
    return TrainingSample.of_segments([Segment(first.observation_ids, second.ids, DISTILLED)])
