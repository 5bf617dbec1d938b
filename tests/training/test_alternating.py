"""Test alternating updates (`method = "thinktwice"`): which weights sample what, what is learnt and kept, and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from support.crash import SETTINGS, digests
from support.families import lively, of_family
from support.gradients import relative_gap
from support.models import tiny_model
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.engines import Completion, HFEngine, Request, Sampling
from selfcorrect.errors import CheckpointError, ConfigError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.report.model_card import _problems
from selfcorrect.rng import SampleKey
from selfcorrect.runs.run import resume, train
from selfcorrect.script import Script, UserTurn
from selfcorrect.storage.files import read_jsonl
from selfcorrect.training.alternating_trainer import AlternatingTrainer
from selfcorrect.types import Role

STEPS, GROUP = 5, 4
ANCHORS = [{"base": 0.1}, {"base": 0.2}]
STAGE: dict[str, Any] = {"method": "thinktwice", "steps": STEPS, "reward_weights": [1, 2], "kl_coefs": ANCHORS}
FEEDBACK = Script(revise=(UserTurn("1=", Role.FEEDBACK), UserTurn("2=")))


def alternating(
    *, policy: LanguageModel | None = None, script: Script | None = None, **groups: Any
) -> AlternatingTrainer:
    config = settings(**{**groups, "stage": {**STAGE, **groups.get("stage", {})}})
    asked = {} if script is None else {"script": script}
    trainer = make_trainer(config, policy=policy or tiny_model(0), verifier=verifier(), **asked)
    assert isinstance(trainer, AlternatingTrainer)
    return trainer


def verifier() -> FunctionVerifier:
    return FunctionVerifier(lambda problem, text: len(text) % 2 == 1)


def weights_of(model: LanguageModel) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.model.parameters()])


# ---------------------------------------------------------------- which weights sample what, and what they learn


def log_probabilities(model: Any, before: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
    """Return the log-probabilities of ``ids`` after ``before``, by `transformers`' own forward pass of this one row."""
    logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def learn(policy: Any, base: Any, optimizer: Any, rows: list[tuple[Any, Any, float]], coefficient: float) -> None:
    """Take a step of policy gradient, row by row: each is a context, the tokens sampled in it, and what they earn."""
    scores = [log_probabilities(policy, before, ids) for before, ids, _ in rows]
    with torch.no_grad():
        ratios = [
            float(mine.detach().sum() - log_probabilities(base, before, ids).sum())
            for mine, (before, ids, _) in zip(scores, rows, strict=True)
        ]
    earned = [reward - coefficient * ratio for (_, _, reward), ratio in zip(rows, ratios, strict=True)]
    loss = torch.zeros((), dtype=torch.float64)
    for i, score in enumerate(scores):
        others = [j for j in range(i - i % GROUP, i - i % GROUP + GROUP) if j != i]
        loss = loss - (earned[i] - fmean(earned[j] for j in others)) * score.sum() / len(rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.pitfall(9)
def test_every_step_is_that_of_a_loop_over_rows() -> None:
    """The loop keeps the first sample of every problem and has it revised by the weights that its own step left."""
    trainer = alternating(optimizer={"learning_rate": 3e-3})
    policy, base = tiny_model(0), tiny_model(1)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3, weight_decay=0.0)
    sampling, chat = Sampling(1.0, 4, ()), trainer.sampler.chat
    drafts: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []

    def sampled(turn: int, pair: int, contexts: list[tuple[Any, tuple[int, ...]]]) -> list[Completion]:
        keys = [SampleKey(0, "train/stage", pair, problem.id, g, turn) for problem, _ in contexts for g in range(GROUP)]
        asked = [ids for _, ids in contexts for _ in range(GROUP)]
        return HFEngine(policy).generate([Request(*each, None) for each in zip(asked, keys, strict=True)], sampling)

    for step in range(STEPS):
        pair, second = divmod(step, 2)
        if second:
            contexts = [
                (problem, (*prompt, *ids, *chat.observation_ids(1, problem.prompt, ids)))
                for problem, prompt, ids in drafts
            ]
        else:
            contexts = [(problem, chat.prompt(problem.prompt)) for problem in trainer.sampler.step_problems(pair)]
        found = sampled(second, pair, contexts)
        places = [contexts[i // GROUP] for i in range(len(found))]
        record = trainer.step()
        assert [e.turns[-1].ids for e in record.episodes] == [reply.ids for reply in found], f"step {step}"
        assert [e.ids[: -len(e.turns[-1].ids)] for e in record.episodes] == [before for _, before in places]
        rewards = [float(len(chat.text(reply.ids)) % 2 == 1) * (1 + second) for reply in found]
        rows = [(before, reply.ids, r) for (_, before), reply, r in zip(places, found, rewards, strict=True)]
        learn(policy.model, base.model, optimizer, rows, ANCHORS[second]["base"])
        assert relative_gap(weights_of(trainer.policy), weights_of(policy)) < 1e-9, f"step {step}"
        drafts = [(*contexts[i // GROUP], found[i].ids) for i in range(0, len(found), GROUP)]
    assert relative_gap(weights_of(policy), weights_of(tiny_model(0))) > 1e-3


@pytest.mark.pitfall(23)
def test_an_engine_with_weights_of_its_own_revises_with_those_that_the_step_before_left() -> None:
    trainer = alternating(optimizer={"learning_rate": 3e-3})
    trainer.sampler.engine = HFEngine(trainer.policy.frozen_copy())
    assert all(trainer.step().metrics["max_logprob_diff"] < 1e-9 for _ in range(4))


@pytest.mark.pitfall(9)
def test_the_second_step_revises_the_first_sample_of_every_problem() -> None:
    trainer = alternating(script=FEEDBACK)
    first, second = trainer.step().episodes, trainer.step().episodes
    assert [e.problem.id for e in first] == [e.problem.id for e in second]
    for i, (alone, episode) in enumerate(zip(first, second, strict=True)):
        (attempt,), (draft, feedback, revision) = alone.turns, episode.turns
        assert attempt.online and not attempt.copied
        of_group = first[i - i % GROUP].turns[0]
        assert draft == replace(of_group, online=False, copied=True)
        assert feedback.role is Role.FEEDBACK and revision.online and not revision.copied
    assert len({e.turns[-1].ids for e in second[:GROUP]}) > 1


def test_a_draft_is_sampled_verified_and_counted_once() -> None:
    trainer = alternating(script=FEEDBACK)
    checked = trainer.sampler.verifier.seen  # type: ignore[attr-defined]
    counts = []
    for _ in range(4):
        before = len(checked)
        record = trainer.step()
        counts.append((record.metrics["completions"], len(checked) - before))
    assert counts == [(8, 8), (16, 8)] * 2, "first attempts; feedback and second attempts"


# ---------------------------------------------------------------- what is measured and kept


def test_a_step_reports_the_attempt_that_it_trains() -> None:
    trainer = alternating(optimizer={"learning_rate": 3e-3}, log={"turn_gradients_every": 2})
    records = [trainer.step() for _ in range(4)]
    for k, record in enumerate(records):
        metrics, rewards = record.metrics, [e.rewards for e in record.episodes]
        trained, other = ("t2", "t1") if k % 2 else ("t1", "t2")
        for name in ("entropy_", "kl_base_", "kl_base_token_", "informative_groups_"):
            assert f"{name}{trained}" in metrics and f"{name}{other}" not in metrics, (k, name)
        assert metrics["reward"] == pytest.approx((1 + k % 2) * fmean(r[-1] for r in rewards))
        assert metrics["r1"] == fmean(r[0] for r in rewards) and ("r2" in metrics) == ("delta" in metrics) == bool(
            k % 2
        )
        assert (metrics.get(f"gradient_norm_{trained}") is not None) == (k < 2), "both steps of every other pair"
        assert metrics.get(f"gradient_norm_{other}") is None
    drafts = [e.rewards[0] for e in records[0].episodes[::GROUP]]
    assert records[1].metrics["r1"] == fmean(drafts), "the draft's verdict, whatever the other samples'"


@pytest.mark.parametrize(("window", "counted"), [(1, 2), (2, 2), (3, 3), (20, 5)])
def test_the_checkpoint_is_chosen_by_both_kinds_of_steps(window: int, counted: int) -> None:
    trainer = alternating(log={"keep_window": window}, optimizer={"learning_rate": 3e-3})
    rewards: list[float] = []
    for _ in range(STEPS):
        rewards.append(trainer.step().metrics["reward"])
    last = list(enumerate(rewards))[-counted:]
    each = [[reward for step, reward in last if step % 2 == kind] for kind in (0, 1)]
    assert trainer.selection_metric() == pytest.approx(sum(map(fmean, each)))


def test_the_first_step_alone_is_no_better_than_a_pair() -> None:
    trainer = alternating()
    reward = trainer.step().metrics["reward"]
    assert trainer.selection_metric() == reward > 0
    both = trainer.step().metrics["reward"] + reward
    assert trainer.selection_metric() == pytest.approx(both)


# ---------------------------------------------------------------- resuming

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "feedback": {"script": FEEDBACK},
    "LoRA": {},
    "several updates": {"optimizer": {"num_iterations": 2, "learning_rate": 3e-3}},
    "shuffled verdicts": {"task": {"shuffle_verdicts": True}},
}


def of_kind(name: str) -> AlternatingTrainer:
    policy = lively(of_family("Llama", tied=True)) if name == "LoRA" else tiny_model(0)
    return alternating(policy=policy, **KINDS[name])


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
    records, states = [], []
    for _ in range(STEPS):
        records.append(whole.step())
        states.append(stored((whole.state_dict(), whole.learner.state_dict(), whole.policy.model.state_dict())))
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
        assert resumed.selection_metric() == whole.selection_metric()


def of_another_step(state: dict[str, Any]) -> None:
    state["step"] = 3


def after_a_pair(state: dict[str, Any]) -> None:
    state["step"] = 2


def without_drafts(state: dict[str, Any]) -> None:
    state["drafts"]["episodes"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_another_step, "after step 3, 2 drafts wait, which are not those of its problems"),
        (after_a_pair, "after step 2, 2 drafts wait"),
        (without_drafts, "fewer tokens than the checkpoint"),
    ],
)
def test_drafts_that_do_not_belong_to_the_step_are_refused(damage: Callable[[Any], None], message: str) -> None:
    trainer = alternating()
    trainer.step()
    state = trainer.state_dict()
    damage(state)
    with pytest.raises(ValueError, match=message):
        alternating().load_state_dict(state)


# ---------------------------------------------------------------- whole runs


def run_config(model_folder: Path, *more: str) -> Config:
    changes = [change for change in SETTINGS if not change.startswith("stages.")]
    config = load_config("demo", [*changes, f"model.source={model_folder}", *more])
    return make_config({**config.model_dump(), "stages": {"twice": {**STAGE, "kl_coefs": [{}, {}]}}})


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.usefixtures("lenient")
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, "optimizer.learning_rate=1e-2")
    train(config, tmp_path / "whole")
    steps: list[int] = []
    callbacks = Callbacks(
        on_step=lambda record: steps.append(1), should_stop=lambda: 15 if len(steps) > before else None
    )
    for before in range(20):
        try:
            resume(tmp_path / "run", callbacks=callbacks) if before else train(
                config, tmp_path / "run", callbacks=callbacks
            )
            break
        except InterruptedRun:
            assert len(steps) == before + 1
    assert len(steps) == 5
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    counted = [(line["completions"], line["updates"]) for line in read_jsonl(tmp_path / "whole/metrics.jsonl")]
    assert counted == [(8, 1)] * 5


@pytest.mark.usefixtures("lenient")
def test_a_run_whose_drafts_do_not_fit_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    stop = Callbacks(on_step=lambda record: steps.append(1), should_stop=lambda: 15 if steps else None)
    with pytest.raises(InterruptedRun):
        train(run_config(model_folder), tmp_path / "run", callbacks=stop)
    monkeypatch.setattr("selfcorrect.training.alternating_trainer.episodes_of_state", lambda state, problems: [])
    with pytest.raises(CheckpointError, match=r"does not fit its run .*0 drafts wait"):
        resume(tmp_path / "run")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_weights": [1], "kl_coefs": [{}]}, "1 turn with method = 'thinktwice', which trains a first attempt"),
        ({"reward_weights": [1, 1, 1], "kl_coefs": [{}, {}, {}]}, "3 turns with method = 'thinktwice'.*give two"),
        ({"bonus": 1.0}, "bonus = 1.0 with method = 'thinktwice'.*leave bonus out"),
        ({"discount": 0.5}, "discount = 0.5 with .*leave discount out"),
        ({"revisions": 2}, "revisions = 2 with .*leave revisions out"),
        ({"max_gen_batches": 2}, "max_gen_batches = 2 with .*leave max_gen_batches out"),
        ({"replay": {}}, "replay with method = .*leave replay out"),
        ({"offline_share": 0.5}, "offline_share = 0.5 with .*leave offline_share out"),
        ({"adaptive": {}}, "adaptive with method = 'thinktwice'.*leave adaptive out"),
        ({"baseline": "none"}, "baseline = 'none' with method = 'thinktwice'"),
    ],
)
def test_settings_that_mean_nothing_here_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(stage={**STAGE, **changes})


def test_sampling_ahead_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"revises the drafts of the step before .* set rollout\.ahead = 0"):
        settings(stage=STAGE, rollout={"ahead": 1}, optimizer={"tis_cap": 2.0})


def test_verifications_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r'method = "thinktwice" trains attempts alone'):
        alternating(script=Script(revise="2=").with_verification())


def test_a_card_counts_the_problems_of_every_other_step() -> None:
    """5 steps of 2 problems are 3 first steps."""
    config = settings(stage=STAGE)
    assert _problems(config, ["stage"], 100) == "at most 6 of 100 problems"
    assert _problems(config, ["stage"], 6) == "6 problems"
