"""Test dynamic sampling: which groups have a signal, what a step samples and learns from, and that the gradient stays true."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import make_config
from selfcorrect.distributed.world import World
from selfcorrect.errors import ConfigError
from selfcorrect.method.base import StepOutcome
from selfcorrect.method.dynamic_sampling import informative_groups, kept_groups
from selfcorrect.method.objective import leave_one_out
from selfcorrect.method.score import advantages
from selfcorrect.paper.budget import Spent, spent
from selfcorrect.paper.recipe import Recipe
from selfcorrect.training.stage_trainer import completions
from selfcorrect.types import Episode

BEYOND = 1_000_000


def stage(**changes: Any) -> ReinforcementStage:
    return ReinforcementStage(**{"steps": 1, "reward_weights": (1, 1), "kl_coefs": ({}, {}), **changes})


# ---------------------------------------------------------------- groups with a signal


@pytest.mark.parametrize(
    ("rewards", "online", "changes", "expected"),
    [
        ([[0, 1], [0, 1]], "11 11", {}, False),
        ([[0, 1], [1, 1]], "11 11", {}, True),
        ([[0, 1], [1, 1]], "11 11", {"reward_weights": (0, 1)}, False),  # Stage I: turn 1 earns nothing
        ([[0, 1], [1, 1]], "11 11", {"reward_weights": (0, 1), "bonus": 2}, True),  # 3 and 1
        ([[0, 1], [0, 0]], "11 11", {"reward_weights": (1, 0)}, False),
        ([[0, 1], [1, 1]], "01 11", {}, False),  # the base sampled one of the two first attempts
        ([[0, 1], [1, 0]], "01 11", {}, True),
        ([[0, 1], [0, 1], [1, 0], [1, 0]], "11 01 11 01", {"revisions": 2, "reward_weights": (0, 1)}, False),
        ([[0, 1], [0, 0], [1, 0], [1, 0]], "11 01 11 01", {"revisions": 2, "reward_weights": (0, 1)}, True),
        ([[0, 1], [0, 1], [1, 0], [1, 0]], "11 01 11 01", {"revisions": 2, "reward_weights": (1, 1)}, True),
        ([[0, 1], [0, 1], [0, 0], [0, 0]], "11 01 11 01", {"revisions": 2, "discount": 0.5}, True),
    ],
)
def test_a_group_has_a_signal_where_leave_one_out_gives_an_advantage(
    rewards: list[list[int]], online: str, changes: dict[str, Any], expected: bool
) -> None:
    rewards_NK = torch.tensor(rewards, dtype=torch.float64)
    online_NK = torch.tensor([[flag == "1" for flag in word] for word in online.split()])
    of = stage(**changes)
    assert informative_groups(rewards_NK, online_NK, len(rewards), of) == [expected]
    outcome = StepOutcome(rewards_NK, torch.zeros_like(rewards_NK), online_NK, len(rewards), of.revisions)
    assert bool(advantages(outcome, of).any()) is expected


def test_a_fitted_baseline_that_differs_is_a_signal() -> None:
    """Problem 1's second attempts earn the same, but problem 2 gives the slope, so its verdicts on turn 1 give advantages."""
    rewards_NK = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 1], [1, 1], [1, 1]], dtype=torch.float64)
    online_NK = torch.ones_like(rewards_NK, dtype=torch.bool)
    for baseline, expected in (("rloo", [False, True, False]), ("fitted", [True, True, False])):
        of = stage(reward_weights=(0, 1), baseline=baseline)
        assert informative_groups(rewards_NK, online_NK, 2, of) == expected
        found_NK = advantages(StepOutcome(rewards_NK, torch.zeros_like(rewards_NK), online_NK, 2), of)
        left_out = ~torch.tensor(expected).repeat_interleave(2)
        assert not found_NK[left_out].any()
        assert bool(found_NK[:2].any()) is expected[0]


# ---------------------------------------------------------------- the gradient


def test_the_expected_gradient_is_a_plain_steps_times_a_positive_number() -> None:
    """Enumerate all outcomes of up to two batches of two groups of two episodes, on two problems of one turn.

    A plain group's expected gradient is that of J = (p_a + p_b) / 2, with dp/dtheta = p (1 - p).
    """
    solved = (0.9, 0.4)
    groups = [
        (problem, rewards, 0.5 * probability(solved[problem], rewards))
        for problem in (0, 1)
        for rewards in itertools.product((0.0, 1.0), repeat=2)
    ]
    single = stage(reward_weights=(1,), kl_coefs=({},))
    expected, kept_with_signal = torch.zeros(2, dtype=torch.float64), 0.0
    for outcome in itertools.product(groups, repeat=4):
        weight = outcome[0][2] * outcome[1][2] * outcome[2][2] * outcome[3][2]
        rewards_NK = torch.tensor([[r] for _, rewards, _ in outcome for r in rewards], dtype=torch.float64)
        online_NK = torch.ones_like(rewards_NK, dtype=torch.bool)
        informative = informative_groups(rewards_NK, online_NK, 2, single)
        sampled = 2 if all(informative[:2]) else 4
        kept = kept_groups(informative[:sampled], 2)
        kept_with_signal += weight * sum(informative[place] for place in kept)
        advantages_N = leave_one_out(rewards_NK, 2, online_NK)[:, 0]
        for place in kept:
            problem, rewards, _ = outcome[place]
            for i, reward in enumerate(rewards):
                expected[problem] += weight * float(advantages_N[2 * place + i]) * (reward - solved[problem]) / 4
    gradient = torch.tensor([0.5 * p * (1 - p) for p in solved], dtype=torch.float64)
    plain_with_signal = 2 * sum(0.5 * 2 * p * (1 - p) for p in solved)
    scale = kept_with_signal / plain_with_signal
    assert scale > 1.5
    torch.testing.assert_close(expected, scale * gradient, rtol=1e-12, atol=0)


def probability(solved: float, rewards: Sequence[float]) -> float:
    first, second = (solved if reward else 1 - solved for reward in rewards)
    return first * second


# ---------------------------------------------------------------- a step


def always_on(*problems: str) -> FunctionVerifier:
    """Return a verifier for which some problems are always solved, and others by chance."""
    return FunctionVerifier(lambda problem, text: problem.id in problems or len(text) % 2 == 1)


def trainer(most: int, **groups: Any) -> Any:
    """Return a trainer whose steps hold 4 groups of 2 episodes; 6 of the 10 problems never have a signal."""
    config = settings(stage={"max_gen_batches": most}, rollout={"batch_size": 8, "group_size": 2}, **groups)
    return make_trainer(config, verifier=always_on("p0", "p1", "p2", "p3", "p4", "p5"))


def keys(episodes: Sequence[Episode]) -> list[tuple[Any, ...]]:
    return [(e.problem.id, e.sample, *(turn.ids for turn in e.turns)) for e in episodes]


def with_signal(episodes: Sequence[Episode]) -> list[bool]:
    return [episodes[i].rewards != episodes[i + 1].rewards for i in range(0, len(episodes), 2)]


@pytest.mark.parametrize("most", [1, 2, 5, 30])
def test_a_step_samples_batches_until_enough_groups_have_a_signal(most: int) -> None:
    made = trainer(most)
    batches = [made.sampler.sample(3 + again * BEYOND) for again in range(most)]
    found = made.sampler.sample_step(3)
    informative = [with_signal(batch) for batch in batches]
    taken = next((n for n in range(1, most) if sum(map(sum, informative[:n])) >= 4), most)
    assert keys(found.sampled) == keys([e for batch in batches[:taken] for e in batch])
    assert keys(found.first) == keys(batches[0])
    assert len(found.learnt) == 8
    told = with_signal(found.learnt)
    assert (
        sum(told) == min(4, sum(map(sum, informative[:taken]))) if most > 1 else keys(found.learnt) == keys(batches[0])
    )
    if most == 30:
        assert 1 < taken < 30 and all(told)
    if most == 2:
        assert not all(told)
    if most == 5:
        assert sum(told) > sum(informative[0])


def test_a_step_counts_everything_and_measures_the_batch_that_nothing_selected() -> None:
    plain, dynamic = trainer(1), trainer(30)
    sample = trainer(30).sampler.sample_step(0)
    one, other = plain.step().metrics, dynamic.step()
    assert one["completions"] == 16 and other.metrics["completions"] == completions(sample.sampled) > 32
    assert other.metrics["completions"] % 16 == 0
    assert other.metrics["sampled_tokens"] == sum(len(turn.ids) for e in sample.sampled for turn in e.turns)
    for name in ("reward", "r1", "r2", "delta", "informative_groups_t1", "informative_groups_t2"):
        assert other.metrics[name] == one[name], name
    assert plain.state.rewards == dynamic.state.rewards, "which checkpoint is kept does not depend on the selection"
    assert keys(other.episodes) == keys(sample.learnt)
    assert other.metrics["gradient_norm"] != one["gradient_norm"]


def test_a_resumed_step_samples_the_same() -> None:
    whole, resumed = trainer(5), trainer(5)
    whole.step()
    resumed.load_state_dict(whole.state_dict())
    resumed.policy.model.load_state_dict(whole.policy.model.state_dict())
    assert keys(resumed.sampler.sample_step(1).learnt) == keys(whole.sampler.sample_step(1).learnt)


class Together(World):
    """Two processes as threads, which exchange lists."""

    def __init__(self, rank: int, meeting: threading.Barrier, left: dict[int, Any]) -> None:
        super().__init__()
        self.place, self.meeting, self.left = rank, meeting, left

    def share(self, count: int) -> range:
        return range(count // 2) if self.place == 0 else range(count // 2, count)

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    def chain(self, values: Sequence[Any]) -> list[Any]:
        self.left[self.place] = values
        self.meeting.wait(60)
        found = [*self.left[0], *self.left[1]]
        self.meeting.wait(60)
        return found


def test_processes_that_share_a_step_sample_and_keep_the_same() -> None:
    alone = trainer(5).sampler.sample_step(0)
    meeting, left = threading.Barrier(2), dict[int, Any]()
    made = [trainer(5), trainer(5)]
    for rank, one in enumerate(made):
        one.sampler.world = Together(rank, meeting, left)
    with ThreadPoolExecutor(2) as pool:
        shares = [*pool.map(lambda one: one.sampler.sample_step(0), made)]
    for share in shares:
        assert keys(share.learnt) == keys(alone.learnt) and keys(share.sampled) == keys(alone.sampled)


# ---------------------------------------------------------------- settings


def test_without_a_baseline_nothing_may_be_left_out() -> None:
    with pytest.raises(ConfigError, match=r"max_gen_batches = 2 with baseline = 'none'"):
        settings(stage={"max_gen_batches": 2, "baseline": "none"})
    with pytest.raises(ConfigError, match="max_gen_batches"):
        settings(stage={"max_gen_batches": 0})


def test_a_budget_counts_the_most_that_may_be_sampled() -> None:
    two = {"reward_weights": [1, 1], "kl_coefs": [{"base": 0.1}, {"base": 0.1}], "steps": 3}
    table = {"rollout": {"batch_size": 8, "group_size": 2}}
    assert spent(make_config({**table, "stages": {"s": {**two, "max_gen_batches": 4}}})) == Spent(3 * 4 * 16, 3)
    one = {**two, "reward_weights": [0, 1], "max_gen_batches": 2}
    with pytest.raises(ConfigError, match=r"stages.one.max_gen_batches is above 1"):
        Recipe.of(make_config({**table, "stages": {"one": one, "two": {**two, "bonus": 3}}}))
