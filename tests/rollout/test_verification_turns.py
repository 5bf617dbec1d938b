"""Verification turns and the turns that depend on them: asked for, judged, skipped, stored, shown, counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from support.engines import ScriptedEngine
from support.episodes import problem
from support.models import tiny_model
from support.packing import pack_episodes
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect import evaluate
from selfcorrect.config.digest import LATER_OF_STAGES, config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import make_config, to_toml
from selfcorrect.engines import Completion, HFEngine, Reply, Request, Sampling
from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.rescore import rescore
from selfcorrect.evaluation.verification import verifications
from selfcorrect.method import pag
from selfcorrect.method.base import StepOutcome
from selfcorrect.report.episode_archive import _attempts
from selfcorrect.report.episode_text import episode_text
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.chat_rollout import Written, converse, judged
from selfcorrect.rollout.rollout import GivenAttempt, RolloutRequest, roll_out, shuffled_verdicts
from selfcorrect.rollout.served_context import MessageContext
from selfcorrect.script import SAID_WRONG, VERIFY, Script, UserTurn, judgement
from selfcorrect.storage.episode_log import StoredEpisode, read_episodes
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.stage_trainer import completions, sampled_tokens
from selfcorrect.training.step_metrics import verification_metrics
from selfcorrect.training.trained_turns import check_script
from selfcorrect.types import Episode, Judgement, Outcome, Role, StopReason, Turn
from selfcorrect.zoo.addition import make_tokenizer

END, SAMPLING = 2, Sampling(1.0, 4)
ASK = UserTurn("1=", Role.VERIFICATION, says_correct="8", says_wrong="9")
IF_WRONG = Script(revise=(ASK, UserTurn("2=", when=Judgement.WRONG)))
ALWAYS = Script(revise=(ASK, "2="))
TOKENIZER = make_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def play(
    script: Script, *answers: Sequence[str], told: bool = False
) -> tuple[list[Episode], ScriptedEngine, FunctionVerifier]:
    """One episode for each of ``answers``, the model's turns in order; 3 is correct."""
    engine = ScriptedEngine(lambda request: (*ids(answers[request.key.sample][request.key.turn]), END), END)
    verifier = FunctionVerifier(lambda problem, text: text == problem.reference)
    chosen = [RolloutRequest(problem("p", "1+2", "3"), sample, 0, "test", 0) for sample in range(len(answers))]
    chat = ChatFormat(TOKENIZER, script)
    episodes = roll_out(chosen, engine=engine, chat=chat, verifier=verifier, sampling=SAMPLING, told=told)
    return episodes, engine, verifier


REVISED, STOPPED, SILENT, TRUSTED = ("4", "9", "3"), ("3", "98"), ("4", "77"), ("4", "8")


# ---------------------------------------------------------------- the judgement and the script


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is correct.", "correct"),
        ("... so THE ANSWER IS WRONG", "wrong"),
        ("The answer is wrong? No, the carry is right. The answer is correct", "correct"),
        ("The answer is correct? No. The answer is wrong.", "wrong"),
        ("The answer is incorrect.", None),
        ("", None),
        ("<think>The answer is wrong.</think>The answer is correct.", "correct"),
        ("<think>The answer is wrong.", None),
    ],
)
def test_the_last_phrase_outside_reasoning_is_the_judgement(text: str, said: str | None) -> None:
    assert judgement(text) == said


def test_of_two_phrases_that_end_at_one_place_the_longer_counts() -> None:
    assert judgement("this is incorrect", "correct", "incorrect") is Judgement.WRONG
    assert judgement("this is correct", "correct", "incorrect") is Judgement.CORRECT
    assert judgement("incorrect, no: correct", "correct", "incorrect") is Judgement.CORRECT


def test_a_script_with_verification_asks_again_only_if_wrong() -> None:
    script = Script(revise="Rewrite.").with_verification()
    assert script.later == (
        UserTurn(VERIFY, Role.VERIFICATION),
        UserTurn(SAID_WRONG + "Rewrite.", when=Judgement.WRONG),
    )
    assert script.conditional and not ALWAYS.conditional
    assert Script(revise=(UserTurn("F", Role.FEEDBACK), "R")).with_verification(ASK, "").later == (
        ASK,
        UserTurn("R", when=Judgement.WRONG),
    )
    assert [turn.role for turn in script.with_turns(1).user_turns("x")] == [Role.ATTEMPT]


@pytest.mark.parametrize(
    ("revise", "message"),
    [
        ([{"text": "a", "when": "wrong"}], "no turn before it has"),
        ([{"text": "a", "when": "wrong"}, {"text": "b", "role": "verification"}], "no turn before it has"),
        ([{"text": "v", "role": "verification"}, {"text": "a", "when": "right"}], "when"),
        ([{"text": "v", "role": "verification"}], "no attempt"),
        ([{"text": "v", "role": "verification", "says_correct": " "}, "a"], "must differ, and have text"),
        ([{"text": "v", "role": "verification", "says_correct": "No", "says_wrong": "no"}, "a"], "must differ"),
        ([{"text": "a", "says_wrong": "no"}], "are for"),
    ],
)
def test_scripts_that_cannot_be_held_are_rejected(revise: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Script(revise=revise)


def test_settings_hold_such_turns_and_are_read_back() -> None:
    table = [{"text": "v", "role": "verification", "says_wrong": "no"}, {"text": "a", "when": "wrong"}]
    config = make_config({"task": {"revise": table}})
    assert config.task.revise == (
        UserTurn("v", Role.VERIFICATION, says_wrong="no"),
        UserTurn("a", when=Judgement.WRONG),
    )
    assert reread(config) == config
    script = Script(revise=config.task.revise)
    assert Script(**script.to_json()) == script


def test_older_user_turns_are_written_as_before() -> None:
    """Their tables, and with them the digests of runs and the records of evaluations, hold nothing new."""
    config = make_config({"task": {"revise": [{"text": "f", "role": "feedback"}, "a"]}})
    assert config.model_dump(mode="json")["task"]["revise"] == [{"text": "f", "role": "feedback"}, "a"]
    assert Script(revise=("a",)).to_json()["revise"] == ({"text": "a", "role": "attempt"},)
    assert "verification" not in to_toml(config)
    with_default = {
        "stages": {"s": {"steps": 1, "reward_weights": [1], "kl_coefs": [{}], "verification": {"weight": 2}}}
    }
    without = {"stages": {"s": {"steps": 1, "reward_weights": [1], "kl_coefs": [{}]}}}
    assert config_digest(make_config(with_default)) != config_digest(make_config(without))
    assert config_digest(make_config({"stages": {"s": {"method": "star", "steps": 3}}})), "it has no such setting"
    dumped = make_config(without).model_dump(mode="json")["stages"]["s"]
    assert {name for name in dumped if name in LATER_OF_STAGES} == set(LATER_OF_STAGES)
    assert all(dumped[name] == default for name, default in LATER_OF_STAGES.items())


def reread(config: Config) -> Config:
    import tomllib

    return make_config(tomllib.loads(to_toml(config)))


# ---------------------------------------------------------------- rolling it out


def test_a_second_attempt_follows_only_where_the_model_says_wrong() -> None:
    played, engine, verifier = play(IF_WRONG, REVISED, STOPPED, SILENT, TRUSTED)
    prompt, asked, again = (f"<|user|>{text}<|end|><|assistant|>" for text in ("1+2", "1=", "2="))
    assert [request.ids for request in engine.asked] == [
        *[ids(prompt)] * 4,
        *(ids(f"{prompt}{first}<|end|>{asked}") for first in "4344"),
        ids(f"{prompt}4<|end|>{asked}9<|end|>{again}"),
    ]
    assert [(request.key.sample, request.key.turn) for request in engine.asked][-1] == (0, 2)
    assert [text for _, text in verifier.seen] == ["4", "3", "3", "4", "4"]
    assert [episode.turns[1].said for episode in played] == [
        Judgement.WRONG,
        Judgement.CORRECT,
        None,
        Judgement.CORRECT,
    ]
    assert [episode.rewards for episode in played] == [(0, 1), (1, 1), (0, 0), (0, 0)]
    assert [episode.trained_rewards for episode in played] == [(0, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)]
    assert [episode.turns[2].skipped for episode in played] == [False, True, True, True]


def test_a_skipped_attempt_repeats_the_one_before_and_has_no_tokens() -> None:
    (played,), _, _ = play(IF_WRONG, STOPPED)
    first, _, second = played.turns
    assert (second.text, second.verdict, second.stop) == (first.text, first.verdict, StopReason.SKIPPED)
    assert (second.ids, second.observation_ids, second.sampled, second.online) == ((), (), 0, False)
    assert (completions([played]), sampled_tokens([played])) == (2, 2 + 3)
    assert played.ids == ids("<|user|>1+2<|end|><|assistant|>3<|end|><|user|>1=<|end|><|assistant|>98<|end|>")


def test_without_a_condition_the_second_attempt_always_follows() -> None:
    played, engine, _ = play(ALWAYS, REVISED, (*STOPPED, "5"))
    assert len(engine.asked) == 6 and not any(turn.skipped for episode in played for turn in episode.turns)


def test_a_conversation_that_ended_stays_ended() -> None:
    """With three attempts, the second verification of an ended conversation is skipped too."""
    played, engine, _ = play(IF_WRONG.with_turns(3), STOPPED, ("4", "9", "5", "8"), ("4", "9", "5", "9", "3"))
    assert [[turn.skipped for turn in e.turns] for e in played] == [
        [False, False, True, True, True],
        [False, False, False, False, True],
        [False] * 5,
    ]
    assert [e.rewards for e in played] == [(1, 1, 1), (0, 0, 0), (0, 0, 1)]
    assert played[0].turns[3].said is None and played[1].turns[4].text == "5"
    assert len(engine.asked) == 3 + 3 + 2 + 2 + 1


def test_no_later_condition_wakes_a_conversation_that_ended() -> None:
    again = (UserTurn("2=", when=Judgement.WRONG), UserTurn("=", when=Judgement.CORRECT))
    played, engine, _ = play(Script(revise=(ASK, *again), turns=3), STOPPED, ("4", "9", "5"))
    assert [[turn.skipped for turn in e.turns] for e in played] == [[False, False, True, True], [False] * 3 + [True]]
    assert len(engine.asked) == 2 + 2 + 1
    written, asked = held(Script(revise=(ASK, *again), turns=3), [reply(text) for text in STOPPED])
    assert asked == [0, 1] and [w.reply.stop for w in written[2:]] == [StopReason.SKIPPED] * 2


def test_the_last_verification_decides_even_if_feedback_follows_it() -> None:
    script = Script(revise=(ASK, UserTurn("1", Role.FEEDBACK), UserTurn("2=", when=Judgement.WRONG)))
    played, _, _ = play(script, ("4", "9", "8", "3"), ("4", "8", "9"))
    assert [e.turns[3].skipped for e in played] == [False, True]


def test_a_real_engine_continues_the_caches_of_the_conversations_that_go_on() -> None:
    """Which digit a tiny model writes last is chance, so either phrase occurs among many conversations."""
    ask = UserTurn("1=", Role.VERIFICATION, says_correct="+", says_wrong="=")
    chat = ChatFormat(TOKENIZER, Script(revise=(ask, UserTurn("2=", when=Judgement.WRONG))))
    chosen = [RolloutRequest(problem(f"p{i}", f"{i}+{i}"), 0, 0, "test", 0) for i in range(40)]
    model = tiny_model(3)
    played = roll_out(chosen, engine=HFEngine(model), chat=chat, verifier=FunctionVerifier(), sampling=SAMPLING)
    taken = [(sample, e) for sample, e in zip(chosen, played, strict=True) if not e.turns[2].skipped]
    assert 0 < len(taken) < len(played)
    for sample, episode in taken:
        context = episode.ids[: len(episode.ids) - len(episode.turns[2].ids)]
        (alone,) = HFEngine(model).generate([Request(context, sample.key(2))], SAMPLING)
        assert alone.ids == episode.turns[2].ids


def test_shuffled_verdicts_keep_a_skipped_attempt_equal_to_the_one_before() -> None:
    played, _, _ = play(IF_WRONG, REVISED, STOPPED)
    for seed in range(8):
        for episode in shuffled_verdicts(played, 2, np.random.default_rng(seed)):
            if episode.turns[2].skipped:
                assert episode.turns[2].verdict == episode.turns[0].verdict


def test_a_given_draft_is_judged_like_an_own_one() -> None:
    engine = ScriptedEngine(lambda request: (*ids("8"), END), END)
    verifier = FunctionVerifier(lambda problem, text: text == problem.reference)
    chosen = [RolloutRequest(problem("p", "1+2", "3"), 0, 0, "test", 0)]
    draft = GivenAttempt(Completion((*ids("3"), END), (0.0, 0.0), StopReason.END))
    (played,) = roll_out(
        chosen, engine=engine, chat=ChatFormat(TOKENIZER, IF_WRONG), verifier=verifier, sampling=SAMPLING, given=[draft]
    )
    assert played.rewards == (1, 1) and played.turns[1].said is Judgement.CORRECT


def test_verifications_that_are_told_are_true_and_nobody_samples_them() -> None:
    """The model would have said otherwise; it makes a second attempt after each incorrect one, and after no other."""
    played, engine, verifier = play(IF_WRONG, ("4", "8", "3"), ("3", "9", "5"), ("5", "8", "6"), told=True)
    assert [turn.text for episode in played for turn in episode.turns] == ["4", "9", "3", "3", "8", "3", "5", "9", "6"]
    assert [e.turns[1].said for e in played] == [Judgement.WRONG, Judgement.CORRECT, Judgement.WRONG]
    assert [e.trained_rewards for e in played] == [(0, 1, 1), (1, 1, 1), (0, 1, 0)]
    assert [e.turns[2].skipped for e in played] == [False, True, False]
    prompt, asked, again = (f"<|user|>{text}<|end|><|assistant|>" for text in ("1+2", "1=", "2="))
    assert [(request.key.sample, request.key.turn) for request in engine.asked] == [
        (0, 0), (1, 0), (2, 0), (0, 2), (2, 2),
    ]  # fmt: skip
    assert engine.asked[3].ids == ids(f"{prompt}4<|end|>{asked}9<|end|>{again}")
    assert [text for _, text in verifier.seen] == ["4", "3", "5", "3", "6"], "each attempt once"
    assert (completions(played), sampled_tokens(played)) == (5, 10)
    assert not any(e.turns[1].online for e in played) and all(e.turns[1].copied for e in played)


def test_a_told_verification_judges_the_attempt_before_feedback() -> None:
    script = Script(revise=(UserTurn("1", Role.FEEDBACK), ASK, UserTurn("2=", when=Judgement.WRONG)))
    played, _, _ = play(script, ("4", "3", "8", "3"), ("3", "4", "9", "5"), told=True)
    assert [e.turns[2].said for e in played] == [Judgement.WRONG, Judgement.CORRECT]


def test_a_told_phrase_has_at_most_the_tokens_of_a_turn() -> None:
    ask = UserTurn("1=", Role.VERIFICATION, says_correct="888888", says_wrong="999999")
    (played,), _, _ = play(Script(revise=(ask, UserTurn("2=", when=Judgement.WRONG))), ("4", "", "3"), told=True)
    assert (played.turns[1].ids, played.turns[1].stop) == (ids("9999"), StopReason.LENGTH)
    assert played.turns[1].said is Judgement.WRONG and played.turns[2].text == "3"


# ---------------------------------------------------------------- on a server


def held(script: Script, answers: Sequence[Reply]) -> tuple[list[Written], list[int]]:
    asked: list[int] = []

    async def replies(messages: Any, k: int) -> Reply:
        asked.append(k)
        return answers[k]

    async def hold() -> list[Written]:
        return await converse(problem("p", "1+2", "3"), script, MessageContext(), replies)

    return anyio.run(hold), asked


def reply(text: str) -> Reply:
    return Reply(text, StopReason.END, 5)


@pytest.mark.parametrize("answers", [REVISED, STOPPED, SILENT, TRUSTED])
def test_a_server_holds_the_same_conversations(answers: Sequence[str]) -> None:
    (expected,), _, _ = play(IF_WRONG, answers)
    written, asked = held(IF_WRONG, [reply(text) for text in answers])
    verifier = FunctionVerifier(lambda problem, text: text == problem.reference)
    (found,) = judged([(RolloutRequest(problem("p", "1+2", "3"), 0, 0, "test", 0), written)], verifier)
    assert asked == list(range(len(answers)))

    def shape(episode: Episode) -> list[Any]:
        return [(t.text, t.role, t.stop, t.said, t.verdict, t.online) for t in episode.turns]

    assert shape(found) == shape(expected)
    assert [StoredEpisode.of(found, stage="s", step=0).turns[k].length for k in range(3)] == [
        *[5] * len(answers),
        *[0] * (3 - len(answers)),
    ]


def test_what_follows_a_failed_verification_failed_too() -> None:
    failed = Reply("", StopReason.FAILED, None, failure="turn 2: no")
    written, asked = held(IF_WRONG, [reply("4"), failed])
    (found,) = judged([(RolloutRequest(problem("p", "1+2", "3"), 0, 0, "test", 0), written)], FunctionVerifier())
    assert asked == [0, 1]
    assert [turn.stop for turn in found.turns] == [StopReason.END, StopReason.FAILED, StopReason.FAILED]
    assert StoredEpisode.of(found, stage="s", step=0).failure == "turn 2: no"


# ---------------------------------------------------------------- what becomes of it


def test_attempts_and_verifications_are_trained() -> None:
    played, _, _ = play(IF_WRONG, REVISED, STOPPED)
    rows = pack_episodes(played, [0, 1], pad_id=0)
    assert tuple(rows.tokens_BT[rows.turn_BT >= 0].tolist()) == ids("4<|end|>9<|end|>3<|end|>3<|end|>98<|end|>")
    assert rows.turn_S.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 1]


def test_a_stage_counts_what_its_verifications_say() -> None:
    played, _, _ = play(IF_WRONG, REVISED, STOPPED, SILENT, TRUSTED)
    found = verification_metrics(played)
    assert found == {
        "rv1": 2 / 4,
        "says_wrong_v1": 1 / 4,
        "says_nothing_v1": 1 / 4,
        "truncated_v1": 0.0,
        "tokens_v1": (2 + 3 + 3 + 2) / 4,
        "skipped_t2": 3 / 4,
    }
    assert verification_metrics(play(Script(revise="2="), ("4", "3"))[0]) == {}


@pytest.mark.parametrize("method", ["pag", "s2r", "self_rewarding"])
def test_a_method_of_verifications_takes_a_step(method: str) -> None:
    ask = UserTurn("1=", Role.VERIFICATION, says_correct="+", says_wrong="=")
    script = Script(revise=(ask, UserTurn("2=", when=Judgement.WRONG)))
    stage = {
        "method": method,
        "bonus": 1.0,
        "kl_coefs": [{"base": 0.1}, {}],
        "verification": {"kl_coefs": {"base": 0.1}},
    }
    trainer = make_trainer(settings(stage=stage, rollout={"batch_size": 32}), script=script)
    record = trainer.step()
    metrics, turns = record.metrics, [turn for e in record.episodes for turn in e.turns]
    assert metrics["completions"] == sum(not turn.skipped for turn in turns) < len(turns)
    assert 0 < metrics["skipped_t2"] < 1
    taken = [e for e in record.episodes if not e.turns[2].skipped]
    assert metrics["tokens_t2"] == sum(len(e.turns[2].ids) for e in taken) / 32
    assert all(metrics[f"gradient_norm_{turn}"] > 0 for turn in ("t1", "v1", "t2"))
    assert {"kl_base_t1", "kl_base_v1", "entropy_v1", "r1", "r2"} <= set(metrics) and "r3" not in metrics
    assert metrics["reward"] == pytest.approx(metrics["r1"] + metrics["r2"] + metrics["rv1"])


@pytest.mark.parametrize("method", ["pag", "s2r", "self_rewarding"])
def test_methods_of_verifications_need_one(method: str) -> None:
    with pytest.raises(ConfigError, match=rf'method = "{method}" trains verifications, but task\.revise asks for none'):
        make_trainer(settings(stage={"method": method}))


def test_pags_advantages_of_attempts_alone_are_rejected() -> None:
    outcome = StepOutcome(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), 2)
    with pytest.raises(ConfigError, match=r'method = "pag" trains verifications, but task\.revise asks for none'):
        pag.advantages(outcome, make_trainer(settings()).stage)


@pytest.mark.parametrize("method", ["s2r", "self_rewarding"])
@pytest.mark.parametrize("baseline", ["none", "fitted"])
def test_some_methods_have_a_baseline_of_their_own(method: str, baseline: str) -> None:
    with pytest.raises(ConfigError, match=f"baseline = '{baseline}' with method = '{method}'"):
        settings(stage={"method": method, "baseline": baseline})


def test_the_outcome_of_a_trajectory_has_no_discount() -> None:
    with pytest.raises(ConfigError, match=r"discount = 0\.5 with method = 'self_rewarding'.*leave discount out"):
        settings(stage={"method": "self_rewarding", "discount": 0.5})


@pytest.mark.parametrize(
    ("script", "stage", "message"),
    [
        (
            Script(),
            {"method": "self_rewarding_ift", "steps": 3, "correct_pairs": "all"},
            "them of attempt, attempt: set",
        ),
        (
            Script(revise=(UserTurn("1", Role.FEEDBACK), ASK, "2=")),
            {"method": "self_rewarding_ift", "steps": 3, "correct_pairs": "all"},
            "them of attempt, feedback, verification, attempt: set",
        ),
        (IF_WRONG, {"method": "star", "steps": 3}, r"makes pairs of two attempts.*leave the condition out"),
        (ALWAYS, {"revisions": 2}, "revisions = 2"),
        (ALWAYS, {"baseline": "fitted"}, 'baseline = "fitted"'),
        (ALWAYS, {"max_gen_batches": 2}, "max_gen_batches = 2"),
        (Script(), {"verification": {"weight": 2.0}}, "asks for none"),
    ],
)
def test_stages_that_do_not_fit_the_script_are_rejected(script: Script, stage: dict[str, Any], message: str) -> None:
    plain = {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}
    config = make_config({"stages": {"s": stage if "method" in stage else {**plain, **stage}}})
    with pytest.raises(ConfigError, match=message):
        check_script("s", config.stages["s"], script)


def test_stages_that_fit_the_script_are_accepted() -> None:
    stage = {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}], "verification": {"weight": 2.0}}
    ift = {"method": "self_rewarding_ift", "steps": 3, "correct_pairs": "equal"}
    config = make_config({"stages": {"s": stage, "star": {"method": "star", "steps": 3}, "ift": ift}})
    check_script("s", config.stages["s"], IF_WRONG)
    check_script("ift", config.stages["ift"], IF_WRONG)
    check_script("star", config.stages["star"], ALWAYS)


def test_verifications_may_only_be_anchored_to_known_models() -> None:
    stage = {"steps": 1, "reward_weights": [1, 1], "kl_coefs": [{}, {}], "verification": {"kl_coefs": {"bas": 0.1}}}
    with pytest.raises(ConfigError, match=r"verification\.kl_coefs: each turn names the reference 'bas'"):
        make_config({"stages": {"s": stage}})
    stage["verification"] = {"kl_coefs": {"base": 0.1}}
    assert make_config({"stages": {"s": stage}}).stages["s"].references == ["base"]


def test_episodes_are_stored_and_read_back() -> None:
    for episode in play(IF_WRONG, REVISED, STOPPED, SILENT)[0]:
        stored = StoredEpisode.of(episode, stage="s", step=1)
        line = json.loads(json.dumps(stored.to_json()))
        assert StoredEpisode.from_json(line) == stored
        assert [len(stored.turns), len(line["turns"])] == [3, 2]
    line["turns"][1]["asides"][0]["role"] = "attempt"
    with pytest.raises(DataError, match="asides holds an attempt"):
        StoredEpisode.from_json(line)


def test_show_says_what_the_verification_said_and_which_attempt_stands() -> None:
    revised, stopped, silent = (
        episode_text(StoredEpisode.of(e, stage="s", step=1)).plain for e in play(IF_WRONG, REVISED, STOPPED, SILENT)[0]
    )
    assert "verdict    9\n           says wrong, 2 tokens" in revised and "attempt 2  3" in revised
    assert "says correct" in stopped and "attempt 2  not asked for: attempt 1 stands" in stopped
    assert "says nothing" in silent


def test_the_browser_gets_the_verification_and_the_skipped_attempt() -> None:
    revised, stopped = (StoredEpisode.of(e, stage="s", step=1) for e in play(IF_WRONG, REVISED, STOPPED)[0])
    assert [attempt[6:] for attempt in _attempts(revised)] == [[], [[["9", "wrong"]]]]
    assert [attempt[3:4] for attempt in _attempts(stopped)] == [[], [2]]


def test_an_evaluation_counts_what_the_model_says() -> None:
    played, _, _ = play(IF_WRONG, REVISED, STOPPED, SILENT, TRUSTED)
    stored = [StoredEpisode.of(e, stage="s", step=0) for e in played]
    (found,) = verifications(stored, seed=0)
    assert (found.taken, found.skipped, found.tokens) == (4, 0, 2.5)
    values = {name: rate.value for name, rate in found.rates.items()}
    assert values == {"accuracy": 2 / 4, "wrong_if_incorrect": 1 / 3, "wrong_if_correct": 0.0, "says_nothing": 1 / 4}
    assert found.to_json()["accuracy_ci95"][0] < 0.5 < found.to_json()["accuracy_ci95"][1]
    assert (
        verifications([StoredEpisode.of(play(Script(revise="2="), ("4", "3"))[0][0], stage="s", step=0)], seed=0) == []
    )


def test_a_turn_that_all_conversations_skip_has_no_rates() -> None:
    played, _, _ = play(IF_WRONG.with_turns(3), STOPPED)
    first, second = verifications([StoredEpisode.of(e, stage="s", step=0) for e in played], seed=0)
    assert (first.taken, second.taken, second.skipped) == (1, 0, 1)
    assert second.rates["accuracy"].value is None and second.tokens is None


def test_evaluate_and_rescore_read_such_a_script(tmp_path: Path) -> None:
    """The second accuracy is the first one's where the second attempt was skipped."""
    lm = tiny_model(3)
    task = RowsTask(
        None, lambda text, reference, row: text[:1] in "02468", trusted=True, script=Script(revise="2="),
        test_rows=[{"prompt": f"{i}+{i}", "answer": "1"} for i in range(24)],
    )  # fmt: skip
    revise = [UserTurn("1=", Role.VERIFICATION, says_correct="+", says_wrong="="), UserTurn("2=", when=Judgement.WRONG)]
    settings = {"tokenizer": lm.tokenizer, "max_tokens": 4, "temperature": 1.0, "controls": True, "revise": revise}
    found = evaluate(lm.model, task, out=tmp_path / "eval", **settings)
    skipped = [e.turns[2].skipped for e in found.episodes]
    assert 0 < sum(skipped) < 24
    for episode in found.episodes:
        assert not episode.turns[2].skipped or episode.graded()[0].correct is episode.graded()[1].correct
    assert found.to_json()["verifications"][0]["taken"] == 24
    assert found.to_json()["lengths"][1]["mean"] == sum(len(e.turns[2].tokens) for e in found.episodes) / 24
    sampled = sum(len(turn.tokens) for e in found.episodes for turn in e.turns)
    assert found.to_json()["tokens_per_problem"] == sampled / 24
    again = evaluate(lm.model, task, out=tmp_path / "eval", **settings)
    assert again.to_json() == found.to_json()
    rescored = rescore(tmp_path / "eval", task=task)
    assert rescored.evaluation.to_json() == found.to_json()
    files = (tmp_path / "eval/episodes").glob("*.jsonl")
    stored = [episode for file in files for episode in read_episodes(file)]
    assert rescored.verdicts == sum(not turn.skipped for episode in stored for turn in episode.attempts)


def test_a_turn_of_another_role_than_a_verification_says_nothing() -> None:
    (played,), _, _ = play(IF_WRONG, REVISED)
    assert [turn.said for turn in played.turns] == [None, Judgement.WRONG, None]
    assert Turn.not_taken(Role.VERIFICATION, played.turns).verdict is None
    assert played.turns[2].verdict is not None and played.turns[2].verdict.outcome is Outcome.CORRECT
