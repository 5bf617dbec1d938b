"""Test the paper's equations on hand-worked examples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfcorrect.config.stage_parts import AdaptiveConfig
from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.kl_controller import adapted
from selfcorrect.method.objective import (
    KLEstimator,
    kl_loss,
    leave_one_out,
    less_fitted_verdict,
    policy_terms,
    returns,
    shaped_rewards,
)
from selfcorrect.method.score import advantages

EXACT = {"atol": 1e-12, "rtol": 0.0}


def tensor(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def everyone(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_stage_one_rewards_the_second_turn_only() -> None:
    rewards = tensor([[1, 1], [0, 1], [1, 0]])
    assert shaped_rewards(rewards, (0, 1), bonus=0).tolist() == [[0, 1], [0, 1], [0, 0]]


@pytest.mark.pitfall(16)
def test_stage_two_values_of_the_second_turn() -> None:
    rewards = tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    assert shaped_rewards(rewards, (1, 1), bonus=10).tolist() == [[0, 0], [0, 11], [1, -10], [1, 1]]


def test_the_bonus_of_a_third_turn_is_over_the_attempt_just_before() -> None:
    assert shaped_rewards(tensor([[1, 0, 1]]), (1, 1, 1), bonus=2).tolist() == [[1, -2, 3]]


def test_shaping_leaves_the_rewards_alone() -> None:
    rewards = tensor([[1, 0]])
    shaped_rewards(rewards, (1, 1), bonus=10)
    assert rewards.tolist() == [[1, 0]]


@pytest.mark.pitfall(4)
def test_worked_example_of_per_turn_advantages() -> None:
    rewards = tensor([[1, 1], [0, 1], [0, 0]])
    credit = returns(shaped_rewards(rewards, (1, 1), bonus=10), discount=0)
    advantages = leave_one_out(credit, 3, everyone(credit))
    expected = tensor([[1, -9 / 2], [-1 / 2, 21 / 2], [-1 / 2, -6]])
    torch.testing.assert_close(advantages, expected, **EXACT)


def test_returns_by_hand() -> None:
    credit = tensor([[1, 2, 4]])
    assert returns(credit, 0).tolist() == [[1, 2, 4]]
    assert returns(credit, 0.5).tolist() == [[3, 4, 4]]
    assert returns(credit, 1).tolist() == [[7, 6, 4]]
    assert credit.tolist() == [[1, 2, 4]]


@pytest.mark.pitfall(3)
@given(
    st.integers(2, 5).flatmap(
        lambda group: st.tuples(
            st.just(group),
            st.lists(st.lists(st.floats(-20, 20), min_size=2 * group, max_size=2 * group), min_size=1, max_size=4),
        )
    ),
    st.floats(-100, 100),
)
def test_leave_one_out_sums_to_zero_and_ignores_a_constant(drawn: tuple[int, list], constant: float) -> None:
    group, values = drawn
    found = tensor(values).view(-1, 2)
    advantages = leave_one_out(found, group, everyone(found))
    sums = advantages.view(-1, group, 2).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-10, rtol=0)
    torch.testing.assert_close(leave_one_out(found + constant, group, everyone(found)), advantages, atol=1e-10, rtol=0)
    for i, row in enumerate(found):  # the closed form: own value minus the mean of the group's others
        start = i - i % group
        others = torch.cat([found[start:i], found[i + 1 : start + group]]).mean(0)
        torch.testing.assert_close(advantages[i], row - others, atol=1e-10, rtol=0)


def test_the_slope_on_the_verdict_before_comes_from_the_other_problems() -> None:
    rewards = tensor([[1, 1], [1, 0], [0, 0], [0, 0], [1, 1], [1, 1], [0, 0], [0, 1]])
    # Within the first problem, second attempts are right on 1/2 after a right first attempt and on 0 after a wrong one, within
    # the second problem on 1 and 1/2: both slopes are 1/2. Paid 11 and 3 times, they are 11/2 and 3/2.
    paid = rewards * tensor([[1, 11]] * 4 + [[1, 3]] * 4)
    expected = [[1, 11 - 1.5], [1, -1.5], [0, 0], [0, 0], [1, 3 - 5.5], [1, 3 - 5.5], [0, 0], [0, 3]]
    assert less_fitted_verdict(paid, rewards, 4, everyone(paid)).tolist() == expected


def test_the_slope_is_pooled_and_zero_where_no_other_problem_has_both_verdicts() -> None:
    mixed, alike = [[1, 1], [0, 0]], [[1, 1], [1, 0]]
    rewards = tensor(mixed + alike + [[1, 0], [0, 0]])
    # For the second problem: products 1/2 and 0 over squares 1/2 and 1/2, so 1/2; the first sees slope 0, the third slope 1.
    expected = [[1, 1], [0, 0], [1, 0.5], [1, -0.5], [1, -1], [0, 0]]
    assert less_fitted_verdict(rewards, rewards, 2, everyone(rewards)).tolist() == expected
    alone = tensor(mixed)
    assert less_fitted_verdict(alone, alone, 2, everyone(alone)).tolist() == mixed


def test_a_second_attempt_of_another_model_fits_no_slope() -> None:
    rewards = tensor([[1, 1], [0, 0], [1, 1], [0, 0], [1, 0]])[[0, 1, 4, 2, 3, 3]]
    online = torch.tensor([[True, True]] * 2 + [[True, False]] + [[True, True]] * 3)
    found = less_fitted_verdict(rewards, rewards, 3, online)
    assert found[3:, 1].tolist() == [0, 0, 0]  # the first problem's slope, without its third episode, is 1


def test_turns_of_another_model_are_in_nobodys_baseline() -> None:
    values = tensor([[100, 6], [1, 2], [2, 1], [6, 3]])
    online = torch.tensor([[False, True], [True, True], [True, True], [True, True]])
    advantages = leave_one_out(values, 4, online)
    expected = tensor([[0, 4], [-3, -4 / 3], [-3 / 2, -8 / 3], [9 / 2, 0]])
    torch.testing.assert_close(advantages, expected, **EXACT)


def test_the_revisions_of_one_first_attempt_are_each_others_baseline() -> None:
    rewards = tensor([[1, 1], [1, 0], [0, 1], [0, 1]])
    online = torch.tensor([[True, True], [False, True]] * 2)
    outcome = StepOutcome(rewards, torch.zeros_like(rewards), online, group=4, revisions=2)
    stage = ReinforcementStage(steps=1, reward_weights=(1, 2), kl_coefs=({}, {}), revisions=2)
    assert advantages(outcome, stage).tolist() == [[1, 2], [0, -2], [-1, 0], [0, 0]]


def test_a_turn_alone_in_its_group_has_no_advantage() -> None:
    online = torch.tensor([[False], [True]])
    assert leave_one_out(tensor([[5], [7]]), 2, online).tolist() == [[0], [0]]


def test_groups_do_not_mix() -> None:
    values = tensor([[1], [0], [50], [40]])
    assert leave_one_out(values, 2, everyone(values)).tolist() == [[1], [-1], [10], [-10]]


def test_kl_estimators_by_hand() -> None:
    ours, theirs = tensor([math.log(0.5), math.log(0.25)]), tensor([math.log(0.25), math.log(0.5)])
    step = math.log(2)
    expected = {
        KLEstimator.K1: [step, -step],
        KLEstimator.K2: [step**2 / 2, step**2 / 2],
        KLEstimator.K3: [0.5 - 1 + step, 2 - 1 - step],
    }
    for estimator, values in expected.items():
        torch.testing.assert_close(kl_loss(estimator, ours, theirs), tensor(values), **EXACT)


@pytest.mark.pitfall(7)
@given(st.lists(st.tuples(st.floats(-15, 0), st.floats(-15, 0)), min_size=1, max_size=20))
def test_k2_and_k3_are_never_negative_and_zero_at_identity(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = tensor([a for a, _ in pairs]), tensor([b for _, b in pairs])
    for estimator in (KLEstimator.K2, KLEstimator.K3):
        assert (kl_loss(estimator, ours, theirs) >= -1e-12).all()
    for estimator in (KLEstimator.K1, KLEstimator.K2, KLEstimator.K3):
        assert kl_loss(estimator, ours, ours.clone()).abs().max() == 0


def test_the_full_estimator_is_what_it_is_given() -> None:
    full = tensor([0.3, 0.1])
    assert kl_loss(KLEstimator.FULL, tensor([0, 0]), tensor([1, 1]), full) is full


def test_policy_terms_without_ratios() -> None:
    loss, clipped = policy_terms(tensor([-2, -3]), tensor([0, 0]), tensor([0.5, -1]))
    assert loss.tolist() == [1, -3]
    assert not clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1, 2, -2, False),
        (1.1, 2, -2.2, False),
        (1.5, 2, -2.4, True),
        (1.5, -2, 3, False),
        (0.5, 2, -1, False),
        (0.5, -2, 1.6, True),
    ],
)
def test_policy_terms_with_ratios_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    found, flag = policy_terms(tensor([math.log(ratio)]), tensor([0]), tensor([advantage]), clip=0.2)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert flag.item() is clipped


# ---------------------------------------------------------------- the controller of beta2

LIMITS = AdaptiveConfig(target=1.0, rate=0.1, minimum=0.05, maximum=2.0)


@pytest.mark.parametrize(
    ("coefficient", "kl_term", "policy_term", "expected"),
    [
        (0.5, 1.0, 1.0, 0.5),  # balanced
        (0.5, 1.0, 1.5, 0.5 * 1.5**0.1),  # the KL term is too small: b rises
        (0.5, 1.5, 1.0, 0.5 / 1.5**0.1),  # too large: b falls
        (0.5, 1.0, 1e6, 0.5 * math.exp(0.1)),  # one step never moves it by more than the rate
        (0.5, 1e6, 1.0, 0.5 * math.exp(-0.1)),
        (1.99, 1.0, 1e6, 2.0),  # the bounds
        (0.051, 1e6, 1.0, 0.05),
        (0.5, 0.0, 1.0, 0.5),  # nothing measurable
        (0.5, -0.1, 1.0, 0.5),
        (0.5, 1.0, 0.0, 0.5),
    ],
)
def test_adaptive_coefficient_by_hand(coefficient: float, kl_term: float, policy_term: float, expected: float) -> None:
    assert adapted(coefficient, kl_term, policy_term, LIMITS) == pytest.approx(expected, rel=1e-12)


def test_the_controllers_target_is_the_wanted_ratio() -> None:
    assert adapted(0.5, 2.0, 1.0, LIMITS.model_copy(update={"target": 2.0})) == pytest.approx(0.5, rel=1e-12)
