"""Test by enumeration that the trainer's expected gradient equals autograd of the objective of docs/method.md, section 2.

Every possible group of episodes goes through `Trainer.pack_rollout`, `advantages` and `accumulate_gradient`, each
weighted by its probability; the truth (`tabular.py`) shares no line with the code under test.
"""

from __future__ import annotations

import itertools
import math
import sys
from functools import cache
from typing import Any

import pytest
import torch
from support.gradients import gradient, relative_gap
from support.tabular import RIGHT, World, answers, log_ratio, rewards, token_kl_gradient, true_gradient
from support.trainers import make_trainer, settings

from selfcorrect.config.schema import KLConfig
from selfcorrect.method import score
from selfcorrect.method.base import StepOutcome
from selfcorrect.training.trainer import RolloutBatch, Trainer

TOLERANCE = 1e-9
ALPHA = 10.0
STAGE_ONE = {"reward_weights": [0, 1], "kl_coefs": [{"base": 0.11}, {"base": 0.01}]}
STAGE_TWO = {"reward_weights": [1, 1], "bonus": ALPHA, "kl_coefs": [{"base": 0.01}, {"base": 0.03}]}
KL_ALONE = {"reward_weights": [0, 0], "kl_coefs": [{"base": 0.7}, {"base": 0.4}]}


@cache
def world(*limits: int) -> World:
    return World.make(*limits)


def trainer_of(here: World, stage: dict[str, Any], kl: tuple[str, str] = ("reward", "k1"), **optimizer: Any) -> Trainer:
    group = optimizer.pop("group", 2)
    config = settings(
        stage=stage,
        rollout={"batch_size": group, "group_size": group, "max_tokens": max(here.policy.limits)},
        optimizer={"micro_batch_tokens": 10**9, **optimizer},
    )
    # Built without validation, so that rejected combinations can be measured too.
    config = config.model_copy(update={"kl": KLConfig.model_construct(placement=kl[0], estimator=kl[1])})
    return make_trainer(config, policy=here.policy, base=here.reference)


def every_group(here: World, group: int, offline: int = 0) -> tuple[list[Any], list[float]]:
    """Return all groups of ``group`` episodes, one after the other, and the probability of each; in the first
    ``offline`` episodes of a group, the reference made the first attempt."""
    mine = [(here.episode(played, 0), here.probability(played)) for played in here.played]
    base = here.reference
    theirs = [(here.episode(played, 0, online=False), here.probability(played, first=base)) for played in here.played]
    episodes, weights = [], []
    for members in itertools.product(*[theirs] * offline, *[mine] * (group - offline)):
        weight = 1.0
        for played, probability in members:
            weight *= probability
            episodes.append(played)
        weights.append(weight)
    return episodes, weights


@cache
def packed(limits: tuple[int, ...], group: int, offline: int, full: bool) -> tuple[RolloutBatch, torch.Tensor]:
    """Pack all groups as one big step; return it with the probability of each row's group. No setting matters here."""
    here = world(*limits)
    episodes, weights = every_group(here, group, offline)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    trainer = trainer_of(here, KL_ALONE if len(limits) == 2 else THREE_TURNS, ("loss", "full" if full else "k2"))
    batch = trainer.pack_rollout(episodes)
    (rows,) = batch.batches
    return batch, torch.tensor(weights, dtype=torch.float64).repeat_interleave(group)[rows.episode_B]


THREE_TURNS = {
    "reward_weights": [0.5, 1, 2],
    "bonus": 3.0,
    "kl_coefs": [{"base": 0.2}, {"base": 0.05}, {"base": 0.01}],
}


def expected_gradient(trainer: Trainer, limits: tuple[int, ...], group: int = 2, offline: int = 0) -> torch.Tensor:
    """Return the gradient that a step accumulates, averaged over all possible groups: the loss's, so minus J's."""
    here = world(*limits)
    batch, weights = packed(limits, group, offline, trainer.config.kl.estimator == "full")
    advantages_NK = trainer.advantages(batch)
    here.policy.row_weights = weights
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(advantages_NK) / group


def credit(here: World, played: Any, k: int, stage: dict[str, Any]) -> Any:
    """Return R_k minus lambda_k times the log-ratio of turn k, by hand."""
    r = rewards(played)
    shaped = stage["reward_weights"][k] * r[k] + (stage.get("bonus", 0) * (r[k] - r[k - 1]) if k else 0)
    return shaped - stage["kl_coefs"][k]["base"] * log_ratio(here, played, k)


DRAFTS = ((1,), (2,))
"""An incorrect and a correct first attempt."""
assert [draft in RIGHT for draft in DRAFTS] == [False, True]
STAGES = {"stage1": STAGE_ONE, "stage2": STAGE_TWO, "kl alone": KL_ALONE}


@pytest.mark.pitfall(1)
@pytest.mark.pitfall(16)
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("baseline", ["rloo", "none"])
def test_expected_gradient_is_that_of_the_objective(name: str, baseline: str) -> None:
    here, stage = world(2, 2), STAGES[name]
    truth = true_gradient(here, lambda played, k: credit(here, played, k, stage))
    found = expected_gradient(trainer_of(here, {**stage, "baseline": baseline}), (2, 2))
    assert truth.norm() > 1e-2
    assert relative_gap(-found, truth) < TOLERANCE


@pytest.mark.pitfall(1)
def test_groups_of_three_have_the_same_expected_gradient() -> None:
    here = world(1, 2)
    truth = true_gradient(here, lambda played, k: credit(here, played, k, STAGE_TWO))
    found = expected_gradient(trainer_of(here, STAGE_TWO, group=3), (1, 2), group=3)
    assert relative_gap(-found, truth) < TOLERANCE


@pytest.mark.slow
@pytest.mark.pitfall(16)
@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_a_slope_fitted_on_other_problems_leaves_the_expected_gradient(discount: float) -> None:
    """Every pair of groups is a step of two problems; each group's slope comes from the other group."""
    here, stage = world(1, 1), {**STAGE_TWO, "baseline": "fitted", "discount": discount}
    groups, weights = every_group(here, 2)
    episodes, chances = [], []
    for one, other in itertools.product(range(len(weights)), repeat=2):
        episodes += [*groups[2 * one : 2 * one + 2], *groups[2 * other : 2 * other + 2]]
        chances.append(weights[one] * weights[other])
    found = gradient_of_steps(here, trainer_of(here, stage), episodes, chances)
    truth = true_gradient(here, lambda played, k: value_of(here, played, k, stage))
    assert relative_gap(-found, truth) < TOLERANCE


def gradient_of_steps(here: World, trainer: Trainer, episodes: list[Any], chances: list[float]) -> torch.Tensor:
    """Return the gradient that a step accumulates, averaged over steps that have these chances."""
    size, group = len(episodes) // len(chances), trainer.config.rollout.group_size
    batch = trainer.pack_rollout(episodes)
    penalty_NK = torch.einsum("rk,rnk->nk", trainer.coefficients(), trainer.log_ratios(batch))
    steps = [
        StepOutcome(
            batch.rewards_NK[i : i + size],
            penalty_NK[i : i + size],
            batch.online_NK[i : i + size],
            group,
            trainer.stage.revisions,
        )
        for i in range(0, len(episodes), size)
    ]
    advantages_NK = torch.cat([score.advantages(outcome, trainer.stage) for outcome in steps])
    (rows,) = batch.batches
    here.policy.row_weights = torch.tensor(chances, dtype=torch.float64).repeat_interleave(size)[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(chances)


def every_tree(here: World) -> tuple[list[Any], list[float]]:
    """Return all trees of two first attempts with two second ones each, four episodes a tree, and their chances."""
    one_draft = [
        ([here.episode(played, 0), here.episode(other, 1, online=False)], here.probability(played) * again)
        for played in here.played
        for other in here.played
        if other[0] == played[0]
        for again in [float(here.policy.turn_logprob(other, 1).detach().exp())]
    ]
    trees = list(itertools.product(one_draft, repeat=2))
    return [e for tree in trees for rows, _ in tree for e in rows], [a * b for (_, a), (_, b) in trees]


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_trees_have_the_expected_gradient_of_episodes(discount: float) -> None:
    here, stage = world(1, 1), {**STAGE_TWO, "revisions": 2, "discount": discount}
    episodes, chances = every_tree(here)
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    found = gradient_of_steps(here, trainer_of(here, stage, group=4), episodes, chances)
    truth = true_gradient(here, lambda played, k: value_of(here, played, k, stage))
    assert relative_gap(-found, truth) < TOLERANCE


def revisions_of(here: World, draft: Any, count: int) -> tuple[list[list[Any]], list[float]]:
    """Return every group of ``count`` second attempts at a stored first one, and the chance of each."""
    played = [(draft, second) for second in answers(here.policy.limits[1])]
    chances = [float(here.policy.turn_logprob(one, 1).detach().exp()) for one in played]
    places = list(itertools.product(range(len(played)), repeat=count))
    groups = [[here.episode(played[i], g, online=False) for g, i in enumerate(chosen)] for chosen in places]
    return groups, [math.prod(chances[i] for i in chosen) for chosen in places]


def gradient_after(here: World, draft: Any, stage: dict[str, Any]) -> torch.Tensor:
    """Return the gradient of E[y_2 ~ pi(. | x, draft)] [R_2 - lambda_2 log-ratio], by autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for second in answers(here.policy.limits[1]):
        played = (draft, second)
        total = total + here.policy.turn_logprob(played, 1).exp() * credit(here, played, 1, stage)
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


@pytest.mark.pitfall(16)
@pytest.mark.parametrize(
    "more",
    [{}, {"baseline": "none"}, {"baseline": "fitted"}, {"discount": 0.5}],
    ids=["rloo", "none", "fitted", "discount"],
)
def test_replay_adds_second_attempts_at_stored_drafts_and_nothing_else(more: dict[str, Any]) -> None:
    """A step of an own group and one that revises a stored draft, as often an incorrect as a correct one."""
    here, stage = world(1, 1), {**STAGE_TWO, "discount": 0.0, **more}
    own, own_chances = every_group(here, 2)
    episodes, chances = [], []
    for draft in DRAFTS:
        for replayed, chance in zip(*revisions_of(here, draft, 2), strict=True):
            for i, own_chance in enumerate(own_chances):
                episodes += [*own[2 * i : 2 * i + 2], *replayed]
                chances.append(own_chance * chance / len(DRAFTS))
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    found = gradient_of_steps(here, trainer_of(here, stage), episodes, chances)
    truth = true_gradient(here, lambda played, k: value_of(here, played, k, stage))
    after = sum(gradient_after(here, draft, stage) for draft in DRAFTS) / len(DRAFTS)
    assert relative_gap(-found, (truth + after) / 2) < TOLERANCE
    assert relative_gap(-found, truth) > 0.1


@pytest.mark.pitfall(16)
def test_replay_in_trees_has_the_same_expected_gradient() -> None:
    """A replayed group of two drafts with two revisions each, an incorrect and a correct one."""
    here, stage = world(1, 1), {**STAGE_TWO, "revisions": 2}
    (first, one), (second, other) = (revisions_of(here, draft, 2) for draft in DRAFTS)
    episodes = [e for a, b in itertools.product(first, second) for e in (*a, *b)]
    chances = [a * b for a, b in itertools.product(one, other)]
    found = gradient_of_steps(here, trainer_of(here, stage, group=4), episodes, chances)
    after = sum(gradient_after(here, draft, stage) for draft in DRAFTS) / len(DRAFTS)
    assert relative_gap(-found, after) < TOLERANCE


def value_of(here: World, played: Any, k: int, stage: dict[str, Any]) -> Any:
    """Return the discounted credit of turn k and those after it; what is later has no gradient of its own."""
    own = credit(here, played, k, stage)
    if not stage["discount"]:
        return own
    return sum(stage["discount"] ** (j - k) * credit(here, played, j, stage).detach() for j in range(k, here.turns))


def test_three_turns() -> None:
    here = world(1, 1, 2)
    truth = true_gradient(here, lambda played, k: credit(here, played, k, THREE_TURNS))
    found = expected_gradient(trainer_of(here, THREE_TURNS), (1, 1, 2))
    assert relative_gap(-found, truth) < TOLERANCE


@pytest.mark.parametrize("discount", [0.8, 1.0])
def test_discount_pays_a_turn_for_the_later_ones(discount: float) -> None:
    here = world(2, 2)

    def value(played: Any, k: int) -> Any:
        return sum(discount ** (j - k) * credit(here, played, j, STAGE_TWO).detach() for j in range(k, 2))

    truth = true_gradient(here, value)
    found = expected_gradient(trainer_of(here, {**STAGE_TWO, "discount": discount}), (2, 2))
    assert relative_gap(-found, truth) < TOLERANCE
    if discount == 1.0:  # the full gradient of the expected sum: nothing detached
        whole = true_gradient(here, lambda played, k: credit(here, played, k, STAGE_TWO), gamma_one=True)
        assert relative_gap(-found, whole) < TOLERANCE


def test_offline_first_attempts_are_context_only() -> None:
    here, group = world(1, 2), 3
    stage = {**STAGE_TWO, "offline_share": 1 / 3}
    on = true_gradient(here, lambda played, k: credit(here, played, k, STAGE_TWO))
    total = torch.zeros((), dtype=torch.float64)
    for played in here.played:
        context = float(here.reference.turn_logprob(played, 0).detach().exp())
        total = total + context * here.policy.turn_logprob(played, 1).exp() * credit(here, played, 1, STAGE_TWO)
    off = torch.autograd.grad(total, here.policy.table)[0].flatten()
    found = expected_gradient(trainer_of(here, stage, group=group), (1, 2), group=group, offline=1)
    assert relative_gap(-found, (2 * on + off) / group) < TOLERANCE


@pytest.mark.pitfall(16)
def test_first_update_with_importance_ratios_is_reinforce() -> None:
    here = world(2, 2)
    plain = expected_gradient(trainer_of(here, STAGE_TWO), (2, 2))
    ratio = expected_gradient(trainer_of(here, STAGE_TWO, num_iterations=2), (2, 2))
    assert relative_gap(ratio, plain) < TOLERANCE


def test_bonus_is_a_weight_on_turn_two_in_expectation() -> None:
    here = world(2, 2)
    weighted = {**STAGE_TWO, "reward_weights": [1, 1 + ALPHA], "bonus": 0.0}
    bonus = expected_gradient(trainer_of(here, STAGE_TWO), (2, 2))
    weight = expected_gradient(trainer_of(here, weighted), (2, 2))
    assert relative_gap(bonus, weight) < TOLERANCE
    only_first = {**STAGE_TWO, "bonus": 0.0}  # and the bonus has an effect
    assert relative_gap(expected_gradient(trainer_of(here, only_first), (2, 2)), weight) > 0.5


def test_the_weight_has_less_variance_than_the_bonus() -> None:
    """Section 5 of docs/method.md: same mean, less noise, measured as the expected squared norm of a group's gradient."""
    here = world(1, 1)

    def mean_square(stage: dict[str, Any]) -> float:
        trainer, total = trainer_of(here, stage), 0.0
        episodes, weights = every_group(here, 2)
        for i, weight in enumerate(weights):
            batch = trainer.pack_rollout(episodes[2 * i : 2 * i + 2])
            trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
            total += weight * float(gradient(here.policy).square().sum())
        return total

    bonus, weight = mean_square(STAGE_TWO), mean_square({**STAGE_TWO, "reward_weights": [1, 1 + ALPHA], "bonus": 0.0})
    assert bonus > 1.3 * weight


# ---------------------------------------------------------------- the KL estimators, each with its bias

COEFFICIENTS = [turn["base"] for turn in KL_ALONE["kl_coefs"]]


def kl_gradient(placement: str, estimator: str) -> torch.Tensor:
    """Return the expected gradient of the KL terms alone."""
    return expected_gradient(trainer_of(world(2, 2), KL_ALONE, (placement, estimator)), (2, 2))


def sequence_kl_gradient() -> torch.Tensor:
    here = world(2, 2)
    return true_gradient(here, lambda played, k: COEFFICIENTS[k] * log_ratio(here, played, k))


def test_log_ratio_in_the_reward_is_unbiased_for_the_sequence_kl() -> None:
    assert relative_gap(kl_gradient("reward", "k1"), sequence_kl_gradient()) < TOLERANCE


@pytest.mark.pitfall(12)
def test_k1_as_a_loss_has_no_expected_gradient() -> None:
    found, scale = kl_gradient("loss", "k1"), sequence_kl_gradient().norm()
    assert scale > 0.1
    assert found.norm() / scale < TOLERANCE


@pytest.mark.pitfall(12)
@pytest.mark.parametrize("estimator", ["k2", "full"])
def test_k2_and_full_hold_the_contexts_fixed(estimator: str) -> None:
    found = kl_gradient("loss", estimator)
    assert relative_gap(found, token_kl_gradient(world(2, 2), COEFFICIENTS, reverse=False)) < TOLERANCE
    assert relative_gap(found, sequence_kl_gradient()) > 1e-2  # the documented bias exists


@pytest.mark.pitfall(12)
def test_k3_is_the_other_direction() -> None:
    found = kl_gradient("loss", "k3")
    assert relative_gap(found, token_kl_gradient(world(2, 2), COEFFICIENTS, reverse=True)) < TOLERANCE
    assert relative_gap(found, sequence_kl_gradient()) > 1e-1


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_kl_losses_add_to_the_policy_gradient(estimator: str) -> None:
    here = world(2, 2)
    policy_only = {**STAGE_TWO, "kl_coefs": [{"base": 0.0}, {"base": 0.0}]}
    truth = -true_gradient(here, lambda played, k: credit(here, played, k, policy_only))
    truth = truth + token_kl_gradient(here, [0.01, 0.03], reverse=estimator == "k3")
    assert relative_gap(expected_gradient(trainer_of(here, STAGE_TWO, ("loss", estimator)), (2, 2)), truth) < TOLERANCE


# ---------------------------------------------------------------- the oracle itself can fail

TRAIN: Any = sys.modules[Trainer.__module__]


def negated(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return (-result[0], result[1]) if isinstance(result, tuple) else -result

    return call


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("place", ["policy_terms", "shaped_rewards", "leave_one_out", "log_ratios"])
def test_the_oracle_sees_a_flipped_sign_of_the_policy_gradient(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world(2, 2)
    truth = true_gradient(here, lambda played, k: credit(here, played, k, STAGE_TWO))
    owner = {"log_ratios": Trainer, "policy_terms": TRAIN}.get(place, score)
    monkeypatch.setattr(owner, place, negated(getattr(owner, place)))
    assert relative_gap(-expected_gradient(trainer_of(here, STAGE_TWO), (2, 2)), truth) > 1e-3


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_the_oracle_sees_a_flipped_sign_of_a_kl_loss(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = token_kl_gradient(world(2, 2), COEFFICIENTS, reverse=estimator == "k3")
    monkeypatch.setattr(TRAIN, "kl_loss", negated(TRAIN.kl_loss))
    assert relative_gap(kl_gradient("loss", estimator), truth) > 1


@pytest.mark.pitfall(18)
def test_the_gradient_is_divided_by_the_number_of_episodes_of_the_step() -> None:
    """Repeating a group gives the same gradient, not twice as much."""
    here = world(1, 1)
    trainer = trainer_of(here, STAGE_TWO)
    episodes, _ = every_group(here, 2)
    found = []
    for chosen in (episodes[10:12], episodes[10:12] * 3):
        batch = trainer.pack_rollout(chosen)
        trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
        found.append(gradient(here.policy))
    assert found[0].norm() > 1e-2
    assert relative_gap(found[1], found[0]) < 1e-12
