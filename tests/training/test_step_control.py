"""Test what keeps a step near the policy that it began with: `optimizer.kl_stop`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.gradients import relative_gap
from support.models import tiny_model
from support.trainers import make_trainer, settings

from selfcorrect.config.digest import config_digest
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode

RATE = 3e-3


def kl_per_token(old: LanguageModel, new: LanguageModel, episodes: Sequence[Episode]) -> float:
    """Return the mean of r - 1 - log r over the tokens that the policy sampled, by `transformers`' own pass of each episode."""
    estimates: list[float] = []
    for episode in episodes:
        ids = torch.tensor([episode.ids])
        with torch.no_grad():
            logp, logq = (
                torch.log_softmax(model.model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
                for model in (old, new)
            )
        place = 0
        for turn in episode.turns:
            place += len(turn.observation_ids)
            own = slice(place - 1, place - 1 + len(turn.ids))
            if turn.online:
                ratio = (logq[own] - logp[own]).exp()
                estimates += (ratio - 1 - ratio.log()).tolist()
            place += len(turn.ids)
    return sum(estimates) / len(estimates)


def weights_of(model: LanguageModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.model.parameters()])


def stopping(iterations: int, limit: float | None, **groups: Any) -> Trainer:
    optimizer = {"num_iterations": iterations, "learning_rate": RATE, "kl_stop": limit, **groups.pop("optimizer", {})}
    return make_trainer(settings(optimizer=optimizer, **groups), policy=tiny_model(0))


# ---------------------------------------------------------------- kl_stop


@pytest.mark.parametrize(
    "groups",
    [{}, {"optimizer": {"micro_batch_tokens": 40}}, {"stage": {"offline_share": 0.5}}, {"stage": {"revisions": 2}}],
    ids=["plain", "micro-batches", "the base's first attempts", "trees"],
)
def test_the_updates_of_a_step_end_once_the_policy_is_too_far(groups: dict[str, Any]) -> None:
    """The KL after every number of updates comes from trainers that take as many; the limit lies between two of them."""
    kls, after = [], []
    for updates in range(1, 5):
        trainer = stopping(updates, None, **groups)
        record = trainer.step()
        kls.append(kl_per_token(tiny_model(0), trainer.policy, record.episodes))
        after.append(weights_of(trainer.policy))
    assert kls == sorted(kls) and kls[0] > 1e-3
    for taken in (1, 2, 3):
        limit = (kls[taken - 1] + (kls[taken - 2] if taken > 1 else 0.0)) / 2
        stopped = stopping(5, limit, **groups)
        metrics = stopped.step().metrics
        assert metrics["updates"] == taken
        assert metrics["approx_kl"] == pytest.approx(kls[taken - 1], abs=1e-9)
        assert relative_gap(weights_of(stopped.policy), after[taken - 1]) < 1e-9, "the last pass changed the weights"
    free = stopping(4, 1e3, **groups)
    metrics = free.step().metrics
    assert metrics["updates"] == 4 and metrics["approx_kl"] == pytest.approx(kls[2], abs=1e-9)
    assert relative_gap(weights_of(free.policy), after[3]) < 1e-9


def test_the_next_step_begins_as_if_the_last_pass_had_not_been() -> None:
    limit = 1e-9
    stopped, single = stopping(3, limit), stopping(1, None)
    for _ in range(3):
        found, expected = stopped.step(), single.step()
        assert found.metrics["updates"] == 1
        assert [e.ids for e in found.episodes] == [e.ids for e in expected.episodes]
        assert found.metrics["gradient_norm"] == pytest.approx(expected.metrics["gradient_norm"], rel=1e-9)


def test_without_it_nothing_is_measured() -> None:
    assert "approx_kl" not in stopping(2, None).step().metrics


def test_it_is_refused_where_there_is_nothing_to_stop() -> None:
    with pytest.raises(ConfigError, match=r"kl_stop = 0.1 with num_iterations = 1: .* set num_iterations above 1"):
        settings(optimizer={"kl_stop": 0.1})


def test_runs_without_it_keep_their_digest() -> None:
    plain = config_digest(settings(optimizer={"num_iterations": 2}))
    assert plain == config_digest(settings(optimizer={"num_iterations": 2, "kl_stop": None}))
    assert plain != config_digest(settings(optimizer={"num_iterations": 2, "kl_stop": 0.1}))
