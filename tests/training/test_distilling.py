"""Test training second attempts as first ones (`method = "distilled"`): rows, a step by a loop, metrics, settings, resuming."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from support.crash import SETTINGS, digests
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect.config.digest import lasting_settings
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import ConfigError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.report.model_card import _stage
from selfcorrect.runs.run import resume, train
from selfcorrect.script import Script, UserTurn
from selfcorrect.training.distilling_trainer import DistillingTrainer
from selfcorrect.types import Episode, Role

GROUP = 4
STAGE: dict[str, Any] = {
    "method": "distilled",
    "steps": 4,
    "reward_weights": [1, 3],
    "kl_coefs": [{"base": 0.1}, {"base": 0.2}],
    "distill_weight": 2.0,
}
FEEDBACK = Script(revise=(UserTurn("1=", Role.FEEDBACK), UserTurn("2=")))


def distilling(*, script: Script | None = None, **groups: Any) -> DistillingTrainer:
    config = settings(**{**groups, "stage": {**STAGE, **groups.get("stage", {})}})
    asked = {} if script is None else {"script": script}
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    trainer = make_trainer(config, policy=tiny_model(0), verifier=verifier, **asked)
    assert isinstance(trainer, DistillingTrainer)
    return trainer


# ---------------------------------------------------------------- the rows


@pytest.mark.pitfall(8)
@pytest.mark.parametrize("script", [None, FEEDBACK], ids=["plain", "feedback"])
def test_a_second_attempt_follows_its_bare_prompt_with_the_tokens_that_were_sampled(script: Script | None) -> None:
    trainer = distilling(script=script)
    episodes = trainer.sampler.sample(0)
    batch = trainer.pack_rollout(episodes)
    (rows,) = batch.batches
    assert sorted(rows.episode_B.tolist()) == sorted([*range(8), *range(8)])
    chat = trainer.sampler.chat
    found = 0
    for place, tokens, turns, mask in zip(
        rows.episode_B.tolist(), rows.tokens_BT.tolist(), rows.turn_BT, rows.mask_BT, strict=True
    ):
        if (turns == 2).any():
            second = episodes[place].attempts[1].ids
            row = [*chat.prompt(episodes[place].problem.prompt), *second]
            assert tokens[: int(mask.sum())] == row
            assert turns[: len(row)].tolist() == [-1] * (len(row) - len(second)) + [2] * len(second)
            found += 1
        else:
            assert tokens[: int(mask.sum())] == list(episodes[place].ids)
    assert found == 8
    assert batch.rewards_NK.tolist() == [[*e.rewards, e.rewards[1]] for e in episodes]


# ---------------------------------------------------------------- a step, by a loop


def log_probabilities(model: Any, before: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """Return the log-probabilities of ``ids`` after ``before``, by `transformers`' own forward pass of this one row."""
    logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def loss_of(policy: Any, base: Any, episodes: list[Episode]) -> torch.Tensor:
    """Return the loss of a step, episode by episode."""
    mine, earned = [], []
    for e in episodes:
        first, second = e.turns
        contexts = (first.observation_ids, (*first.observation_ids, *first.ids, *second.observation_ids))
        mine.append([log_probabilities(policy, c, turn.ids) for c, turn in zip(contexts, e.turns, strict=True)])
        ratios = [
            float(m.detach().sum() - log_probabilities(base, c, turn.ids).sum().detach())
            for m, c, turn in zip(mine[-1], contexts, e.turns, strict=True)
        ]
        r1, r2 = e.rewards
        earned.append((r1 - 0.1 * ratios[0], 3 * r2 - 0.2 * ratios[1]))
    loss = torch.zeros((), dtype=torch.float64)
    for i, e in enumerate(episodes):
        others = [j for j in range(i - i % GROUP, i - i % GROUP + GROUP) if j != i]
        for k in range(2):
            loss = loss - (earned[i][k] - fmean(earned[j][k] for j in others)) * mine[i][k].sum()
        advantage = 2.0 * (e.rewards[1] - fmean(episodes[j].rewards[0] for j in others))
        loss = loss - advantage * log_probabilities(policy, e.turns[0].observation_ids, e.turns[1].ids).sum()
    return loss / len(episodes)


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tokens", [40, 10**9])
def test_a_step_has_the_gradient_of_a_loop_over_episodes(tokens: int, shared: bool, cap: float | None) -> None:
    """In small micro-batches and one big one, with prompts read once or again, with importance weights of the engine's gap."""
    trainer = distilling(
        optimizer={"micro_batch_tokens": tokens, "share_prompts": shared, "tis_cap": cap},
        log={"turn_gradients_every": 1},
    )
    trainer.update = lambda: 1.0  # type: ignore[method-assign]
    record = trainer.step()
    policy = tiny_model(0)
    loss_of(policy.model, tiny_model(1).model, list(record.episodes)).backward()
    assert relative_gap(gradient(trainer.policy.model), gradient(policy.model)) < 1e-9
    assert record.metrics["gradient_norm_d2"] > 0


def test_later_updates_clip_against_the_policy_before_the_first() -> None:
    """Of the distilled tokens alone: the ratio is that of the policy now and before the first update, of the bare prompt."""
    trainer = distilling(
        optimizer={"num_iterations": 2, "clip_epsilon": 0.1, "learning_rate": 1e-2},
        stage={"reward_weights": [0, 0], "kl_coefs": [{}, {}]},
    )
    episodes = trainer.sampler.sample(0)
    batch = trainer.pack_rollout(episodes)
    advantages_NK = trainer.advantages(batch)
    trainer.accumulate_gradient(batch, advantages_NK, first=True)
    trainer.update()
    totals = trainer.accumulate_gradient(batch, advantages_NK, first=False)
    policy, before = tiny_model(0), tiny_model(0)
    policy.model.load_state_dict(trainer.policy.model.state_dict())
    loss = torch.zeros((), dtype=torch.float64)
    for e, a in zip(episodes, advantages_NK[:, 2].tolist(), strict=True):
        place = (e.turns[0].observation_ids, e.turns[1].ids)
        ratio = torch.exp(log_probabilities(policy.model, *place) - log_probabilities(before.model, *place).detach())
        loss = loss - torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a).sum() / len(episodes)
    loss.backward()
    assert 0 < totals.clipped_share() < 1
    assert relative_gap(gradient(trainer.policy.model), gradient(policy.model)) < 1e-9


# ---------------------------------------------------------------- what is measured


def test_the_metrics_are_those_of_both_attempts_and_of_the_second_as_a_first_one() -> None:
    trainer = distilling(log={"turn_gradients_every": 1})
    record = trainer.step()
    metrics = record.metrics
    r1, r2 = (fmean(e.rewards[k] for e in record.episodes) for k in (0, 1))
    assert (metrics["r1"], metrics["r2"], metrics["completions"], metrics["updates"]) == (r1, r2, 16, 1)
    assert metrics["reward"] == pytest.approx(r1 + 3 * r2), "nothing is paid twice"
    assert metrics["max_logprob_diff"] < 1e-9, "not the distance of two contexts"
    assert [name for name in metrics if name.endswith("_d2")] == ["entropy_d2", "gradient_norm_d2"]
    assert "kl_base_t2" in metrics and "r3" not in metrics
    weighted = distilling(optimizer={"tis_cap": 1.5}).step().metrics
    assert weighted["importance_weight"] == pytest.approx(1) and weighted["importance_capped"] == 0


def test_it_samples_what_the_same_stage_without_it_samples() -> None:
    plain = make_trainer(settings(), policy=tiny_model(0))
    assert [e.ids for e in distilling().sampler.sample(0)] == [e.ids for e in plain.sampler.sample(0)]


# ---------------------------------------------------------------- a whole run


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_ends_with_the_same_bits(model_folder: Path, tmp_path: Path, stop_after: int) -> None:
    changes = [change for change in SETTINGS if not change.startswith("stages.")]
    config = load_config("demo", [*changes, f"model.source={model_folder}", "optimizer.learning_rate=1e-2"])
    config = make_config({**config.model_dump(), "stages": {"distilled": STAGE}})
    train(config, tmp_path / "whole")
    seen: list[int] = []
    callbacks = Callbacks(
        on_step=lambda record: seen.append(1), should_stop=lambda: 15 if len(seen) == stop_after else None
    )
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "run", callbacks=callbacks)
    resume(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_weights": [1], "kl_coefs": [{}]}, "1 turn with method = 'distilled', which trains a first attempt"),
        ({"revisions": 2}, "revisions = 2 with method = 'distilled', which does not use it: leave revisions out"),
        ({"max_gen_batches": 2}, "max_gen_batches = 2 with .*leave max_gen_batches out"),
        ({"offline_share": 0.5}, "offline_share = 0.5 with .*leave offline_share out"),
        ({"replay": {}}, "replay with method = .*leave replay out"),
        ({"adaptive": {}}, "adaptive with method = 'distilled'.*leave adaptive out"),
        ({"baseline": "fitted"}, "baseline = 'fitted' with method = 'distilled'"),
        ({"method": "score"}, "distill_weight = 2.0 with method = 'score'.*set method = 'distilled'"),
    ],
)
def test_settings_that_mean_nothing_here_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(stage={**STAGE, **changes})


def test_what_reads_tokens_as_the_policys_own_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"without importance weights, .* set rollout\.ahead = 0"):
        settings(stage=STAGE, rollout={"ahead": 1}, optimizer={"tis_cap": 2.0})
    for name, value in (("kl_stop", 0.1), ("kl_control", {"target": 0.01})):
        with pytest.raises(ConfigError, match=rf"optimizer\.{name} estimates a KL on .*context: leave {name} out"):
            settings(stage=STAGE, optimizer={name: value, "num_iterations": 2})
    with pytest.raises(ConfigError, match=r'method = "distilled" trains attempts alone'):
        distilling(script=Script(revise="2=").with_verification())


def test_stages_that_do_not_distil_keep_their_digest() -> None:
    """Runs of earlier versions have no such setting."""
    assert "distill_weight" not in lasting_settings(settings())["stages"]["stage"]
    one, two = (lasting_settings(settings(stage={**STAGE, "distill_weight": weight})) for weight in (1.0, 2.0))
    assert one["stages"]["stage"] | {"distill_weight": 2.0} == two["stages"]["stage"]


def test_a_card_says_what_is_distilled() -> None:
    config: Config = settings(stage=STAGE)
    assert "binary rewards 1, 3, and 2 for second attempts as first ones; KL" in _stage(config, config.stages["stage"])
