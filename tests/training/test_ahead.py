"""Test one step off (`rollout.ahead = 1`): which weights sample which step, the gradient, and what a checkpoint must hold."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS, digests
from support.families import lively, of_family
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.stops import trained_with_stops
from support.tabular import Tabular, World, log_ratio, rewards
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect.config.schema import Config, KLConfig
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine
from selfcorrect.errors import CheckpointError, ConfigError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.paper.comparable import row_config
from selfcorrect.paper.rows import ROWS
from selfcorrect.paper.time_estimate import measured
from selfcorrect.runs.run import resume, train
from selfcorrect.script import Script, UserTurn
from selfcorrect.storage.files import read_jsonl
from selfcorrect.training.ahead_trainer import AheadTrainer
from selfcorrect.training.pending import PendingSample
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode, Judgement, Problem, Role, Verdict

STEPS = 4
ONE_OFF = {"rollout": {"ahead": 1}, "optimizer": {"tis_cap": 2.0, "learning_rate": 3e-3}}


def one_off(**groups: Any) -> Config:
    """Return settings one step off; ``groups`` add to them."""
    merged = {name: {**ONE_OFF.get(name, {}), **groups.get(name, {})} for name in {*ONE_OFF, *groups}}
    return settings(**{**merged, "stage": {"steps": STEPS, **groups.get("stage", {})}})


def ahead_trainer(**groups: Any) -> AheadTrainer:
    trainer = make_trainer(one_off(**groups), policy=tiny_model(0))
    assert isinstance(trainer, AheadTrainer)
    return trainer


# ---------------------------------------------------------------- which weights sample which step


def log_probabilities(model: Any, episode: Episode) -> list[torch.Tensor]:
    """Return, for each attempt, the log-probabilities of its tokens, by `transformers`' own forward pass of this one row."""
    ids = torch.tensor([episode.ids])
    logp = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
    found, place = [], 0
    for turn in episode.turns:
        place += len(turn.observation_ids)
        found.append(logp[place - 1 : place - 1 + len(turn.ids)])
        place += len(turn.ids)
    return found


def learn(policy: Any, base: Any, optimizer: Any, episodes: list[Episode], coefficient: float, cap: float) -> None:
    """Take the step that docs/method.md, sections 2 and 11, describes, episode by episode and in groups of four."""
    mine = [log_probabilities(policy, episode) for episode in episodes]
    ratio = [
        [float((p - b).sum().detach()) for p, b in zip(own, log_probabilities(base, episode), strict=True)]
        for own, episode in zip(mine, episodes, strict=True)
    ]
    credit = [
        [turn.verdict.reward - coefficient * r for turn, r in zip(e.turns, ratio[i], strict=True)]
        for i, e in enumerate(episodes)
    ]
    loss = torch.zeros((), dtype=torch.float64)
    for i, episode in enumerate(episodes):
        others = [j for j in range(i - i % 4, i - i % 4 + 4) if j != i]
        for k, turn in enumerate(episode.turns):
            advantage = credit[i][k] - sum(credit[j][k] for j in others) / 3
            sampled = torch.tensor(turn.logprobs, dtype=torch.float64)
            weights = torch.exp(mine[i][k].detach() - sampled).clamp(max=cap)
            loss = loss - (weights * advantage * mine[i][k]).sum() / len(episodes)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def weights_of(model: LanguageModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.model.parameters()])


@pytest.mark.pitfall(23)
def test_a_step_learns_from_what_the_weights_of_the_step_before_sampled() -> None:
    """Compare with a loop that keeps the weights of every step, samples with those it should, and learns row by row."""
    trainer = ahead_trainer()
    policy, base = tiny_model(0), tiny_model(1)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3, weight_decay=0.0)
    snapshots = []
    for step in range(STEPS):
        snapshots.append(copy.deepcopy(policy.model.state_dict()))
        sampling = tiny_model(0)
        sampling.model.load_state_dict(snapshots[max(0, step - 1)])
        expected = make_trainer(one_off(), policy=sampling, engine=HFEngine(sampling)).sampler.sample_step(step).learnt
        record = trainer.step()
        assert [e.ids for e in record.episodes] == [e.ids for e in expected], f"step {step}"
        found = [p for e in record.episodes for turn in e.turns for p in turn.logprobs]
        assert found == pytest.approx([p for e in expected for turn in e.turns for p in turn.logprobs], abs=1e-9)
        assert record.metrics["sampled_tokens"] == len(found), "those of the episodes that the step learns from"
        learn(policy.model, base.model, optimizer, list(expected), 0.1, 2.0)
        assert relative_gap(weights_of(trainer.policy), weights_of(policy)) < 1e-9, f"step {step}"
    assert trainer.pending is None, "the last step samples nothing"
    assert relative_gap(weights_of(policy), weights_of(tiny_model(0))) > 1e-3


def test_every_episode_is_sampled_once_and_the_random_numbers_are_those_of_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[int]] = [[]]
    trainer = ahead_trainer()
    sample = trainer.sampler.sample_step
    monkeypatch.setattr(trainer.sampler, "sample_step", lambda step: (asked[-1].append(step), sample(step))[1])
    for _ in range(STEPS):
        trainer.step()
        asked.append([])
    assert asked[:-1] == [[0, 1], [2], [3], []]


def test_the_first_step_is_that_of_sampling_and_learning_in_turn() -> None:
    """Weights of exactly 1 up to the rounding of two passes, the same episodes, and the same update."""
    trainer, plain = ahead_trainer(), make_trainer(settings(optimizer={"learning_rate": 3e-3}), policy=tiny_model(0))
    found, expected = trainer.step(), plain.step()
    assert found.metrics["importance_weight"] == pytest.approx(1, abs=1e-12)
    assert found.metrics["max_logprob_lag"] < 1e-12
    assert [e.ids for e in found.episodes] == [e.ids for e in expected.episodes]
    assert relative_gap(weights_of(trainer.policy), weights_of(plain.policy)) < 1e-9
    assert all(abs(trainer.step().metrics["importance_weight"] - 1) > 1e-4 for _ in range(STEPS - 1))


# ---------------------------------------------------------------- the engine gap, apart from the policy's lag


def test_the_engine_gap_is_measured_with_the_weights_that_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with its own copy: as long as it gets every step's weights, its gap is rounding, and the lag is not."""
    trainer = ahead_trainer(stage={"steps": 6})
    trainer.sampler.engine = HFEngine(trainer.policy.frozen_copy())
    metrics = [trainer.step().metrics for _ in range(3)]
    assert all(found["max_logprob_diff"] < 1e-9 for found in metrics)
    assert [found["max_logprob_lag"] > 1e-2 for found in metrics] == [False, True, True]
    monkeypatch.setattr(HFEngine, "load_weights", lambda self, policy: None)
    gaps = [trainer.step().metrics["max_logprob_diff"] for _ in range(3)]
    # Steps 3 and 4 learn what was sampled before the engine fell behind: with W_2, and in step 3 with W_3, which it still had.
    assert gaps[0] < 1e-9 and gaps[1] < 1e-9 and gaps[2] > 1e-2


# ---------------------------------------------------------------- the gradient, by enumeration

STAGE = {"reward_weights": [1, 1], "bonus": 10.0, "kl_coefs": [{"base": 0.3}, {"base": 0.2}]}
COEFFICIENTS = (0.3, 0.2)


def stale() -> tuple[World, Tabular]:
    """Return a policy with turns of one token each, and the weights that sampled, which are others."""
    return World.make(1, 1), Tabular((1, 1), 7)


def expected_gradient(here: World, sampler: Tabular, kl: tuple[str, str], *, ahead: int = 1) -> torch.Tensor:
    """Return the gradient of a step of a group of two, averaged over all groups that ``sampler`` draws."""
    then = World(sampler, here.reference, here.played)
    groups = list(itertools.product(here.played, repeat=2))
    episodes = [then.episode(played, 0) for group in groups for played in group]
    chances = [then.probability(one) * then.probability(other) for one, other in groups]
    assert sum(chances) == pytest.approx(1, abs=1e-12)
    config = settings(
        stage=STAGE,
        rollout={"batch_size": 2, "group_size": 2, "max_tokens": 1, "ahead": ahead},
        optimizer={"micro_batch_tokens": 10**9, "tis_cap": 1e6},
    )
    config = config.model_copy(update={"kl": KLConfig(placement=kl[0], estimator=kl[1])})  # type: ignore[arg-type]
    trainer = make_trainer(config, policy=here.policy, base=here.reference)
    batch = trainer.pack_rollout(episodes)
    (rows,) = batch.batches
    advantages_NK = trainer.advantages(batch)
    here.policy.row_weights = torch.tensor(chances, dtype=torch.float64).repeat_interleave(2)[rows.episode_B]
    try:
        trainer.accumulate_gradient(batch, advantages_NK, first=False)
    finally:
        here.policy.row_weights = None
    return gradient(here.policy) * len(chances)


def true_gradient(here: World, sampler: Tabular, value: Callable[[Any, int], Any]) -> torch.Tensor:
    """Return the gradient of sum_k E[contexts ~ the weights that sampled] E[y_k ~ pi] value, of one token per turn."""
    total = torch.zeros((), dtype=torch.float64)
    for played in here.played:
        for k in range(2):
            contexts = sum(float(sampler.turn_logprob(played, j).detach()) for j in range(2) if j != k)
            total = total + torch.exp(here.policy.turn_logprob(played, k) + contexts) * value(played, k)
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


def reward(played: Any, k: int) -> float:
    r = rewards(played)
    return r[k] + (STAGE["bonus"] * (r[1] - r[0]) if k else 0.0)  # type: ignore[operator]


def token_kl(here: World, sampler: Tabular, *, reverse: bool) -> torch.Tensor:
    """Return the gradient of the KL of every token's distribution, in contexts of the weights that sampled."""
    total = torch.zeros((), dtype=torch.float64)
    for played in here.played:
        chance = sum(float(sampler.turn_logprob(played, j).detach()) for j in range(2))
        for k, coefficient in enumerate(COEFFICIENTS):
            ((ours, _),), ((theirs, _),) = (m.token_logprobs(played, k) for m in (here.policy, here.reference))
            ours, theirs = (theirs.detach(), ours) if reverse else (ours, theirs.detach())
            total = total + math.exp(chance) * coefficient * (ours.exp() * (ours - theirs)).sum()
    return torch.autograd.grad(total, here.policy.table)[0].flatten()


@pytest.mark.pitfall(23)
def test_the_expected_gradient_is_the_current_policys() -> None:
    """With one token per turn the weights are the exact ratio, so nothing but the contexts is the older policy's."""
    here, sampler = stale()
    truth = true_gradient(
        here, sampler, lambda played, k: reward(played, k) - COEFFICIENTS[k] * log_ratio(here, played, k)
    )
    assert relative_gap(-expected_gradient(here, sampler, ("reward", "k1")), truth) < 1e-9
    # A penalty by the log-probabilities of the weights that sampled, as of an engine's rounding, is another objective's.
    assert relative_gap(-expected_gradient(here, sampler, ("reward", "k1"), ahead=0), truth) > 1e-2


@pytest.mark.pitfall(23)
@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_kl_terms_of_the_loss_are_those_of_the_current_policy(estimator: str) -> None:
    here, sampler = stale()
    truth = token_kl(here, sampler, reverse=estimator == "k3") - true_gradient(here, sampler, reward)
    assert relative_gap(expected_gradient(here, sampler, ("loss", estimator)), truth) < 1e-9
    if estimator != "full":  # without weights
        assert relative_gap(expected_gradient(here, sampler, ("loss", estimator), ahead=0), truth) > 1e-2


# ---------------------------------------------------------------- resuming

CONDITIONAL = Script(
    revise=(UserTurn("1=", Role.VERIFICATION, says_correct="8", says_wrong="9"), UserTurn("2=", when=Judgement.WRONG))
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dynamic": {"stage": {"max_gen_batches": 3}, "rollout": {"group_size": 2}},
    "trees": {"stage": {"revisions": 2}},
    "the base's first attempts": {"stage": {"offline_share": 0.5}},
    "LoRA": {},
    "several updates": {"optimizer": {"num_iterations": 2}},
    "adaptive": {"stage": {"adaptive": {}, "kl_coefs": [{"base": 0.1}, {"base": 0.1}]}},
    "conditional": {"stage": {"verification": {"kl_coefs": {"base": 0.1}}}},
    "drafts": {"stage": {"method": "self_verification", "verification": {"kl_coefs": {"base": 0.1}}}},
}


def of_kind(name: str) -> AheadTrainer:
    script = {"script": CONDITIONAL} if name == "conditional" else {}
    verifier = FunctionVerifier(lambda problem, text: problem.id in ("p0", "p1", "p2") or len(text) % 2 == 1)
    policy = lively(of_family("Llama", tied=True)) if name == "LoRA" else tiny_model(0)
    trainer = make_trainer(one_off(**KINDS[name]), policy=policy, verifier=verifier, **script)
    assert isinstance(trainer, AheadTrainer)
    return trainer


def stored(state: Any) -> Any:
    """Return a state as it comes back from a file that holds tensors and plain values alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.pitfall(14)
@pytest.mark.parametrize("name", KINDS)
def test_a_trainer_resumed_after_any_step_takes_the_same_steps(name: str) -> None:
    whole = of_kind(name)
    records = []
    states = []
    for _ in range(STEPS):
        records.append(whole.step())
        parts = (whole.state_dict(), whole.learner.state_dict(), whole.policy.model.state_dict())
        states.append(stored(parts))
    if name == "conditional":
        skipped = [turn.skipped for record in records for e in record.episodes for turn in e.turns]
        assert any(skipped) and not all(skipped)
    for step, (state, learner, weights) in enumerate(states, 1):
        resumed = of_kind(name)
        resumed.policy.model.load_state_dict(weights)
        resumed.learner.load_state_dict(learner)
        resumed.load_state_dict(state)
        resumed.engine.load_weights(resumed.policy)
        for record in records[step:]:
            again = resumed.step()
            assert again.metrics == record.metrics
            assert list(again.episodes) == list(record.episodes)
        assert torch.equal(weights_of(resumed.policy), weights_of(whole.policy))


def test_an_episode_comes_back_from_a_checkpoint_with_all_that_it_holds() -> None:
    trainer = ahead_trainer()
    sample = trainer.sampler.sample_step(1)
    rich = Verdict(sample.first[0].verdicts[0].outcome, "7", "why", {"strict": sample.first[0].verdicts[0].outcome})
    turns = tuple(replace(turn, verdict=rich, text="\ud800 \x00") for turn in sample.first[0].turns)
    first = [replace(sample.first[0], turns=turns), *sample.first[1:]]
    pending = PendingSample(1, [first[3], first[0]], first, 16, 40, 0.25)
    found = PendingSample.of_state(stored(pending.state_dict()), trainer.sampler.problems)
    assert (found.step, found.completions, found.tokens, found.gap) == (1, 16, 40, 0.25)
    assert found.first == first and found.learnt == [first[3], first[0]]
    assert found.learnt[0] is found.first[3], "stored once"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(pending=None), "episodes of step None are pending"),
        (lambda state: state["pending"].update(step=7), "episodes of step 7 are pending"),
        (lambda state: state["pending"].update(ids=state["pending"]["ids"][:-1]), "lack 1 tokens"),
        (lambda state: state["pending"].update(logprobs=torch.zeros(10**4)), "fewer tokens than the checkpoint"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[Any], None], message: str) -> None:
    trainer = ahead_trainer()
    trainer.step()
    state = trainer.state_dict()
    damage(state)
    with pytest.raises(ValueError, match=message):
        ahead_trainer().load_state_dict(state)


def test_a_problem_that_the_run_no_longer_has_is_refused() -> None:
    trainer = ahead_trainer()
    trainer.step()
    with pytest.raises(LookupError):
        PendingSample.of_state(trainer.state_dict()["pending"], [Problem("other", "1+1=", "2")])


# ---------------------------------------------------------------- whole runs

AHEAD = ["rollout.ahead=1", "optimizer.tis_cap=2"]


def run_config(model_folder: Path, *more: str) -> Config:
    return load_config("demo", [*SETTINGS, f"model.source={model_folder}", *AHEAD, *more])


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.usefixtures("lenient")
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, "optimizer.learning_rate=1e-2")
    train(config, tmp_path / "whole")
    assert trained_with_stops(config, tmp_path / "run") == 7
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


@pytest.mark.usefixtures("lenient")
def test_a_finished_run_cannot_be_longer(model_folder: Path, tmp_path: Path) -> None:
    train(run_config(model_folder, "optimizer.schedule=constant"), tmp_path / "run")
    assert all("generate" in line for line in read_jsonl(tmp_path / "run/timings.jsonl"))
    assert measured([tmp_path / "run"]) is not None, "the time that a comparison takes is estimated from its runs"
    with pytest.raises(ConfigError, match=r"the last of the 4 steps of stage 'score' sampled nothing"):
        resume(tmp_path / "run", overrides=["stages.score.steps=8"])


@pytest.mark.usefixtures("lenient")
def test_a_run_whose_pending_episodes_do_not_fit_is_refused(model_folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    stop = Callbacks(on_step=lambda record: steps.append(1), should_stop=lambda: 15 if steps else None)
    config = run_config(model_folder)
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "run", callbacks=stop)
    load, monkeypatch = PendingSample.of_state, pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(PendingSample, "of_state", lambda state, problems: load({**state, "episodes": []}, problems))
        with pytest.raises(CheckpointError, match=r"does not fit its run .*fewer tokens than the checkpoint"):
            resume(tmp_path / "run")


def test_without_ahead_a_checkpoint_holds_what_it_held() -> None:
    trainer = make_trainer(settings())
    trainer.step()
    assert type(trainer) is Trainer and trainer.state_dict().keys() == {"step", "rewards", "adaptive", "lr_factor"}


# ---------------------------------------------------------------- settings


def test_without_importance_weights_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.ahead = 1 .* set optimizer\.tis_cap, for example to 2"):
        settings(rollout={"ahead": 1})


def test_more_than_one_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.ahead"):
        one_off(rollout={"ahead": 2})


def test_a_stage_that_collects_its_pairs_first_is_refused() -> None:
    pairs = '{steps = 2, method = "star", rounds = 1}'
    with pytest.raises(
        ConfigError, match=r"stages\.star\.method = 'star' collects all pairs .* set rollout\.ahead = 0"
    ):
        load_config("demo", [*AHEAD, f"stages.star={pairs}"])


def test_a_cold_start_samples_nothing_and_may_come_first() -> None:
    load_config("demo", [*AHEAD, 'stages.cold={steps = 2, method = "sft"}'])


@pytest.mark.parametrize("key", ["star", "pair-sft", "score"])
def test_rows_of_a_comparison_have_it_where_it_means_something(key: str) -> None:
    row = next(row for row in ROWS if row.key == key)
    assert row_config(row, load_config("demo", AHEAD)).rollout.ahead == (key == "score")
