"""Test replay: groups that revise stored first attempts, as many incorrect as correct ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.crash import SETTINGS, digests
from support.engines import ScriptedEngine
from support.episodes import episode, turn
from support.models import tiny_model
from support.stops import trained_with_stops
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config
from selfcorrect.engines import HFEngine
from selfcorrect.errors import CheckpointError, ConfigError
from selfcorrect.paper.budget import spent
from selfcorrect.runs.run import resume, train
from selfcorrect.script import Script, UserTurn
from selfcorrect.storage.files import read_jsonl
from selfcorrect.training.replay import ReplayPool
from selfcorrect.training.stage_trainer import completions
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode, Judgement, Problem, Role

POOLS = ["policy", "base"]


def replaying(replay: dict[str, Any], **groups: Any) -> Trainer:
    stage = {"replay": replay, **groups.pop("stage", {})}
    rollout = {"batch_size": 16, **groups.pop("rollout", {})}
    made = {name: groups.pop(name) for name in ("script", "verifier") if name in groups}
    return make_trainer(settings(stage=stage, rollout=rollout, **groups), policy=tiny_model(0), **made)


def groups_of(episodes: Sequence[Episode], size: int = 4) -> list[list[Episode]]:
    return [list(episodes[at : at + size]) for at in range(0, len(episodes), size)]


# ---------------------------------------------------------------- the pool


def attempts(*rights: int, start: int = 5) -> list[Episode]:
    return [episode(turn([3], [start + i, 2], right), turn([4], [9, 2]), sample=i) for i, right in enumerate(rights)]


def drawn(pool: ReplayPool, numbers: range, seed: int = 0) -> list[int]:
    return [one.turns[0].ids[0] for one in pool.draw(numbers, np.random.default_rng(seed))]


def test_the_pool_holds_the_newest_of_each_kind() -> None:
    pool = ReplayPool(2)
    pool.add(attempts(0, 1, 0, 0, 1, 1))
    assert {tuple(sorted(drawn(pool, range(0, 4), seed))) for seed in range(9)} == {(7, 8, 9, 10)}
    pool.add(attempts(1, start=20))
    assert {tuple(sorted(drawn(pool, range(0, 4), seed))) for seed in range(9)} == {(7, 8, 10, 20)}


def test_kinds_alternate_and_none_repeats_before_all_were_drawn() -> None:
    pool = ReplayPool(8)
    pool.add(attempts(0, 1, 0, 1, 0))
    correct = {6, 8}
    for seed in range(5):
        found = drawn(pool, range(3, 13), seed)
        assert [one in correct for one in found] == [True, False] * 5, "odd numbers are correct ones"
        assert len({*found[1:6:2]}) == 3 and {*found[0:4:2]} == correct == {*found[4:8:2]}
    assert len({tuple(drawn(pool, range(2), seed)) for seed in range(20)}) == 6, "each pair is drawn by some seed"


def test_a_kind_that_is_lacking_is_left_out() -> None:
    pool = ReplayPool(8)
    assert drawn(pool, range(4)) == []
    pool.add(attempts(0, 0))
    assert {*drawn(pool, range(4))} == {5, 6}
    assert drawn(pool, range(1, 2)) == []


def test_an_attempt_that_was_not_sampled_for_its_episode_is_not_stored() -> None:
    pool = ReplayPool(8)
    pool.add([episode(turn([3], [5, 2], 0, online=False), turn([4], [9, 2]))])
    assert drawn(pool, range(2)) == []


# ---------------------------------------------------------------- what a step samples


def test_the_policys_attempts_are_revised_in_the_steps_after() -> None:
    """Half of four groups: one incorrect and one correct draft of earlier steps, each revised by a whole group."""
    verifier = FunctionVerifier(lambda problem, text: len(text) % 2 == 1)
    trainer = replaying({"share": 0.5}, verifier=verifier)
    plain = make_trainer(settings(rollout={"batch_size": 16}))
    first = trainer.sampler.sample_step(0)
    assert [e.ids for e in first.learnt] == [e.ids for e in plain.sampler.sample(0)], "nothing is stored yet"
    assert first.learnt == first.first and first.completions == 32
    stored = {(e.problem.id, e.turns[0].ids, e.turns[0].verdict) for e in first.first}
    for step in (1, 2):
        seen = len(verifier.seen)
        sample = trainer.sampler.sample_step(step)
        assert [e.ids for e in sample.first] == [e.ids for e in plain.sampler.sample(step)[:8]]
        assert [*sample.first] == [*sample.learnt[:8]] and len(sample.learnt) == 16
        replayed = groups_of(sample.learnt[8:])
        for group, correct in zip(replayed, (False, True), strict=True):
            (draft,) = {(e.problem.id, e.turns[0].ids, e.turns[0].verdict) for e in group}
            assert draft in stored and group[0].verdicts[0].correct == correct
            assert all(e.turns[0].copied and not e.turns[0].online for e in group)
            assert all(e.turns[1].online and not e.turns[1].copied for e in group)
            assert len({e.turns[1].ids for e in group}) > 1, "the revisions are samples of their own"
            observed = trainer.sampler.chat.observation_ids(1, group[0].problem.prompt, draft[1])
            assert all(e.turns[1].observation_ids == observed for e in group)
        assert sample.completions == completions(sample.learnt) == 2 * 8 + 8
        assert len(verifier.seen) - seen == 2 * 8 + 8, "a stored verdict is not asked for again"
        numbers = [(e.problem.id, e.sample) for e in sample.learnt]
        assert len(numbers) == len({*numbers}), "every episode has random numbers of its own"
        stored |= {(e.problem.id, e.turns[0].ids, e.turns[0].verdict) for e in sample.first}


def test_the_bases_attempts_are_sampled_once_one_a_problem() -> None:
    trainer = replaying({"share": 0.25, "pool": "base", "size": 5})
    digit = trainer.sampler.chat.tokenizer.convert_tokens_to_ids("8")
    end = trainer.sampler.chat.tokenizer.eos_token_id
    base = ScriptedEngine(lambda request: [digit] * (int(request.key.problem[1:]) % 3) + [end], end)
    trainer.sampler.base_engine = base
    samples = [trainer.sampler.sample_step(step) for step in range(4)]
    assert len(base.asked) == 10 and len({request.key.problem for request in base.asked}) == 10
    assert {(request.key.purpose, request.key.turn) for request in base.asked} == {("replay/stage", 0)}
    assert [sample.completions for sample in samples] == [3 * 8 + 4 + 10] + [3 * 8 + 4] * 3
    for step, sample in enumerate(samples):
        (group,) = groups_of(sample.learnt[12:])
        assert group[0].verdicts[0].correct == bool(step % 2), "one group a step: the kinds take turns"
        (draft,) = {(e.problem.id, e.turns[0].ids) for e in group}
        assert draft[1] == (*[digit] * (int(draft[0][1:]) % 3), end)
    later = [trainer.sampler.sample_step(step).learnt[12].problem.id for step in range(4, 16)]
    assert len({*later[::2]}) > 1 and len({*later[1::2]}) > 1, "each step draws again"


def test_in_trees_a_stored_draft_is_revised_as_often_as_an_own_one() -> None:
    trainer = replaying({"share": 0.5}, stage={"revisions": 2})
    trainer.sampler.sample_step(0)
    for step in (1, 2):
        sample = trainer.sampler.sample_step(step)
        assert len(sample.first) == 8
        for group in groups_of(sample.learnt[8:]):
            drafts = [{(e.problem.id, e.turns[0].ids) for e in pair} for pair in groups_of(group, 2)]
            assert all(len(one) == 1 for one in drafts)
            assert [e.verdicts[0].correct for e in group] == [False, False, True, True]
        assert not any(e.turns[0].online for e in sample.learnt[8:])


def test_the_verification_of_a_stored_attempt_is_trained() -> None:
    """With a script of PAG, the model judges stored attempts of both kinds; the second attempt follows if it says wrong."""
    ask = UserTurn("1=", Role.VERIFICATION, says_correct="number", says_wrong="Correct")
    script = Script(revise=(ask, UserTurn("2=", when=Judgement.WRONG)))
    trainer = replaying({"share": 0.5}, script=script, stage={"method": "pag"})
    trainer.step()
    record = trainer.step()
    replayed = record.episodes[8:]
    assert record.metrics["replayed"] == 8 and {e.verdicts[0].correct for e in replayed} == {False, True}
    assert all(not e.turns[0].online and e.turns[1].online for e in replayed)


def test_while_a_kind_is_lacking_own_groups_take_its_place() -> None:
    never = replaying({"share": 0.5}, verifier=FunctionVerifier(lambda problem, text: False))
    records = [never.step() for _ in range(2)]
    assert [record.metrics["replayed"] for record in records] == [0, 4]
    assert records[1].metrics["replay_correct_if_correct"] is None
    assert records[1].metrics["replay_correct_if_incorrect"] == 0
    never = replaying({"share": 0.25}, verifier=never.sampler.verifier, stage={"revisions": 2})
    assert [never.step().metrics["replayed"] for _ in range(2)] == [0, 0], "half a group is none"


# ---------------------------------------------------------------- what a step learns and reports


def test_stored_attempts_are_context_and_own_episodes_alone_are_measured() -> None:
    trainer = replaying({"share": 0.5}, log={"turn_gradients_every": 1})
    trainer.step()
    record = trainer.step()
    own, replayed = record.episodes[:8], record.episodes[8:]
    metrics = record.metrics
    for k in (0, 1):
        assert metrics[f"r{k + 1}"] == sum(e.rewards[k] for e in own) / 8
    assert metrics["reward"] == sum(sum(e.rewards) for e in own) / 8
    assert metrics["replayed"] == 8
    for kind, correct in (("incorrect", 0), ("correct", 1)):
        second = [e.rewards[1] for e in replayed if e.rewards[0] == correct]
        assert len(second) == 4 and metrics[f"replay_correct_if_{kind}"] == sum(second) / 4
    batch = trainer.pack_rollout(record.episodes)
    assert batch.online_NK.tolist() == [[True, True]] * 8 + [[False, True]] * 8
    advantages_NK = trainer.advantages(batch)
    assert (advantages_NK[8:, 0] == 0).all()
    (rows,) = batch.batches
    first_tokens = [int(i) for i in rows.episode_S[rows.turn_S == 0].unique()]
    assert first_tokens == [*range(8)]
    assert metrics["gradient_norm_t1"] > 0


@pytest.mark.parametrize("again", [4, 2], ids=["groups", "trees"])
def test_a_revision_is_compared_with_those_of_the_same_draft(again: int) -> None:
    trainer = replaying({"share": 0.5}, stage={"kl_coefs": [{}, {}], "revisions": 1 if again == 4 else again})
    drafts = [turn([3, 7], [8 + i // again, 2], i // again % 2, online=False) for i in range(8)]
    rights = [0, 1, 1, 1, 1, 1, 1, 0]
    replayed = [
        episode(drafts[i], turn([4], [9 + i, 2], right), name=f"q{i // again}", sample=i)
        for i, right in enumerate(rights)
    ]
    own = [episode(turn([3], [5, 2], i % 2), turn([4], [6, 2], i < 3), sample=i) for i in range(8)]
    found = trainer.advantages(trainer.pack_rollout([*own, *replayed]))[8:, 1]
    by_draft = [rights[at : at + again] for at in range(0, 8, again)]
    expected = [right - (sum(of_one) - right) / (again - 1) for of_one in by_draft for right in of_one]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


# ---------------------------------------------------------------- resuming


def stored(state: Any) -> Any:
    """Return a state as it comes back from a file that holds tensors and plain values alone."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.pitfall(14)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("groups", [{}, {"rollout": {"ahead": 1}}], ids=["plain", "one step ahead"])
def test_a_trainer_resumed_after_any_step_takes_the_same_steps(pool: str, groups: dict[str, Any]) -> None:
    def made() -> Trainer:
        return replaying({"share": 0.5, "pool": pool, "size": 6}, optimizer={"tis_cap": 2.0}, **groups)

    whole, records, states = made(), [], []
    for _ in range(4):
        records.append(whole.step())
        states.append(stored((whole.state_dict(), whole.learner.state_dict(), whole.policy.model.state_dict())))
    assert [record.metrics["replayed"] for record in records] == [8 if pool == "base" else 0, 8, 8, 8]
    for step, (state, learner, weights) in enumerate(states, 1):
        resumed = made()
        resumed.policy.model.load_state_dict(weights)
        resumed.learner.load_state_dict(learner)
        resumed.load_state_dict(state)
        resumed.sampler.engine = HFEngine(resumed.policy)
        for record in records[step:]:
            again = resumed.step()
            assert again.metrics == record.metrics and again.episodes == record.episodes


def test_a_state_of_other_problems_is_refused() -> None:
    trainer = replaying({"share": 0.5})
    trainer.step()
    state = trainer.state_dict()
    other = make_trainer(trainer.config, problems=[Problem(f"q{i}", "1+1=", "2") for i in range(10)])
    with pytest.raises(LookupError, match="p"):
        other.load_state_dict(state)
    trainer.step()
    trainer.load_state_dict(state)
    assert str(trainer.state_dict()) == str(state), "what was stored after it is forgotten"
    with pytest.raises(LookupError, match="replay"):
        trainer.load_state_dict({name: value for name, value in state.items() if name != "replay"})


def run_config(model_folder: Path, *more: str) -> Config:
    sizes = ["rollout.batch_size=16", "stages.score.replay={share=0.5, size=8}", "stages.stage1.steps=2"]
    return load_config("demo", [*SETTINGS, *sizes, f"model.source={model_folder}", *more])


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("pool", POOLS)
def test_a_run_stopped_after_every_step_ends_with_the_same_bits(pool: str, model_folder: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, f"stages.score.replay.pool={pool}", "optimizer.learning_rate=1e-2")
    train(config, tmp_path / "whole")
    assert trained_with_stops(config, tmp_path / "run") == 6
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    replayed = [line.get("replayed") for line in read_jsonl(tmp_path / "run/metrics.jsonl")]
    assert replayed[:2] == [None, None] and replayed[3:] == [8, 8, 8], "in the second stage alone"


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_a_run_whose_stored_attempts_do_not_fit_is_refused(model_folder: Path, tmp_path: Path) -> None:
    trained_with_stops(run_config(model_folder), tmp_path / "run", most=4)
    load = ReplayPool.load_state_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ReplayPool, "load_state_dict", lambda pool, state, problems: load(pool, {**state, "episodes": []}, problems)
        )
        with pytest.raises(CheckpointError, match=r"does not fit its run .*fewer tokens than the checkpoint"):
            resume(tmp_path / "run")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"reward_weights": [1], "kl_coefs": [{}], "replay": {}}, r"replay with one turn"),
        ({"replay": {}, "offline_share": 0.5}, r"replay with offline_share = 0.5: .* leave one of them out"),
        ({"replay": {}, "max_gen_batches": 2}, r"replay with max_gen_batches = 2: .* leave one of them out"),
        ({"replay": {"share": 0.1}}, r"replay.share = 0.1 makes 0 of the 4 groups of a step replay"),
        ({"replay": {"share": 0.9}}, r"replay.share = 0.9 makes 4 of the 4 groups of a step replay"),
        ({"replay": {"share": 0.5}, "batch_size": 4}, r"replay.share = 0.5 makes 0 of the 1 groups of a step replay"),
    ],
)
def test_a_replay_that_cannot_be_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(stage=stage, rollout={"batch_size": 16})


def test_runs_without_it_keep_their_digest_and_their_checkpoints() -> None:
    plain = settings()
    assert config_digest(plain) == config_digest(settings(stage={"replay": None}))
    assert config_digest(plain) != config_digest(settings(stage={"replay": {"share": 0.5}}))
    assert "replay" not in make_trainer(plain).state_dict()
    assert not {"replayed", "replay_correct_if_correct"} & make_trainer(plain).step().metrics.keys()


def test_the_budget_counts_what_the_base_samples() -> None:
    def completions_of(**replay: Any) -> int:
        return spent(settings(stage={"replay": {"share": 0.5, **replay}})).completions

    assert completions_of() == 4 * 16
    assert completions_of(pool="base", size=7) == 4 * 16 + 14
