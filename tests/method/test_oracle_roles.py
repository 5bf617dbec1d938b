"""Test by enumeration that verification turns and conditional turns have the gradient of their objective.

Every possible step goes through `Trainer.pack_rollout`, the method and `accumulate_gradient`, weighted by its probability. The
truth (`tabular_roles.py`) shares no line with the code under test.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from support.gradients import gradient, relative_gap
from support.tabular import RIGHT
from support.tabular_drafts import DraftWorld
from support.tabular_roles import ALWAYS, IF_WRONG, Conversation, VerifiedWorld, rewards, true_gradient
from support.trainers import make_trainer, settings
from torch import Tensor

from selfcorrect.config.schema import KLConfig
from selfcorrect.method import objective, s2r, score, self_rewarding, self_verification
from selfcorrect.method.base import StepOutcome
from selfcorrect.script import Script
from selfcorrect.training.trainer import RolloutBatch, Trainer
from selfcorrect.types import Role

TOLERANCE = 1e-9
STAGE: dict[str, Any] = {
    "reward_weights": [1, 0.5],
    "bonus": 3.0,
    "kl_coefs": [{"base": 0.1}, {"base": 0.05}],
    "verification": {"weight": 2.0, "kl_coefs": {"base": 0.2}},
}
PAG: dict[str, Any] = {"method": "pag", "reward_weights": [1, 1], "bonus": 1.0, "kl_coefs": [{}, {}]}
S2R: dict[str, Any] = {"method": "s2r", "reward_weights": [1, 1], "bonus": 0.0, "kl_coefs": [{}, {}]}
OUTCOME: dict[str, Any] = {
    "method": "self_rewarding",
    "reward_weights": [0, 1],
    "bonus": 0.0,
    "kl_coefs": [{}, {}],
    "verification": {"weight": 0.0, "kl_coefs": {}},
}
SCRIPTS = {"always": ALWAYS, "if wrong": IF_WRONG}


@cache
def world(limits: tuple[int, ...], conditional: bool = True) -> VerifiedWorld:
    return VerifiedWorld.make(limits, IF_WRONG if conditional else ALWAYS)


def trainer_of(
    here: VerifiedWorld, stage: dict[str, Any], group: int, kl: tuple[str, str] = ("reward", "k1")
) -> Trainer:
    config = settings(
        stage=stage,
        rollout={"batch_size": group, "group_size": group, "max_tokens": max(here.policy.limits)},
        optimizer={"micro_batch_tokens": 10**9},
    )
    config = config.model_copy(update={"kl": KLConfig(placement=kl[0], estimator=kl[1])})
    return make_trainer(config, policy=here.policy, base=here.reference, script=here.script)


def expected_gradient(here: VerifiedWorld, trainer: Trainer, size: int, others: Sequence[Conversation] = ()) -> Tensor:
    """Return the gradient that ``size`` episodes accumulate, averaged over all possible ones; the loss's.

    Every step also has the ``others``, fixed episodes of another problem, whose own gradients are left out.
    """
    episode = {played: here.episode(played) for played in here.played}
    chances, whole = step_chances(here, size), size + len(others)
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    members = itertools.product(here.played, repeat=size)
    batch = trainer.pack_rollout([episode[played] for step in members for played in (*step, *others)])
    advantages_NK = torch.cat([trainer.advantages(part) for part in steps_of(trainer, batch, whole)])
    (rows,) = batch.batches
    counted = torch.tensor([1.0] * size + [0.0] * len(others), dtype=torch.float64)
    here.policy.row_weights = (chances[:, None] * counted).flatten()[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(chances) * whole / size


def step_chances(here: VerifiedWorld, size: int) -> Tensor:
    """Return the probability of every step, in the order of `itertools.product`."""
    each = torch.tensor([here.probability(played) for played in here.played], dtype=torch.float64)
    total = each
    for _ in range(size - 1):
        total = (total[:, None] * each[None]).flatten()
    return total


def steps_of(trainer: Trainer, batch: RolloutBatch, size: int) -> list[Any]:
    """Return the batch of each step; its KL penalties are computed once, for all of them."""
    ratios_RNK = trainer.log_ratios(batch)
    found = []
    for i in range(0, len(batch.rewards_NK), size):
        part = slice(i, i + size)
        tensors = {name: getattr(batch, name)[part] for name in ("rewards_NK", "online_NK", "present_NK")}
        found.append(replace(batch, **tensors))
    places = iter(range(0, len(batch.rewards_NK), size))
    trainer.log_ratios = lambda _: ratios_RNK[:, (i := next(places)) : i + size]  # type: ignore[method-assign]
    return found


def credit(here: VerifiedWorld, played: Conversation, k: int, stage: dict[str, Any]) -> Any:
    """Return R_k minus lambda_k times the log-ratio of turn k, by hand; turn 1 is the verification."""
    r = rewards(played)
    verified = stage.get("verification", {"weight": 1.0, "kl_coefs": {}})
    shaped = (
        stage["reward_weights"][0] * r[0],
        verified["weight"] * r[1],
        *([stage["reward_weights"][1] * r[2] + stage["bonus"] * (r[2] - r[0])] if len(r) == 3 else []),
    )
    anchors = (stage["kl_coefs"][0], verified["kl_coefs"], stage["kl_coefs"][1])[k]
    ratio = here.policy.turn_logprob(played, k) - here.reference.turn_logprob(played, k).detach()
    return shaped[k] - anchors.get("base", 0.0) * ratio


def truth_of(here: VerifiedWorld, stage: dict[str, Any]) -> Tensor:
    discount = stage.get("discount", 0.0)

    def value(played: Conversation, k: int) -> Any:
        later = range(k + 1, len(played)) if discount else ()
        return credit(here, played, k, stage) + sum(
            discount ** (j - k) * credit(here, played, j, stage).detach() for j in later
        )

    return true_gradient(here, value)


@pytest.mark.pitfall(4)
@pytest.mark.pitfall(16)
@pytest.mark.parametrize("discount", [0.0, 0.5])
@pytest.mark.parametrize("baseline", ["rloo", "none"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_verifications_have_the_gradient_of_the_objective(script: str, baseline: str, discount: float) -> None:
    here = world((1, 1, 2), script == "if wrong")
    stage = {**STAGE, "baseline": baseline, "discount": discount}
    truth = truth_of(here, stage)
    assert truth.norm() > 1e-2
    assert relative_gap(-expected_gradient(here, trainer_of(here, stage, 2), 2), truth) < TOLERANCE


def test_groups_of_three_have_lone_second_attempts_and_pairs() -> None:
    here = world((1, 1, 1))
    found = expected_gradient(here, trainer_of(here, STAGE, 3), 3)
    assert relative_gap(-found, truth_of(here, STAGE)) < TOLERANCE


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_lone_second_attempt_takes_its_baseline_from_another_problem(count: int) -> None:
    """Whatever the other problem's episodes are, ``count`` of them with a second attempt."""
    here = world((1, 1, 1))
    long, short = ([p for p in here.played if len(p) == n and p[0] not in RIGHT] for n in (3, 2))
    others = [*[p for p in long if p[-1] in RIGHT][:1], *long[:1]][:count] + short[: 2 - count]
    assert len(others) == 2
    found = expected_gradient(here, trainer_of(here, STAGE, 2), 2, others)
    assert relative_gap(-found, truth_of(here, STAGE)) < TOLERANCE


def test_the_baseline_of_a_lone_turn_is_the_other_problems_mean() -> None:
    returns = torch.tensor([[1.0, 5.0], [2.0, 0.0], [3.0, 7.0], [4.0, 9.0]])
    taken = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    assert objective.lone_advantages(returns, 2, taken).tolist() == [[0, 5 - 8], [0, 0], [0, 0], [0, 0]]
    alone = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    assert objective.lone_advantages(returns, 2, alone)[:, 1].tolist() == [5, 0, 0, 0]


@pytest.mark.pitfall(16)
def test_the_oracle_sees_lone_turns_that_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    here = world((1, 1, 1))
    monkeypatch.setattr(score, "lone_advantages", lambda returns_NK, group, online_NK: torch.zeros_like(returns_NK))
    found = expected_gradient(here, trainer_of(here, STAGE, 2), 2)
    assert relative_gap(-found, truth_of(here, STAGE)) > 1e-2


@pytest.mark.pitfall(12)
def test_a_kl_loss_counts_the_tokens_of_a_verification() -> None:
    """The gradient of k2 as a loss, with contexts held fixed, added to the policy's."""
    here = world((1, 1, 1))
    anchors = [STAGE["kl_coefs"][0]["base"], STAGE["verification"]["kl_coefs"]["base"], STAGE["kl_coefs"][1]["base"]]
    total = torch.zeros((), dtype=torch.float64)
    for played in here.played:
        for k in range(len(played)):
            ours, theirs = here.policy.token_logprobs(played, k), here.reference.token_logprobs(played, k)
            for (logp, _), (reference, _) in zip(ours, theirs, strict=True):
                kl = (logp.exp() * (logp - reference.detach())).sum()
                total = total + here.probability(played) * anchors[k] * kl
    kl_gradient = torch.autograd.grad(total, here.policy.table)[0].flatten()
    without = {**STAGE, "kl_coefs": [{}, {}], "verification": {"weight": 2.0, "kl_coefs": {}}}
    found = expected_gradient(here, trainer_of(here, STAGE, 2, ("loss", "k2")), 2)
    assert relative_gap(found, kl_gradient - truth_of(here, without)) < TOLERANCE


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("group", [2, 3])
def test_pag_has_the_gradient_of_its_whitened_advantages(group: int) -> None:
    """The truth takes PAG's definition word for word, with leave-one-out as loops, for every possible group."""
    here = world((1, 1, 1))
    scores = {played: [here.policy.turn_logprob(played, k) for k in range(len(played))] for played in here.played}
    total = torch.zeros((), dtype=torch.float64)
    for chance, members in zip(
        step_chances(here, group).tolist(), itertools.product(here.played, repeat=group), strict=True
    ):
        terms = pag_by_hand(members)
        total = total + chance * sum(a * scores[members[i]][k] for (i, k), a in terms.items()) / group
    truth = torch.autograd.grad(total, here.policy.table)[0].flatten()
    found = expected_gradient(here, trainer_of(here, PAG, group), group)
    assert truth.norm() > 1e-2
    assert relative_gap(-found, truth) < TOLERANCE


def pag_by_hand(members: Sequence[Conversation]) -> dict[tuple[int, int], float]:
    """Return PAG's advantage of every turn that is made, by episode and turn."""
    earned: dict[tuple[int, int], float] = {}
    for i, played in enumerate(members):
        r1, rv, *r2 = rewards(played)
        earned |= {(i, 0): r1, (i, 1): rv}
        if r2:
            earned[i, 2] = r2[0] + (r2[0] - r1)
    left: dict[tuple[int, int], float] = {}
    for i, k in earned:
        others = [value for (j, turn), value in earned.items() if turn == k and j != i]
        left[i, k] = earned[i, k] - (sum(others) / len(others) if others else 0.0)
    result: dict[tuple[int, int], float] = {}
    for role in ((0, 2), (1,)):  # attempts, verifications
        values = {place: value for place, value in left.items() if place[1] in role}
        mean = sum(values.values()) / len(values)
        scale = (sum((value - mean) ** 2 for value in values.values()) / len(values)) ** 0.5
        result |= {place: (value - mean) / scale if scale else 0.0 for place, value in values.items()}
    return result


def test_a_stage_without_verifications_ignores_their_weight() -> None:
    """The columns of a script decide: nothing else reads the weight."""
    assert [turn.name for turn in trainer_of(world((1, 1, 1)), STAGE, 2).turns] == ["t1", "v1", "t2"]
    plain = make_trainer(settings(), script=Script(revise="Again."))
    assert [turn.name for turn in plain.turns] == ["t1", "t2"]


# ---------------------------------------------------------------- S2R's credit


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("discount", [0.0, 0.5])
@pytest.mark.parametrize("stage", [S2R, {**STAGE, "method": "s2r"}], ids=["as the row has it", "weights, bonus and KL"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_baseline_of_a_reward_context_leaves_the_expected_gradient(
    script: str, stage: dict[str, Any], discount: float
) -> None:
    here = world((1, 1, 1), script == "if wrong")
    stage = {**stage, "discount": discount}
    truth = truth_of(here, stage)
    assert truth.norm() > 1e-2
    for group in (2, 3) if script == "if wrong" else (2,):
        assert relative_gap(-expected_gradient(here, trainer_of(here, stage, group), group), truth) < TOLERANCE


@pytest.mark.pitfall(16)
def test_a_reward_context_has_turns_of_other_problems() -> None:
    """The other problem's episodes change the advantages of every turn, and no expected gradient."""
    here = world((1, 1, 1))
    by_rewards = {tuple(rewards(played)): played for played in here.played}
    others = [by_rewards[1.0, 0.0, 0.0], by_rewards[0.0, 1.0, 1.0]]
    found = expected_gradient(here, trainer_of(here, S2R, 2), 2, others)
    assert relative_gap(-found, truth_of(here, S2R)) < TOLERANCE


@pytest.mark.pitfall(16)
def test_the_oracle_sees_a_reward_context_that_knows_the_turns_own_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    here, contexts = world((1, 1, 1)), s2r.reward_contexts
    monkeypatch.setattr(s2r, "reward_contexts", lambda r_NK, p_NK=None: 2 * contexts(r_NK, p_NK) + r_NK.long())
    assert relative_gap(-expected_gradient(here, trainer_of(here, S2R, 2), 2), truth_of(here, S2R)) > 1e-2


def test_s2rs_advantages_of_two_problems_by_hand() -> None:
    """Two problems of three episodes. Rows: r_1, r_v, r_2; a dash is a skipped turn, which repeats the attempt before it."""
    played = [
        (1, 1, None),  # said right of a correct attempt, so it stands
        (0, 1, 1),
        (0, 1, 0),
        (0, 0, None),  # said right of an incorrect attempt
        (1, 0, 1),
        (0, 1, 0),
    ]
    rewards_NK = torch.tensor([[r1, rv, r1 if r2 is None else r2] for r1, rv, r2 in played], dtype=torch.float64)
    present_NK = torch.tensor([[True, True, r2 is not None] for _, _, r2 in played])
    roles = (Role.ATTEMPT, Role.VERIFICATION, Role.ATTEMPT)
    outcome = StepOutcome(rewards_NK, torch.zeros_like(rewards_NK), present_NK, 3, roles=roles, present_NK=present_NK)
    stage = trainer_of(world((1, 1, 1)), S2R, 2).stage
    # First attempts: all six have the same context, the empty one: 2 are correct. Verifications: of correct attempts 1 and 0,
    # of incorrect ones 1, 1, 0 and 1. Second attempts: after (0, 1) three of two problems earn 1, 0, 0; after (1, 0) one alone.
    expected = [
        [1 - 1 / 5, 1 - 0, 0],
        [0 - 2 / 5, 1 - 2 / 3, 1 - 0],
        [0 - 2 / 5, 1 - 2 / 3, 0 - 1 / 2],
        [0 - 2 / 5, 0 - 3 / 3, 0],
        [1 - 1 / 5, 0 - 1, 1 - 0],
        [0 - 2 / 5, 1 - 2 / 3, 0 - 1 / 2],
    ]
    torch.testing.assert_close(s2r.advantages(outcome, stage), torch.tensor(expected, dtype=torch.float64))


def test_turns_of_another_model_enter_no_baseline_of_a_reward_context() -> None:
    returns_NK = torch.tensor([[1.0, 5.0], [0.0, 2.0], [1.0, 4.0]])
    online_NK = torch.tensor([[False, True], [True, True], [True, False]])
    contexts_NK = torch.tensor([[0, 2], [0, 1], [0, 2]])
    assert s2r.less_mean_of_others(returns_NK, contexts_NK, online_NK).tolist() == [[0, 5], [-1, 2], [1, 0]]


def test_a_skipped_turn_is_no_failure_in_a_reward_context() -> None:
    rewards_NK, present_NK = torch.zeros(2, 3), torch.tensor([[True, True, True], [True, False, True]])
    assert s2r.reward_contexts(rewards_NK, present_NK).tolist() == [[0, 1, 4], [0, 1, 3]]


# ---------------------------------------------------------------- the outcome of self-rewarding correction


def gradient_of_trajectories(here: VerifiedWorld, stage: dict[str, Any]) -> Tensor:
    """Return the gradient of E[what a trajectory earns, less its KL], through the probability of every turn."""
    total = torch.zeros((), dtype=torch.float64)
    first, second = stage["reward_weights"]
    anchors = (stage["kl_coefs"][0], stage["verification"]["kl_coefs"], stage["kl_coefs"][1])
    for played in here.played:
        r1, rv, *later = rewards(played)
        last = later[0] if later else r1
        earned: Any = first * r1 + second * last + stage["bonus"] * (last - r1) + stage["verification"]["weight"] * rv
        logprobs = [here.policy.turn_logprob(played, k) for k in range(len(played))]
        for k, logprob in enumerate(logprobs):
            ratio = logprob.detach() - here.reference.turn_logprob(played, k).detach()
            earned = earned - anchors[k].get("base", 0.0) * ratio
        total = total + sum(logprobs).exp() * earned  # type: ignore[union-attr]
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("stage", [OUTCOME, {**STAGE, "method": "self_rewarding"}], ids=["outcome", "weights and KL"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_turn_of_a_trajectory_earns_its_outcome(script: str, stage: dict[str, Any]) -> None:
    here = world((1, 1, 1), script == "if wrong")
    truth = gradient_of_trajectories(here, stage)
    assert truth.norm() > 1e-2
    for group in (2, 3) if script == "if wrong" else (2,):
        assert relative_gap(-expected_gradient(here, trainer_of(here, stage, group), group), truth) < TOLERANCE


def test_the_outcome_is_the_first_verdict_and_its_change_with_discount_1() -> None:
    """r_1 now and r_2 - r_1 later add up to the outcome: the same objective, in settings of `score`."""
    here = world((1, 1, 1))
    stage = {**OUTCOME, "method": "score", "reward_weights": [1, 0], "bonus": 1.0, "discount": 1.0}
    assert relative_gap(truth_of(here, stage), gradient_of_trajectories(here, OUTCOME)) < TOLERANCE


def test_the_advantages_of_trajectories_by_hand() -> None:
    """Two problems of three trajectories; the base wrote the last first attempt, which is context."""
    played = [(1, 1, None), (0, 1, 1), (0, 0, None), (1, 0, 0), (0, 1, 0), (1, 1, None)]
    rewards_NK = torch.tensor([[r1, rv, r1 if r2 is None else r2] for r1, rv, r2 in played], dtype=torch.float64)
    present_NK = torch.tensor([[True, True, r2 is not None] for _, _, r2 in played])
    online_NK = present_NK.clone()
    online_NK[5, 0] = False
    roles = (Role.ATTEMPT, Role.VERIFICATION, Role.ATTEMPT)
    penalty_NK = torch.zeros_like(rewards_NK)
    penalty_NK[1] = torch.tensor([0.1, 0.2, 0.3])
    outcome = StepOutcome(rewards_NK, penalty_NK, online_NK, 3, roles=roles, present_NK=present_NK)
    stage = trainer_of(world((1, 1, 1)), OUTCOME, 2).stage
    # Outcomes 1, 1 - 0.6, 0 and 0, 0, 1: each less the mean of the two others.
    each = [1 - 0.2, 0.4 - 0.5, 0 - 0.7, 0 - 0.5, 0 - 0.5, 1 - 0]
    expected = torch.tensor(each, dtype=torch.float64)[:, None] * online_NK
    assert self_rewarding.trajectory_rewards(outcome, stage).tolist() == pytest.approx([1, 0.4, 0, 0, 0, 1])
    torch.testing.assert_close(self_rewarding.advantages(outcome, stage), expected)


# ---------------------------------------------------------------- drafts on prompts of their own

DRAFTS: dict[str, Any] = {
    "method": "self_verification",
    "reward_weights": [1.5],
    "kl_coefs": [{"base": 0.1}],
    "verification": {"weight": 2.0, "kl_coefs": {"base": 0.3}},
}


@cache
def draft_world() -> DraftWorld:
    return DraftWorld.make(1, 2)


def expected_gradient_with_drafts(here: DraftWorld, stage: dict[str, Any]) -> Tensor:
    """Return the gradient of a step of two groups that solve and two that verify, averaged over all possible steps."""
    config = settings(
        stage=stage,
        rollout={"batch_size": 4, "group_size": 2, "max_tokens": here.limit},
        optimizer={"micro_batch_tokens": 10**9},
    )
    trainer = make_trainer(config, policy=here.policy, base=here.reference)
    steps = here.steps()
    chances = torch.stack([here.probability(step).detach() for step in steps])
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    batch = trainer.pack_rollout([episode for step in steps for episode in here.episodes(step)])
    advantages_NK = torch.cat([trainer.advantages(part) for part in steps_of(trainer, batch, 8)])
    (rows,) = batch.batches
    here.policy.row_weights = chances[:, None].expand(-1, 8).flatten()[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(steps)


@pytest.mark.pitfall(4)
@pytest.mark.pitfall(16)
@pytest.mark.parametrize("baseline", ["rloo", "none"])
def test_solving_and_verifying_have_the_gradient_of_the_sum_of_both_means(baseline: str) -> None:
    here = draft_world()
    truth = here.true_gradient(1.5, 2.0, 0.1, 0.3)
    only = [here.true_gradient(1.5, 0.0, 0.1, 0.0), here.true_gradient(0.0, 2.0, 0.0, 0.3)]
    assert min(float(part.norm()) for part in only) > 1e-2, "both parts have some"
    assert relative_gap(-expected_gradient_with_drafts(here, {**DRAFTS, "baseline": baseline}), truth) < TOLERANCE


@pytest.mark.pitfall(4)
def test_the_oracle_sees_one_mean_over_both_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    here = draft_world()
    monkeypatch.setattr(Trainer, "turn_scales", None)
    assert relative_gap(-expected_gradient_with_drafts(here, DRAFTS), here.true_gradient(1.5, 2.0, 0.1, 0.3)) > 1e-2


@pytest.mark.pitfall(11)
def test_the_drafts_of_a_step_are_balanced_as_far_as_they_can_be() -> None:
    rng = np.random.default_rng
    correct = [True, True, True, True, True, False, False, True]
    for seed in range(20):
        chosen = self_verification.balanced(correct, range(8), 4, rng(seed))
        assert chosen == sorted(set(chosen)) and [correct[i] for i in chosen].count(False) == 2
    assert len({tuple(self_verification.balanced(correct, range(8), 4, rng(seed))) for seed in range(20)}) > 5
    odd = self_verification.balanced(correct, range(8), 3, rng(0))
    assert [correct[i] for i in odd].count(False) == 2, "one more is incorrect"
    rare = self_verification.balanced(correct, range(8), 6, rng(0))
    assert [correct[i] for i in rare].count(False) == 2 and len(rare) == 6, (
        "correct ones take the place of what is rare"
    )
    assert self_verification.balanced([False] * 4, range(4), 4, rng(0)) == [0, 1, 2, 3]


def test_a_text_that_attempts_share_is_a_draft_again_only_without_another() -> None:
    correct, texts = [True] * 4 + [False] * 4, "aaabcccd"
    for seed in range(20):
        chosen = self_verification.balanced(correct, texts, 4, np.random.default_rng(seed))
        assert {texts[i] for i in chosen} == {"a", "b", "c", "d"}
        again = self_verification.balanced(correct, texts, 6, np.random.default_rng(seed))
        assert sorted(texts[i] for i in again) == ["a", "a", "b", "c", "c", "d"]
