"""Test one step of the trainer: what it learns from, divides by, rejects and reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.engines import ScriptedEngine
from support.episodes import episode, problem, turn
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.tabular import GLUE, World
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier
from torch import Tensor

from selfcorrect.errors import TrainingError
from selfcorrect.method.kl_controller import adapted
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rng import generator
from selfcorrect.rollout.rollout import shuffled_verdicts
from selfcorrect.training.batch import turn_sums
from selfcorrect.training.episode_sampler import StepSample
from selfcorrect.training.scoring import score
from selfcorrect.training.stage_trainer import completions, sampled_tokens
from selfcorrect.training.step_control import StepUpdates
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode, Outcome, Problem, StopReason, Turn, Verdict

END = 2
NO_ANCHOR = [{"base": 0.0}, {"base": 0.0}]
LOSS_FULL = {"placement": "loss", "estimator": "full"}


def accumulated(trainer: Trainer, episodes: Sequence[Episode]) -> torch.Tensor:
    batch = trainer.pack_rollout(episodes)
    trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
    return gradient(trainer.policy)


# ---------------------------------------------------------------- Stage I pins the first turn


def first_turn_kl(world: World) -> float:
    total = 0.0
    for played in world.played:
        gap = world.policy.turn_logprob(played, 0) - world.reference.turn_logprob(played, 0)
        total += world.probability(played) * gap.item()
    return total


@pytest.mark.pitfall(2)
@pytest.mark.parametrize("kl", [{"placement": "reward", "estimator": "k1"}, LOSS_FULL])
def test_stage_one_drives_the_first_turn_back_to_the_reference(kl: dict[str, str]) -> None:
    """r = 0, beta2 > 0, beta1 = 0: the gradient lies on turn 1's logits alone, and following it lowers their KL."""
    world = World.make(1, 1)
    stage = {"reward_weights": [0, 1], "kl_coefs": [{"base": 0.5}, {"base": 0.0}], "steps": 100}
    rollout = {"batch_size": 300, "group_size": 300}
    config = settings(stage=stage, kl=kl, rollout=rollout, optimizer={"learning_rate": 0.05})
    trainer = make_trainer(config, policy=world.policy, base=world.reference)
    drawn = torch.Generator().manual_seed(0)

    def sampled() -> list[Episode]:
        weights = torch.tensor([world.probability(played) for played in world.played])
        places = torch.multinomial(weights, 300, replacement=True, generator=drawn).tolist()
        return [silenced(world.episode(world.played[i], g)) for g, i in enumerate(places)]

    accumulated(trainer, sampled())
    first_contexts = [row for ids, row in world.policy.contexts.items() if GLUE not in ids]
    grad = world.policy.table.grad
    assert grad[first_contexts].norm() > 0.05
    assert grad.norm() == pytest.approx(float(grad[first_contexts].norm()), rel=1e-12)
    before = first_turn_kl(world)
    for _ in range(60):
        accumulated(trainer, sampled())
        trainer.update()
    assert before > 0.2
    assert first_turn_kl(world) < 0.05 * before


def silenced(played: Episode) -> Episode:
    """Return the same episode with every verdict incorrect: r = 0."""
    turns = [turn(t.observation_ids, t.ids, 0, logprobs=t.logprobs, stop=t.stop) for t in played.turns]
    return episode(*turns, sample=played.sample)


# ---------------------------------------------------------------- the denominator


@pytest.mark.pitfall(18)
@pytest.mark.parametrize("kl", [{"placement": "reward", "estimator": "k1"}, LOSS_FULL])
@pytest.mark.parametrize("budget", [1, 40, 60])
def test_micro_batches_change_nothing(kl: dict[str, str], budget: int) -> None:
    whole = make_trainer(settings(kl=kl, optimizer={"micro_batch_tokens": 10**6}))
    episodes = whole.sampler.sample(whole.state.step)
    split = make_trainer(settings(kl=kl, optimizer={"micro_batch_tokens": budget}))
    assert len(split.pack_rollout(episodes).batches) > 2
    assert len(whole.pack_rollout(episodes).batches) == 1
    expected = accumulated(whole, episodes)
    assert expected.norm() > 1e-3
    assert relative_gap(accumulated(split, episodes), expected) < 1e-10


@pytest.mark.pitfall(18)
def test_micro_batches_change_no_metric() -> None:
    records = [make_trainer(settings(optimizer={"micro_batch_tokens": budget})).step().metrics for budget in (1, 10**6)]
    assert records[0].pop("stage") == records[1].pop("stage") == "stage"
    assert records[0] == pytest.approx(records[1], rel=1e-9, abs=1e-12)


def test_groups_without_variance_and_truncated_turns_stay_in_the_denominator() -> None:
    """Four identical episodes next to an informative group halve its gradient."""
    trainer = make_trainer(settings(stage={"kl_coefs": NO_ANCHOR}))
    observation_ids = [3, 20, 2, 4]
    cut = [turn(observation_ids, [9, 8, 8, 8], g % 3 == 0, stop=StopReason.LENGTH) for g in range(4)]
    lively = [episode(turn([3, 7, 2, 4], [6 + g, END], g % 2), cut[g], sample=g) for g in range(4)]
    dull = [
        episode(turn([3, 8, 2, 4], [9, END], 1), turn(observation_ids, [9, END], 1), name="q", sample=g)
        for g in range(4)
    ]
    alone, beside = accumulated(trainer, lively), accumulated(trainer, [*lively, *dull])
    assert alone.norm() > 1e-2
    assert relative_gap(2 * beside, alone) < 1e-10


def test_only_the_policys_own_turns_are_trained() -> None:
    """An offline first attempt is context: it gives no gradient, no baseline and no KL to turn 1."""
    trainer = make_trainer(settings(stage={"kl_coefs": [{"base": 1.0}, {"base": 0.0}]}))
    observation_ids = [3, 20, 2, 4]

    def group(first_ids: list[int], right: float) -> list[Episode]:
        firsts = [turn([3, 7, 2, 4], [6 + g, END], g % 2) for g in range(4)]
        firsts[0] = turn([3, 7, 2, 4], first_ids, right, online=False)
        return [episode(first, turn(observation_ids, [9, END], 1), sample=g) for g, first in enumerate(firsts)]

    batch = trainer.pack_rollout(group([9, END], 1))
    assert trainer.advantages(batch)[0, 0] == 0
    assert batch.batches[0].turn_S.tolist().count(0) == 6
    log_ratios = trainer.log_ratios(batch)
    assert log_ratios[0, 0, 0] == 0
    assert (log_ratios[0, 1:, 0] != 0).all()
    other = trainer.pack_rollout(group([9, 9, 9, END], 0))
    torch.testing.assert_close(trainer.advantages(other)[:, 0], trainer.advantages(batch)[:, 0], atol=1e-12, rtol=0)


# ---------------------------------------------------------------- credit


def test_kl_in_the_reward_is_that_of_each_turn_and_reference_by_hand() -> None:
    """Two references have a coefficient each for each turn: the table of Stage I(b)."""
    config = settings(stage={"kl_coefs": [{"base": 0.3, "old": 0.2}, {"old": 0.5}]}, earlier=["old"])
    policy, references = tiny_model(0), {"base": tiny_model(1), "old": tiny_model(2)}
    trainer = make_trainer(config, policy=policy, base=references["base"], earlier={"old": references["old"]})
    assert trainer.reference_names == ["base", "old"]
    assert trainer.coefficients().tolist() == [[0.3, 0.0], [0.2, 0.5]]
    episodes = trainer.sampler.sample(trainer.state.step)
    batch = trainer.pack_rollout(episodes)
    (rows,) = batch.batches
    ours = turn_sums(score(policy, rows, 1.0).logprobs_S, rows, 8, 2)
    base, old = (turn_sums(score(references[name], rows, 1.0).logprobs_S, rows, 8, 2) for name in ("base", "old"))
    penalty = torch.stack([0.3 * (ours - base)[:, 0] + 0.2 * (ours - old)[:, 0], 0.5 * (ours - old)[:, 1]], 1)
    value = (batch.rewards_NK - penalty).detach().view(2, 4, 2)
    expected = ((value - value.mean(1, keepdim=True)) * 4 / 3).view(8, 2)
    torch.testing.assert_close(trainer.advantages(batch), expected, atol=1e-10, rtol=0)


def test_without_a_baseline_the_return_is_the_advantage() -> None:
    trainer = make_trainer(settings(stage={"baseline": "none", "kl_coefs": NO_ANCHOR}))
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    assert torch.equal(trainer.advantages(batch), batch.rewards_NK)


def test_with_importance_ratios_the_first_gradient_is_the_same_and_the_second_may_clip() -> None:
    plain = make_trainer(settings())
    episodes = plain.sampler.sample(plain.state.step)
    ratio = make_trainer(settings(optimizer={"num_iterations": 2}))
    assert relative_gap(accumulated(ratio, episodes), accumulated(plain, episodes)) < 1e-10
    moved = make_trainer(settings(optimizer={"num_iterations": 3, "learning_rate": 0.05, "clip_epsilon": 0.05}))
    assert moved.step().metrics["clipped_share"] > 0.1
    assert plain.step().metrics["clipped_share"] == 0


def test_a_stage_without_anchors_is_one_with_coefficients_of_zero() -> None:
    free, zero = (make_trainer(settings(stage={"kl_coefs": anchors})) for anchors in ([{}, {}], NO_ANCHOR))
    assert free.references == []
    episodes = free.sampler.sample(free.state.step)
    assert relative_gap(accumulated(free, episodes), accumulated(zero, episodes)) < 1e-12
    assert free.step().metrics["r1"] == zero.step().metrics["r1"]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_step_with_offline_first_attempts_runs_as_configured(share: float) -> None:
    trainer = make_trainer(settings(stage={"offline_share": share}, kl=LOSS_FULL, rollout={"max_num_seqs": 3}))
    assert trainer.sampler.base_engine is not None
    assert (trainer.sampler.base_engine.lm, trainer.sampler.base_engine.max_num_seqs) == (trainer.references[0], 3)
    found = trainer.step()
    assert sum(not e.turns[0].online for e in found.episodes) == 8 * share
    assert found.metrics["sampled_tokens"] == sum(len(t.ids) for e in found.episodes for t in e.turns), "the base's too"
    first = found.metrics["gradient_norm_t1"]
    assert first > 0 if share < 1 else not first
    assert found.metrics["gradient_norm_t2"] > 0


@pytest.mark.parametrize("kl", [{"placement": "reward", "estimator": "k1"}, LOSS_FULL])
def test_engine_policy_and_references_share_one_temperature(kl: dict[str, str]) -> None:
    """A policy that is its own reference has no KL to it and no gap to the engine, at any temperature."""
    trainer = make_trainer(settings(rollout={"temperature": 0.6}, kl=kl), policy=tiny_model(0), base=tiny_model(0))
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    assert trainer.log_ratios(batch).abs().max() < 1e-10
    only_kl = torch.zeros_like(batch.rewards_NK)
    totals = trainer.accumulate_gradient(batch, only_kl, first=True)
    assert totals.gap < 1e-10
    assert float(gradient(trainer.policy).norm()) < 1e-10


# ---------------------------------------------------------------- the update


def test_a_gradient_that_is_not_finite_is_refused_and_the_weights_stay() -> None:
    trainer = make_trainer(settings())
    trainer.step()
    before, moments = trainer.policy.digest(), state_of(trainer)
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    advantages = trainer.advantages(batch)
    advantages[3, 1] = math.inf
    trainer.accumulate_gradient(batch, advantages, first=True)
    with pytest.raises(TrainingError, match=r"step 2: the gradient's norm is (nan|inf); nothing was updated"):
        trainer.update()
    assert trainer.policy.digest() == before
    assert all(torch.equal(a, b) for a, b in zip(state_of(trainer), moments, strict=True))


def state_of(trainer: Trainer) -> list[torch.Tensor]:
    return [value.clone() for state in trainer.learner.optimizer.state.values() for value in state.values()]


def test_gradients_are_clipped_to_the_norm_and_reported_before_it() -> None:
    trainer = make_trainer(settings(optimizer={"max_grad_norm": 1e-3}))
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
    norm = float(gradient(trainer.policy).norm())
    assert norm > 1e-2
    assert trainer.update() == pytest.approx(norm, rel=1e-12)
    assert float(gradient(trainer.policy).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("budget", [1, 10**6])
def test_gradients_of_the_turns_add_up_to_the_whole(budget: int) -> None:
    config = settings(optimizer={"micro_batch_tokens": budget}, kl=LOSS_FULL)
    together, apart = make_trainer(config), make_trainer(config)
    batch = apart.pack_rollout(apart.sampler.sample(apart.state.step))
    advantages = apart.advantages(batch)
    totals = apart.accumulate_gradient(batch, advantages, first=True)
    together.accumulate_gradient(batch, advantages, first=False)
    assert relative_gap(gradient(apart.policy), gradient(together.policy)) < 1e-12
    metrics, table = totals.metrics(["base"]), together.coefficients()
    for k in (0, 1):
        this_turn = torch.arange(2) == k
        only = advantages * this_turn
        together.coefficients = lambda chosen=this_turn: table * chosen
        together.accumulate_gradient(batch, only, first=False)
        norm = float(gradient(together.policy).norm())
        assert norm > 1e-2
        assert metrics[f"gradient_norm_t{k + 1}"] == pytest.approx(norm, rel=1e-10)


def test_a_turns_norm_is_told_before_clipping() -> None:
    stage = {"reward_weights": [1], "kl_coefs": [{}]}
    found = make_trainer(settings(stage=stage, optimizer={"max_grad_norm": 1e-3})).step().metrics
    assert found["gradient_norm"] > 1e-2
    assert found["gradient_norm_t1"] == pytest.approx(found["gradient_norm"], rel=1e-10)


def test_measuring_the_turns_changes_nothing_but_rounding() -> None:
    measured, plain = (make_trainer(settings(log={"turn_gradients_every": every})).step().metrics for every in (1, 0))
    assert plain["gradient_norm_t1"] is None
    assert measured["gradient_norm_t1"] > 0
    assert measured["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [0.5, 1, 1, 1, 1, 1]),
        ("linear", 2, [0.5, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", 2, [0.5, 1, 1, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 0.6, 0.2 + 0.8 * (2 - math.sqrt(2)) / 4]),
    ],
)
def test_learning_rates_by_hand(schedule: str, warmup: int, expected: list[float]) -> None:
    optimizer = {"schedule": schedule, "warmup_steps": warmup, "min_lr_ratio": 0.2, "learning_rate": 1.0}
    trainer = make_trainer(settings(stage={"steps": 6}, optimizer=optimizer))
    found = []
    for step in range(6):
        trainer.state.step = step
        found.append(trainer.learning_rate())
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_stages_own_learning_rate_is_the_one_used() -> None:
    trainer = make_trainer(settings(stage={"learning_rate": 0.5}))
    assert trainer.step().metrics["learning_rate"] == 0.5
    assert trainer.learner.optimizer.param_groups[0]["lr"] == 0.5


# ---------------------------------------------------------------- rollout


def test_every_epoch_holds_each_problem_once_in_an_order_of_its_own() -> None:
    trainer = make_trainer(settings())  # 2 problems a step of 10
    orders = []
    for epoch in range(3):
        seen = []
        for step in range(5):
            trainer.state.step = 5 * epoch + step
            seen += [p.id for p in trainer.sampler.step_problems(trainer.state.step)]
        assert sorted(seen) == sorted(p.id for p in trainer.sampler.problems)
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


def test_steps_across_the_end_of_an_epoch_lose_and_repeat_nothing() -> None:
    trainer = make_trainer(settings(rollout={"batch_size": 12}))  # 3 problems a step of 10
    seen = []
    for step in range(10):
        trainer.state.step = step
        seen += [p.id for p in trainer.sampler.step_problems(trainer.state.step)]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == sorted(p.id for p in trainer.sampler.problems)


def test_a_problem_that_comes_twice_in_a_step_is_sampled_twice() -> None:
    """The end of one pass over the data and the start of the next may share a problem."""
    trainer = make_trainer(settings(rollout={"batch_size": 8}))
    problem = trainer.sampler.problems[0]
    trainer.sampler.step_problems = lambda step: [problem, problem]  # type: ignore[method-assign]
    episodes = trainer.sampler.sample(trainer.state.step)
    assert [e.sample for e in episodes] == [*range(8)]
    assert len({e.turns[0].ids for e in episodes[:4]} & {e.turns[0].ids for e in episodes[4:]}) < 4
    once = make_trainer(settings(rollout={"batch_size": 8})).sampler.sample(0)
    assert [e.sample for e in once] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(("share", "offline"), [(0.0, 0), (0.5, 2), (0.25, 1)])
def test_the_offline_share_of_each_group_comes_from_the_base(share: float, offline: int) -> None:
    trainer = make_trainer(settings(stage={"offline_share": share}))
    if share:
        trainer.sampler.base_engine = ScriptedEngine(lambda request: [7, 7, 2], 2)
    for start in (0, 4):
        group = trainer.sampler.sample(trainer.state.step)[start : start + 4]
        assert [e.turns[0].online for e in group] == [False] * offline + [True] * (4 - offline)
        assert all((e.turns[0].ids == (7, 7, 2)) for e in group[:offline])


@pytest.mark.pitfall(16)
def test_the_revisions_of_a_first_attempt_share_it_and_differ() -> None:
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    alone = make_trainer(settings(rollout={"group_size": 2, "batch_size": 4}))
    trainer = make_trainer(settings(stage={"revisions": 2}), verifier=verifier)
    episodes = trainer.sampler.sample(0)
    assert [e.sample for e in episodes] == [0, 1, 2, 3] * 2
    for first, second in zip(episodes[::2], episodes[1::2], strict=True):
        assert replace(first.turns[0], online=False, copied=True) == second.turns[0]
        assert first.turns[0].online and first.turns[1].online and second.turns[1].online
        assert first.turns[1].observation_ids == second.turns[1].observation_ids
    assert any(
        first.turns[1].ids != second.turns[1].ids for first, second in zip(episodes[::2], episodes[1::2], strict=True)
    )
    # The first sample of a problem is drawn as without trees; a shared attempt is sampled and verified once.
    assert [e.ids for e in episodes[::4]] == [e.ids for e in alone.sampler.sample(0)[::2]]
    assert completions(episodes) == 4 + 8 and sampled_tokens(episodes) < sum(
        len(t.ids) for e in episodes for t in e.turns
    )
    assert len(verifier.seen) == 4 + 8


def test_a_step_of_trees_reports_each_turn_over_its_own_attempts() -> None:
    trainer = make_trainer(settings(stage={"revisions": 2}))
    record = trainer.step()
    again = make_trainer(settings(stage={"revisions": 2}))
    batch = again.pack_rollout(record.episodes)
    totals = again.accumulate_gradient(batch, again.advantages(batch), first=False)
    (rows,) = batch.batches
    difference_S = rows.logprobs_S - batch.references[0][0].logprobs_S.double()
    sums = turn_sums(difference_S, rows, 8, 2)
    assert (sums[1::2, 0] == 0).all() and (sums[::2, 0] != 0).all()
    assert record.metrics["kl_base_t1"] == pytest.approx(float(sums[:, 0].sum()) / 4, abs=1e-9)
    assert record.metrics["kl_base_t2"] == pytest.approx(float(sums[:, 1].sum()) / 8, abs=1e-9)
    assert totals.attempts == [4, 8]
    r2 = [e.rewards[1] for e in record.episodes]
    informative = sum(a != b for a, b in zip(r2[::2], r2[1::2], strict=True)) / 4
    assert record.metrics["informative_groups_t2"] == informative and record.metrics["completions"] == 12
    firsts, seconds = ([len(e.turns[k].ids) for e in record.episodes] for k in (0, 1))
    assert record.metrics["sampled_tokens"] == sum(firsts[::2]) + sum(seconds)


@pytest.mark.parametrize("fast", [True, False])
def test_a_first_attempt_is_read_once_for_its_revisions(fast: bool) -> None:
    """All but the first revision of a draft have it as context; what is read once changes no gradient."""

    def learnt(share: bool) -> tuple[Tensor, int, list[Episode]]:
        tiny = tiny_model(0)
        policy = tiny if fast else LanguageModel(tiny.model, tiny.tokenizer, cpu_kernels=False)
        trees = {"group_size": 8, "batch_size": 16}
        config = settings(stage={"revisions": 4}, rollout=trees, optimizer={"share_prompts": share})
        trainer = make_trainer(config, policy=policy)
        episodes = trainer.sampler.sample(0)
        batch = trainer.pack_rollout(episodes)
        trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
        return gradient(policy), sum(len(rows.packed.ids_T) for rows in batch.batches), episodes

    once, tokens, episodes = learnt(True)
    whole, all_tokens, _ = learnt(False)
    assert relative_gap(once, whole) < 1e-10
    assert all_tokens == sum(len(e.ids) for e in episodes)
    begin = {tuple(e.turns[0].observation_ids) for e in episodes[::4]}
    drafts = {(*e.turns[0].observation_ids, *e.turns[0].ids, *e.turns[1].observation_ids) for e in episodes[1::4]}
    rests = sum(len((*e.turns[0].ids, *e.turns[1].observation_ids)) for e in episodes[::4])
    assert tokens == sum(map(len, begin | drafts)) + rests + sum(len(e.turns[1].ids) for e in episodes)


def test_steps_draw_other_numbers() -> None:
    trainer = make_trainer(settings(), problems=[problem("only")] * 2)
    first = [e.ids for e in trainer.sampler.sample(trainer.state.step)]
    assert [e.ids for e in trainer.sampler.sample(trainer.state.step)] == first
    trainer.state.step = 1
    assert [e.ids for e in trainer.sampler.sample(trainer.state.step)] != first


# ---------------------------------------------------------------- what a step reports


@pytest.mark.pitfall(11)
def test_correctness_and_training_reward_are_separate_figures() -> None:
    """Stage I pays turn 1 nothing and Stage II pays a bonus: accuracy and training reward must tell them apart."""
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    for weights, bonus in (([0, 1], 0.0), ([1, 1], 10.0)):
        trainer = make_trainer(settings(stage={"reward_weights": weights, "bonus": bonus}), verifier=verifier)
        found = trainer.step()
        right = [[t.verdict.outcome is Outcome.CORRECT for t in e.turns] for e in found.episodes]
        r1, r2 = (sum(row[k] for row in right) / 8 for k in (0, 1))
        assert 0 < r1 < 1
        assert (found.metrics["r1"], found.metrics["r2"]) == (r1, r2)
        assert found.metrics["reward"] == pytest.approx(weights[0] * r1 + weights[1] * r2, abs=1e-12)
        assert trainer.state.rewards == [found.metrics["reward"]]


@pytest.mark.pitfall(11)
@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.CORRECT])
def test_only_a_right_answer_earns_anything(outcome: Outcome) -> None:
    assert Verdict(outcome, extracted="a well-formed answer").reward == 0
    assert Verdict(Outcome.CORRECT).reward == 1


def test_flips_add_up_to_delta_and_counts_are_by_hand() -> None:
    trainer = make_trainer(settings(rollout={"batch_size": 4, "group_size": 4}))
    pairs = [(1, 1), (0, 1), (0, 1), (1, 0)]
    episodes = [
        episode(
            turn([3], [5 + r1, END], r1),
            turn([4], [5 + r2, 5, 5, 5], r2, stop=StopReason.LENGTH if r2 else StopReason.END),
            sample=g,
        )
        for g, (r1, r2) in enumerate(pairs)
    ]
    batch = trainer.pack_rollout(episodes)
    totals = trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
    found = trainer.record(StepSample(episodes, episodes, episodes), StepUpdates([totals], [1.0])).metrics
    expected = {
        "r1": 0.5, "r2": 0.75, "delta": 0.25, "i_to_c": 0.5, "c_to_i": 0.25, "answer_change_rate": 1.0,
        "truncated_t1": 0.0, "truncated_t2": 0.75, "tokens_t1": 2.0, "tokens_t2": 4.0,
        "informative_groups_t1": 1.0, "informative_groups_t2": 1.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_delta_is_gained_less_lost_and_figures_are_those_of_the_models() -> None:
    trainer = make_trainer(settings())
    found = trainer.step().metrics
    assert found["delta"] == pytest.approx(found["i_to_c"] - found["c_to_i"], abs=1e-12)
    assert found["delta"] == pytest.approx(found["r2"] - found["r1"], abs=1e-12)
    assert found["max_logprob_diff"] < 1e-9


def test_kl_and_entropy_are_reported_per_turn_and_per_token() -> None:
    trainer = make_trainer(settings())
    batch = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step))
    totals = trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
    found = totals.metrics(["base"])
    (rows,), ((reference,),) = batch.batches, batch.references
    scores = score(trainer.policy, rows, 1.0)
    for k in (0, 1):
        of_turn = rows.turn_S == k
        ratio = (scores.logprobs_S - reference.logprobs_S)[of_turn]
        assert found[f"kl_base_t{k + 1}"] == pytest.approx(ratio.sum().item() / 8, abs=1e-10)
        assert found[f"kl_base_token_t{k + 1}"] == pytest.approx(ratio.mean().item(), abs=1e-10)
        assert found[f"entropy_t{k + 1}"] == pytest.approx(float(scores.entropy_S[of_turn].mean()), abs=1e-10)


@pytest.mark.parametrize("apart", [False, True])
def test_kl_is_reported_per_attempt_of_the_policy(apart: bool) -> None:
    """Half of each group's first attempts are the base's; `offline_apart` leaves second attempts to these episodes alone."""
    stage = {"offline_share": 0.5, "offline_apart": apart, "adaptive": {"turn": 1, "target": 0.1}}
    trainer = make_trainer(settings(stage=stage))
    batch = trainer.pack_rollout(trainer.sampler.sample(0))
    totals = trainer.accumulate_gradient(batch, trainer.advantages(batch), first=True)
    (rows,), ((reference,),) = batch.batches, batch.references
    ratio_S = rows.logprobs_S - reference.logprobs_S.double()
    sampled = (4, 4 if apart else 8)
    for k, attempts in enumerate(sampled):
        total = float(ratio_S[rows.turn_S == k].sum())
        assert abs(total) > 0.1
        assert totals.metrics(["base"])[f"kl_base_t{k + 1}"] == pytest.approx(total / attempts, abs=1e-9)
    record = trainer.step()
    first_kl = float(ratio_S[rows.turn_S == 0].sum()) / 4
    assert record.metrics["kl_base_t1"] == pytest.approx(first_kl, abs=1e-9)
    assert trainer.stage.adaptive is not None
    expected = adapted(0.1, 0.1 * first_kl, float(totals.policy_size_K[-1]) / 8, trainer.stage.adaptive)
    assert abs(math.log(expected / 0.1)) < 0.099, (
        "not at the bound of a step, which would hide what it is computed from"
    )
    assert trainer.state.adaptive == pytest.approx(expected, abs=1e-9)


def test_the_reward_that_decides_the_kept_model_is_a_mean_of_the_last_steps() -> None:
    trainer = make_trainer(settings(log={"keep_window": 2}))
    rewards = [trainer.step().metrics["reward"] for _ in range(3)]
    assert trainer.state.rewards == rewards[1:]
    assert trainer.selection_metric() == pytest.approx(sum(rewards[1:]) / 2, abs=1e-15)


def test_the_adaptive_coefficient_is_the_one_in_use() -> None:
    adaptive = {"target": 1.0, "rate": 0.5, "minimum": 0.01, "maximum": 10.0}
    config = settings(stage={"kl_coefs": [{"base": 0.4}, {"base": 0.1}], "adaptive": adaptive})
    trainer = make_trainer(config)
    assert trainer.coefficients().tolist() == [[0.4, 0.1]]
    first, second = trainer.step().metrics, trainer.step().metrics
    assert first["adaptive_coefficient"] == 0.4
    assert second["adaptive_coefficient"] != 0.4
    trainer.state.adaptive = 0.7
    assert trainer.coefficients().tolist() == [[0.7, 0.1]]


# ---------------------------------------------------------------- the whole step


def test_steps_of_one_seed_are_the_same_to_the_bit_and_of_another_are_not() -> None:
    def after(seed: int) -> tuple[str, list[Any]]:
        trainer = make_trainer(settings(seed=seed))
        records = [trainer.step().metrics for _ in range(2)]
        return trainer.policy.digest(), [dict(metrics) for metrics in records]

    assert after(0) == after(0)
    assert after(0)[0] != after(1)[0]


def test_a_step_leaves_the_references_alone_and_moves_the_policy() -> None:
    trainer = make_trainer(settings())
    base, policy = trainer.references[0].digest(), trainer.policy.digest()
    trainer.step()
    assert trainer.references[0].digest() == base
    assert trainer.policy.digest() != policy


def test_training_raises_the_reward_it_is_paid_for() -> None:
    """Reward what the model can reach in a few steps: its first sampled token is an even digit."""
    verifier = FunctionVerifier(lambda problem, text: text[:1] in set("02468") and text != "")
    config = settings(
        stage={"kl_coefs": NO_ANCHOR, "steps": 25},
        rollout={"batch_size": 64, "group_size": 8, "max_tokens": 2},
        optimizer={"learning_rate": 5e-3, "max_grad_norm": 1.0},
    )
    trainer = make_trainer(config, policy=tiny_model(0, dtype=torch.float32), base=tiny_model(1), verifier=verifier)
    rewards = [trainer.step().metrics["reward"] for _ in range(25)]
    assert rewards[0] < 0.8
    assert sum(rewards[-3:]) / 3 > 1.7


def test_shuffled_verdicts_keep_each_groups_rewards_and_lose_whose_they_are() -> None:
    right, wrong = Verdict(Outcome.CORRECT), Verdict(Outcome.INCORRECT)

    def turn(verdict: Verdict) -> Turn:
        return Turn((1,), (2,), (0.0,), "", StopReason.END, verdict)

    # Of each problem's 16 samples, the first are correct at turn 1 and one more at turn 2: 0 of "a", 2 of "b", 4 of "c".
    episodes = [
        Episode(
            Problem(name, name, name),
            i,
            (turn(right if i < known else wrong), turn(right if i < known + 1 else wrong)),
        )
        for known, name in ((0, "a"), (2, "b"), (4, "c"))
        for i in range(16)
    ]
    shuffled = shuffled_verdicts(episodes, 16, generator(0))
    assert [(e.problem, e.sample) for e in shuffled] == [(e.problem, e.sample) for e in episodes]
    for g in range(3):
        before, after = (Counter(e.rewards for e in some[16 * g : 16 * g + 16]) for some in (episodes, shuffled))
        assert before == after
    assert [e.rewards for e in shuffled[16:]] != [e.rewards for e in episodes[16:]]
    dealt = Counter(
        e.sample
        for s in range(200)
        for e in shuffled_verdicts(episodes, 16, generator(s))[32:]
        if e.turns[0].verdict.correct
    )
    assert len(dealt) == 16
    assert all(25 <= times <= 80 for times in dealt.values())  # 200 * 4 / 16 = 50, sd 6
