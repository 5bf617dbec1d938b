"""Test by enumeration what the distillation of second attempts into first ones is the gradient of, and what it is not.

Every possible group goes through the trainer, weighted by its probability. With p = pi(. | x), q the distribution of second
attempts, which the draft makes another, and a = E_p[r], the truth is a sum over all episodes of both attempts' objective and
of the added term, E_q[(r - a) log p] with q and a held fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.gradients import gradient, relative_gap
from support.tabular import GLUE, PROMPT, World, log_ratio, rewards, true_gradient
from support.trainers import make_trainer, settings
from torch import Tensor

from selfcorrect.config.schema import KLConfig
from selfcorrect.method import distilled, score
from selfcorrect.method.base import StepOutcome, find_method
from selfcorrect.training.trainer import Trainer

TOLERANCE = 1e-9
STAGE: dict[str, Any] = {
    "method": "distilled",
    "reward_weights": [1, 0.5],
    "bonus": 3.0,
    "kl_coefs": [{"base": 0.1}, {"base": 0.05}],
    "distill_weight": 2.0,
}
ALONE: dict[str, Any] = {**STAGE, "reward_weights": [0, 0], "bonus": 0.0, "kl_coefs": [{}, {}], "distill_weight": 1.0}
"""The added term alone."""


def trainer_of(here: World, stage: dict[str, Any], group: int, kl: tuple[str, str], **optimizer: Any) -> Trainer:
    config = settings(
        stage=stage,
        rollout={"batch_size": group, "group_size": group, "max_tokens": max(here.policy.limits)},
        optimizer={"micro_batch_tokens": 10**9, **optimizer},
    )
    config = config.model_copy(update={"kl": KLConfig(placement=kl[0], estimator=kl[1])})  # type: ignore[arg-type]
    return make_trainer(config, policy=here.policy, base=here.reference)


def expected_gradient(
    here: World, stage: dict[str, Any], group: int = 2, kl: tuple[str, str] = ("reward", "k1"), **optimizer: Any
) -> Tensor:
    """Return the gradient that a step of one group accumulates, averaged over all possible groups; the loss's."""
    trainer = trainer_of(here, stage, group, kl, **optimizer)
    groups = list(itertools.product(here.played, repeat=group))
    chances = [math.prod(here.probability(played) for played in members) for members in groups]
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    batch = trainer.pack_rollout([here.episode(played, 0) for members in groups for played in members])
    (rows,) = batch.batches
    advantages_NK = trainer.advantages(batch)
    here.policy.row_weights = torch.tensor(chances, dtype=torch.float64).repeat_interleave(group)[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(groups)


def gradient_of(here: World, value: Callable[[Any], Any]) -> Tensor:
    """Return the gradient of the mean of ``value`` over all episodes, whose chances are held fixed."""
    total = sum(here.probability(played) * value(played) for played in here.played)
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


def accuracy(here: World) -> float:
    """Return a = E_p[r]."""
    return sum(here.probability(played) * rewards(played)[0] for played in here.played)


def score_of_second(here: World, played: Any) -> Tensor:
    """Return log p(y_2), of the second attempt as an answer to the bare prompt."""
    return here.policy.turn_logprob(played[1:], 0)


def distillation(here: World, weight: float = 1.0) -> Tensor:
    """Return the gradient of E_q[(r - a) log p], with q and a held fixed."""
    a = accuracy(here)
    return gradient_of(here, lambda played: weight * (rewards(played)[1] - a) * score_of_second(here, played))


def credit(here: World, played: Any, k: int) -> Any:
    r = rewards(played)
    shaped = (r[0], 0.5 * r[1] + 3.0 * (r[1] - r[0]))[k]
    return shaped - (0.1, 0.05)[k] * log_ratio(here, played, k)


# ---------------------------------------------------------------- what it is


@pytest.mark.pitfall(16)
@pytest.mark.parametrize(("limits", "group"), [((2, 2), 2), ((2, 1), 2), ((1, 1), 3)])
def test_second_attempts_train_first_ones_besides_both_attempts_objective(limits: tuple[int, int], group: int) -> None:
    here = World.make(*limits)
    added = distillation(here, weight=2.0)
    truth = true_gradient(here, lambda played, k: credit(here, played, k)) + added
    assert added.norm() > 1e-1
    assert relative_gap(-expected_gradient(here, STAGE, group), truth) < TOLERANCE


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_distilled_tokens_have_no_term_in_a_kl_loss(estimator: str) -> None:
    """With and without the added term, the gradient differs by it alone."""
    here = World.make(2, 1)
    stages = [{**STAGE, "distill_weight": weight} for weight in (2.0, 0.0)]
    with_it, without = (expected_gradient(here, stage, kl=("loss", estimator)) for stage in stages)
    assert relative_gap(without - with_it, distillation(here, weight=2.0)) < TOLERANCE
    plain = {key: value for key, value in STAGE.items() if key != "distill_weight"} | {"method": "score"}
    alone = expected_gradient(here, plain, kl=("loss", estimator))
    assert relative_gap(without, alone) < TOLERANCE, "a weight of 0 is `score`"


def test_a_kl_loss_survives_second_attempts_that_the_bare_prompt_makes_impossible() -> None:
    """k3 of such a token is beyond any number, and no coefficient of 0 would bring it back."""
    here = World.make(1, 1)
    with torch.no_grad():
        here.policy.table[here.policy.contexts[(PROMPT,)], 1] = -2000.0
    trainer = trainer_of(here, STAGE, 2, ("loss", "k3"))
    batch = trainer.pack_rollout([here.episode(((2,), (1,)), 0), here.episode(((0,), (1,)), 1)])
    trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
    assert gradient(here.policy).isfinite().all()


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("optimizer", [{"tis_cap": 1.0}, {"num_iterations": 2}, {"tis_cap": 1.0, "num_iterations": 2}])
def test_no_importance_weight_stands_between_the_two_contexts(optimizer: dict[str, Any]) -> None:
    """A cap of 1 would cut every token that the bare prompt makes less likely; clipping every one that it makes unlike."""
    here = World.make(2, 1)
    assert relative_gap(-expected_gradient(here, ALONE, **optimizer), distillation(here)) < TOLERANCE


@pytest.mark.pitfall(16)
@pytest.mark.parametrize("group", [2, 3])
def test_the_mean_with_its_own_draft_would_depend_on_the_group(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would add -Cov(r_1, d log p(y_2)) / G, for the draft's verdict is not independent of what comes after it."""
    here = World.make(1, 1)
    a = accuracy(here)
    covariance = gradient_of(here, lambda played: (rewards(played)[0] - a) * score_of_second(here, played))
    monkeypatch.setattr(
        distilled, "mean_of_others", lambda r, n: r.view(-1, n).mean(1, keepdim=True).expand(-1, n).flatten()
    )
    found = -expected_gradient(here, ALONE, group)
    assert relative_gap(found, distillation(here)) > 1e-2
    assert relative_gap(found, distillation(here) - covariance / group) < TOLERANCE


# ---------------------------------------------------------------- what it is not


def gradient_of_accuracy(here: World) -> Tensor:
    """Return the gradient of E_p[r], what Acc@t1 is at temperature 1."""
    answers = {played[0] for played in here.played}
    total = sum(here.policy.turn_logprob((answer,), 0).exp() * rewards((answer,))[0] for answer in answers)
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


def importance_weighted(here: World) -> Tensor:
    """Return the expected gradient with the weights p(y_2) / pi(y_2 | draft)."""
    a = accuracy(here)

    def value(played: Any) -> Tensor:
        one, other = score_of_second(here, played), here.policy.turn_logprob(played, 1)
        return (one - other).detach().exp() * (rewards(played)[1] - a) * one

    return gradient_of(here, value)


def test_it_is_the_gradient_of_first_attempts_accuracy_only_where_second_attempts_ignore_the_draft() -> None:
    here = World.make(1, 1)
    assert relative_gap(importance_weighted(here), gradient_of_accuracy(here)) < TOLERANCE, "what weights would do"
    assert relative_gap(-expected_gradient(here, ALONE), gradient_of_accuracy(here)) > 1e-1
    with torch.no_grad():
        for context, place in here.policy.contexts.items():
            if GLUE in context:
                first = (PROMPT, *context[context.index(GLUE) + 1 :])
                here.policy.table[place] = here.policy.table[here.policy.contexts[first]]
    assert relative_gap(-expected_gradient(here, ALONE), gradient_of_accuracy(here)) < TOLERANCE


# ---------------------------------------------------------------- by hand


def test_the_advantages_by_hand() -> None:
    """Two problems of three episodes; the columns of the conversation are those of `score`."""
    stage = trainer_of(World.make(1, 1), {**STAGE, "distill_weight": 0.5}, 3, ("reward", "k1")).stage
    pairs = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0], [1, 1], [1, 1]], dtype=torch.float64)
    penalty_NK = torch.tensor([[0.1, 0.2]] * 3 + [[0.0, 0.0]] * 3, dtype=torch.float64)
    online_NK = torch.ones(6, 2, dtype=torch.bool)

    def again(values_NK: Tensor) -> Tensor:
        return torch.cat([values_NK, values_NK[:, -1:]], 1)

    outcome = StepOutcome(again(pairs), torch.cat([penalty_NK, torch.zeros(6, 1)], 1), again(online_NK), 3)
    found = distilled.advantages(outcome, stage)
    # The others' first attempts are right in 0, 1/2 and 1/2 of the first problem, and always in the second.
    assert found[:, 2].tolist() == [0.5 * (1 - 0), 0.5 * (1 - 0.5), 0.5 * (0 - 0.5), 0.5 * (0 - 1), 0, 0]
    assert torch.equal(found[:, :2], score.advantages(StepOutcome(pairs, penalty_NK, online_NK, 3), stage))


def test_the_method_is_found_by_its_name() -> None:
    assert find_method("distilled") is distilled.advantages
