"""Test what keeps a step near the policy that it began with: `optimizer.kl_stop` and `optimizer.kl_control`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS, digests
from support.gradients import relative_gap
from support.models import tiny_model
from support.stops import trained_with_stops
from support.trainers import make_trainer, settings

from selfcorrect.config.digest import config_digest
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine
from selfcorrect.errors import ConfigError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.runs.run import train
from selfcorrect.storage.files import read_jsonl
from selfcorrect.training import step_control
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


# ---------------------------------------------------------------- kl_control


def controlled(rate: float = 1e-3, model: LanguageModel | None = None, **control: Any) -> Trainer:
    more, groups = control.pop("optimizer", {}), control.pop("groups", {})
    config = settings(optimizer={"learning_rate": rate, "kl_control": control, **more}, **groups)
    return make_trainer(config, policy=model or tiny_model(0))


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_kl_of_a_step_is_measured_after_its_last_update(iterations: int) -> None:
    trainer = controlled(optimizer={"num_iterations": iterations, "micro_batch_tokens": 40})
    for _ in range(2):
        before = trainer.policy.frozen_copy()
        record = trainer.step()
        found = kl_per_token(before, trainer.policy, record.episodes)
        assert found > 1e-3 and record.metrics["kl_step"] == pytest.approx(found, abs=1e-9)
        assert record.metrics["undone"] == 0


def test_the_learning_rate_follows_the_kl() -> None:
    """A rate that is far too large falls by 1.5 a step until the KL is as wanted; one that is too small rises again."""
    trainer = controlled(1e-2, target=5e-3, maximum=4.0)
    expected, seen = 1.0, []
    for _ in range(14):
        metrics = trainer.step().metrics
        assert metrics["lr_factor"] == pytest.approx(expected, rel=1e-12)
        assert metrics["learning_rate"] == pytest.approx(1e-2 * expected, rel=1e-12)
        assert trainer.learner.optimizer.param_groups[0]["lr"] == metrics["learning_rate"]
        kl = metrics["kl_step"]
        expected *= 1 / 1.5 if kl > 1e-2 else 1.5 if kl < 2.5e-3 else 1.0
        seen.append(kl)
    assert seen[0] > 0.1 and max(seen[-4:]) < 2e-2
    small = controlled(1e-7, target=5e-3, maximum=2.0)
    assert [small.step().metrics["lr_factor"] for _ in range(4)] == pytest.approx([1, 1.5, 2, 2], rel=1e-12)
    large = controlled(1e-2, target=1e-9, minimum=0.5)
    assert [large.step().metrics["lr_factor"] for _ in range(4)] == pytest.approx([1, 1 / 1.5, 0.5, 0.5], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_step_that_leads_too_far_is_undone(dtype: torch.dtype) -> None:
    trainer = controlled(3e-3, model=tiny_model(0, dtype=dtype), target=1e-2, limit=2e-2)
    start = weights_of(trainer.policy)
    masters = [master.detach().clone() for master in trainer.learner.master_weights.parameters]
    undone = trainer.step()
    assert undone.metrics["kl_step"] > 2e-2 and undone.metrics["undone"] == 1
    assert torch.equal(weights_of(trainer.policy), start)
    for master, before in zip(trainer.learner.master_weights.parameters, masters, strict=True):
        assert torch.equal(master, before)
    assert trainer.learning_rate() == pytest.approx(3e-3 / 1.5, rel=1e-12)
    records = [trainer.step() for _ in range(6)]
    taken = [record.metrics["undone"] for record in records]
    assert taken == sorted(taken, reverse=True) and taken[-1] == 0, "with ever smaller steps, one is taken"
    assert all((record.metrics["kl_step"] > 2e-2) == bool(record.metrics["undone"]) for record in records)
    assert not torch.equal(weights_of(trainer.policy), start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_continues_as_if_an_undone_step_had_not_been(dtype: torch.dtype) -> None:
    """The first step is undone before the optimizer has moments, the third with moments: a twin leaves out these updates."""

    def made(limit: float) -> Trainer:
        return controlled(model=tiny_model(0, dtype=dtype), target=1e-4, limit=limit)

    trainer, twin = made(1.0), made(1e6)
    for undone in (True, False, True, False):
        limits = {"limit": 2e-4 if undone else 1e6}
        trainer.control.settings = trainer.control.settings.model_copy(update=limits)  # type: ignore[union-attr]
        if undone:
            before = stored(trainer.learner.state_dict()["optimizer"])["state"]
            assert trainer.step().metrics["undone"] == 1
            after = trainer.learner.state_dict()["optimizer"]["state"]
            assert bool(before) == (trainer.state.step > 1)
            for i, moments in before.items():
                assert all(torch.equal(moment, after[i][name]) for name, moment in moments.items())
            twin.load_state_dict(trainer.state_dict())
        else:
            found, expected = trainer.step(), twin.step()
            assert found.metrics == expected.metrics and found.metrics["undone"] == 0
            assert torch.equal(weights_of(trainer.policy), weights_of(twin.policy))


def test_after_an_undone_step_the_engine_samples_with_the_weights_before_it() -> None:
    trainer, still = controlled(3e-3, limit=2e-2), make_trainer(settings(), policy=tiny_model(0))
    trainer.sampler.engine = HFEngine(trainer.policy.frozen_copy())
    assert trainer.step().metrics["undone"] == 1
    assert [e.ids for e in trainer.sampler.sample(1)] == [e.ids for e in still.sampler.sample(1)]


def test_weights_that_are_not_a_number_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = controlled(limit=1e3)
    start = weights_of(trainer.policy)
    update = trainer.learner.update

    def broken(rate: float, where: str) -> float:
        norm = update(rate, where)
        with torch.no_grad():
            trainer.learner.parameters[-1].fill_(torch.nan)
        return norm

    monkeypatch.setattr(trainer.learner, "update", broken)
    metrics = trainer.step().metrics
    assert metrics["kl_step"] is None and metrics["undone"] == 1
    assert torch.equal(weights_of(trainer.policy), start)
    assert trainer.state.lr_factor == pytest.approx(1 / 1.5)


def test_a_step_that_was_stopped_has_measured_its_kl_already(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    measure = step_control.score_reference
    monkeypatch.setattr(step_control, "score_reference", lambda *args: (passes.append(1), measure(*args))[1])
    trainer = controlled(RATE, optimizer={"num_iterations": 4, "kl_stop": 1e-4}, limit=2e-2)
    start = weights_of(trainer.policy)
    metrics = trainer.step().metrics
    assert metrics["updates"] == 1 and metrics["undone"] == 1 and passes == []
    assert torch.equal(weights_of(trainer.policy), start)
    assert controlled().step().metrics["updates"] == 1 and passes == [1]


def stored(state: Any) -> Any:
    """Return a state as it comes back from a file that holds tensors and plain values alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.pitfall(14)
@pytest.mark.parametrize("groups", [{}, {"rollout": {"ahead": 1}}], ids=["plain", "one step ahead"])
def test_a_trainer_resumed_after_any_step_takes_the_same_steps(groups: dict[str, Any]) -> None:
    def made() -> Trainer:
        return controlled(2e-3, target=1e-2, limit=8e-2, optimizer={"tis_cap": 2.0}, groups=groups)

    whole, records, states = made(), [], []
    for _ in range(4):
        records.append(whole.step())
        states.append(stored((whole.state_dict(), whole.learner.state_dict(), whole.policy.model.state_dict())))
    assert {record.metrics["undone"] for record in records} == {0, 1}
    for step, (state, learner, weights) in enumerate(states, 1):
        resumed = made()
        resumed.policy.model.load_state_dict(weights)
        resumed.learner.load_state_dict(learner)
        resumed.load_state_dict(state)
        resumed.engine.load_weights(resumed.policy)
        assert [resumed.step().metrics for _ in records[step:]] == [record.metrics for record in records[step:]]
        assert torch.equal(weights_of(resumed.policy), weights_of(whole.policy))


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.usefixtures("lenient")
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(model_folder: Path, tmp_path: Path) -> None:
    control = "optimizer.kl_control={target=1e-2, limit=1e-1}"
    config = load_config("demo", [*SETTINGS, f"model.source={model_folder}", "optimizer.learning_rate=1e-2", control])
    train(config, tmp_path / "whole")
    assert trained_with_stops(config, tmp_path / "run") == 7
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert {line["undone"] for line in metrics} == {0, 1} and len({line["lr_factor"] for line in metrics}) > 2
    assert [line["lr_factor"] for line in metrics if line["step"] == 1] == [1, 1], "a stage starts afresh"


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"target": 0.1, "limit": 0.15}, r"limit = 0.15 with target = 0.1: .* set limit to at least 0.2"),
        ({"minimum": 2.0}, r"kl_control.minimum = 2.0"),
        ({"maximum": 0.5}, r"kl_control.maximum = 0.5"),
    ],
)
def test_a_control_that_contradicts_itself_is_refused(control: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(optimizer={"kl_control": control})


def test_it_is_refused_where_there_is_nothing_to_stop() -> None:
    with pytest.raises(ConfigError, match=r"kl_stop = 0.1 with num_iterations = 1: .* set num_iterations above 1"):
        settings(optimizer={"kl_stop": 0.1})


def test_runs_without_it_keep_their_digest() -> None:
    plain = config_digest(settings(optimizer={"num_iterations": 2}))
    assert plain == config_digest(settings(optimizer={"num_iterations": 2, "kl_stop": None}))
    assert plain != config_digest(settings(optimizer={"num_iterations": 2, "kl_stop": 0.1}))
    assert plain == config_digest(settings(optimizer={"num_iterations": 2, "kl_control": None}))
    assert plain != config_digest(settings(optimizer={"num_iterations": 2, "kl_control": {}}))
