"""Test by enumeration that both kinds of ThinkTwice's steps have the gradient of their objective, and advantages by hand.

The truth is a sum over all attempts, or over all revisions of all drafts, without a line of the code under test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.gradients import gradient, relative_gap
from support.tabular import Tabular, World, answers, log_ratio, rewards, true_gradient
from support.trainers import make_trainer, settings

from selfcorrect.config.schema import KLConfig
from selfcorrect.method import thinktwice
from selfcorrect.method.base import StepOutcome, find_method
from selfcorrect.training.alternating_trainer import AlternatingTrainer
from selfcorrect.types import Episode

TOLERANCE = 1e-9
STAGE: dict[str, Any] = {
    "method": "thinktwice",
    "reward_weights": [1, 0.5],
    "kl_coefs": [{"base": 0.1}, {"base": 0.05}],
}
KINDS = {"the row's": {**STAGE, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}, "weights and KL": STAGE}


def trainer_of(here: World, stage: dict[str, Any], group: int, *, revising: bool) -> AlternatingTrainer:
    config = settings(
        stage=stage,
        rollout={"batch_size": group, "group_size": group, "max_tokens": max(here.policy.limits)},
        optimizer={"micro_batch_tokens": 10**9},
    )
    config = config.model_copy(update={"kl": KLConfig(placement="reward", estimator="k1")})
    trainer = make_trainer(config, policy=here.policy, base=here.reference)
    assert isinstance(trainer, AlternatingTrainer)
    trainer.begin(revising=revising)
    return trainer


def expected_gradient(
    here: World, trainer: AlternatingTrainer, groups: Sequence[Sequence[Episode]], chances: Sequence[float]
) -> torch.Tensor:
    """Return the gradient that a step of one group accumulates, averaged over groups that have these chances."""
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    size = len(groups[0])
    batch = trainer.pack_rollout([episode for group in groups for episode in group])
    (rows,) = batch.batches
    advantages_NK = trainer.advantages(batch)
    here.policy.row_weights = torch.tensor(chances, dtype=torch.float64).repeat_interleave(size)[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(groups)


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_first_attempts_have_the_gradient_of_single_turn_training(name: str, group: int) -> None:
    here, stage = World.make(2), KINDS[name]
    groups = list(itertools.product(here.played, repeat=group))
    chances = [math.prod(here.probability(played) for played in members) for members in groups]
    episodes = [[here.episode(played, 0) for played in members] for members in groups]
    anchor = stage["kl_coefs"][0].get("base", 0.0)
    truth = true_gradient(here, lambda played, k: rewards(played)[0] - anchor * log_ratio(here, played, 0))
    found = expected_gradient(here, trainer_of(here, stage, group, revising=False), episodes, chances)
    assert truth.norm() > 1e-2
    assert relative_gap(-found, truth) < TOLERANCE


def revisions_of_drafts(here: World, older: Tabular, group: int) -> tuple[list[list[Episode]], list[float]]:
    """Return every group of revisions of one draft, and its chance: ``older`` weights sampled the draft."""
    groups, chances = [], []
    for draft in answers(here.policy.limits[0]):
        chance = older.turn_logprob((draft,), 0).exp().item()
        for members in itertools.product(answers(here.policy.limits[1]), repeat=group):
            each = [here.policy.turn_logprob((draft, again), 1).exp().item() for again in members]
            groups.append([here.episode((draft, again), 0, online=False) for again in members])
            chances.append(chance * math.prod(each))
    return groups, chances


def gradient_of_revisions(here: World, older: Tabular, stage: dict[str, Any]) -> torch.Tensor:
    """Return the gradient of E[draft ~ older] E[y_2 ~ pi(. given the draft)] [w_2 r_2 - lambda_2 log-ratio]."""
    total = torch.zeros((), dtype=torch.float64)
    weight, anchor = stage["reward_weights"][1], stage["kl_coefs"][1].get("base", 0.0)
    for played in here.played:
        chance = older.turn_logprob(played[:1], 0).detach().exp()
        credit = weight * rewards(played)[1] - anchor * log_ratio(here, played, 1)
        total = total + chance * here.policy.turn_logprob(played, 1).exp() * credit
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_revisions_of_an_older_draft_have_the_gradient_of_their_reward(name: str, group: int) -> None:
    here, older, stage = World.make(1, 1 if group == 3 else 2), Tabular((1,), 7), KINDS[name]
    groups, chances = revisions_of_drafts(here, older, group)
    truth = gradient_of_revisions(here, older, stage)
    found = expected_gradient(here, trainer_of(here, stage, group, revising=True), groups, chances)
    assert truth.norm() > 1e-2
    assert relative_gap(-found, truth) < TOLERANCE


@pytest.mark.pitfall(16)
def test_the_oracle_sees_revisions_of_other_weights() -> None:
    """Chances of the older weights for the revisions, too, as if they had not been loaded between the steps."""
    here, older = World.make(1, 1), Tabular((1, 1), 7)
    groups, chances = revisions_of_drafts(World(older, here.reference, here.played), older, 2)
    found = expected_gradient(here, trainer_of(here, STAGE, 2, revising=True), groups, chances)
    assert relative_gap(-found, gradient_of_revisions(here, older, STAGE)) > 1e-2


def test_both_kinds_of_advantages_by_hand() -> None:
    """Two problems of three episodes; the KL is part of what others earn, too."""
    stage = trainer_of(World.make(1, 1), STAGE, 3, revising=True).stage
    first_N1 = torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    penalty_N1 = torch.tensor([[0.2], [0.0], [0.4], [0.0], [0.0], [0.0]], dtype=torch.float64)
    online_N1 = torch.ones(6, 1, dtype=torch.bool)
    alone = thinktwice.advantages(StepOutcome(first_N1, penalty_N1, online_N1, 3), stage)
    # They earn 0.8, 0, -0.4: each less the mean of the two others. In the other problem all earn 1.
    assert alone.flatten().tolist() == pytest.approx([0.8 + 0.2, 0 - 0.2, -0.4 - 0.4, 0, 0, 0])
    rewards_NK = torch.tensor([[1, 1], [1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], dtype=torch.float64)
    online_NK = torch.tensor([[False, True]] * 6)
    again = thinktwice.advantages(StepOutcome(rewards_NK, torch.zeros(6, 2), online_NK, 3), stage)
    # A weight of 0.5; three revisions of a correct draft, three of an incorrect one
    expected = [0.5 - 0, 0 - 0.25, 0 - 0.25, 0.5 - 0.25, 0.5 - 0.25, 0 - 0.5]
    assert again[:, 0].tolist() == [0] * 6
    assert again[:, 1].tolist() == pytest.approx(expected)


def test_the_method_is_found_by_its_name() -> None:
    assert find_method("thinktwice") is thinktwice.advantages
