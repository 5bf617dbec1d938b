"""Turns of the model that are no attempts: asked for, read by the next attempt, and counted nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.engines import ScriptedEngine
from support.episodes import problem
from support.models import tiny_model
from support.packing import pack_episodes
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

from selfcorrect import evaluate
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.engines import HFEngine, Request, Sampling
from selfcorrect.errors import ConfigError
from selfcorrect.report.episode_text import episode_text
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.rollout import RolloutRequest, check_context, roll_out
from selfcorrect.script import FEEDBACK, Script, UserTurn
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.timing import Clock
from selfcorrect.types import Episode, Outcome, Role, StopReason, Turn, Verdict
from selfcorrect.zoo.addition import make_tokenizer

END, SAMPLING = 2, Sampling(1.0, 4)
REFINE = Script(first="{prompt}", revise=(UserTurn("1=", Role.FEEDBACK), "2="))
TOKENIZER = make_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def play(script: Script, answers: Sequence[str], **more: Any) -> tuple[Episode, ScriptedEngine, FunctionVerifier]:
    """One episode in which the model gives ``answers``, its turns in order."""
    engine = ScriptedEngine(lambda request: (*ids(answers[request.key.turn]), END), END)
    verifier = FunctionVerifier(lambda problem, text: text == problem.reference)
    chosen = [RolloutRequest(problem("p", "1+2", "3"), 0, 0, "test", 0)]
    chat = ChatFormat(TOKENIZER, script)
    (played,) = roll_out(chosen, engine=engine, chat=chat, verifier=verifier, sampling=SAMPLING, **more)
    return played, engine, verifier


# ---------------------------------------------------------------- the script


def test_several_instructions_take_turns() -> None:
    said = [turn.text for turn in Script(revise=("A", "B {prompt}"), turns=4).user_turns("1+1")]
    assert said == ["1+1", "A", "B 1+1", "A"]


def test_attempts_are_counted_and_feedback_is_not() -> None:
    said = [(turn.text, turn.role is Role.ATTEMPT) for turn in REFINE.with_turns(3).user_turns("x")]
    assert said == [("x", True), ("1=", False), ("2=", True), ("1=", False), ("2=", True)]
    assert [turn.text for turn in REFINE.with_turns(1).user_turns("x")] == ["x"]


def test_self_refine_asks_for_feedback_before_every_revision() -> None:
    script = Script(revise="Rewrite.").with_feedback()
    assert script.later == (UserTurn(FEEDBACK, Role.FEEDBACK), UserTurn("Rewrite."))
    assert Script(revise=("A", "B")).with_feedback("F").later[2:] == (UserTurn("F", Role.FEEDBACK), UserTurn("B"))


@pytest.mark.parametrize(
    "revise", [(), (UserTurn("a", Role.FEEDBACK),), (3,), ({"txt": "a"},), ({"text": "a", "role": "hint"},)]
)
def test_a_script_without_a_later_attempt_is_refused(revise: Any) -> None:
    with pytest.raises(ConfigError, match=r"script\.revise|role = 'hint'"):
        Script(revise=revise)


def test_settings_hold_such_turns_and_are_read_back() -> None:
    config = make_config({"task": {"revise": [{"text": "Any error?", "role": "feedback"}, "Again."]}})
    assert config.task.revise == (UserTurn("Any error?", Role.FEEDBACK), "Again.")
    assert reread(config) == config
    for wrong in ({"rol": "feedback"}, {"atempt": False}, {"attempt": False, "role": "attempt"}, {"role": "hint"}):
        with pytest.raises(ConfigError, match=r"task\.revise"):
            make_config({"task": {"revise": [{"text": "Any error?", **wrong}]}})


@pytest.mark.parametrize("attempt", [True, False])
def test_older_settings_mean_the_same_and_are_written_with_roles(attempt: bool) -> None:
    role = Role.ATTEMPT if attempt else Role.FEEDBACK
    older = make_config({"task": {"revise": [{"text": "Any error?", "attempt": attempt}, "Again."]}})
    assert older == make_config({"task": {"revise": [{"text": "Any error?", "role": role.value}, "Again."]}})
    assert older.task.revise == (UserTurn("Any error?", role), "Again.")
    assert f'role = "{role}"' in to_toml(older) and "attempt =" not in to_toml(older)
    assert Script(revise=({"text": "a", "attempt": attempt}, "b")).later == (UserTurn("a", role), UserTurn("b"))  # type: ignore[arg-type]


def test_only_an_attempt_has_a_verdict() -> None:
    parts: Any = ((1,), (2,), (0.0,), "x", StopReason.END)
    for verdict, role in ((None, Role.ATTEMPT), (Verdict(Outcome.CORRECT), Role.FEEDBACK)):
        with pytest.raises(ValueError, match=f"role {role}"):
            Turn(*parts, verdict, role=role)


def reread(config: Config) -> Config:
    import tomllib

    return make_config(tomllib.loads(to_toml(config)))


# ---------------------------------------------------------------- playing it


def test_the_revision_reads_the_attempt_and_the_feedback_and_only_attempts_are_verified() -> None:
    played, engine, verifier = play(REFINE, ["4", "5", "3"])
    prompt, asked, again = (
        "<|user|>1+2<|end|><|assistant|>",
        "<|user|>1=<|end|><|assistant|>",
        "<|user|>2=<|end|><|assistant|>",
    )
    contexts = [request.ids for request in engine.asked]
    assert contexts[0] == ids(prompt)
    assert contexts[1] == ids(f"{prompt}4<|end|>{asked}")
    assert contexts[2] == ids(f"{prompt}4<|end|>{asked}5<|end|>{again}")
    assert [text for _, text in verifier.seen] == ["4", "3"]
    first, feedback, second = played.turns
    assert played.attempts == (first, second)
    assert (first.text, second.text, played.rewards) == ("4", "3", (0.0, 1.0))
    assert (feedback.role, feedback.text, feedback.verdict) == (Role.FEEDBACK, "5", None)
    assert (feedback.ids, feedback.stop) == (ids("5<|end|>"), StopReason.END)
    assert (feedback.observation_ids, second.observation_ids) == (ids(asked), ids(again))
    assert played.observations == (ids(prompt), ids(f"{asked}5<|end|>{again}"))
    assert played.ids == ids(f"{prompt}4<|end|>{asked}5<|end|>{again}3<|end|>")
    assert [turn.sampled for turn in played.turns] == [2, 2, 2]


def test_truncated_feedback_gets_its_end_from_the_glue() -> None:
    played, engine, _ = play(REFINE, ["4", "555555", "3"])
    assert engine.asked[2].ids == ids(
        "<|user|>1+2<|end|><|assistant|>4<|end|><|user|>1=<|end|><|assistant|>5555<|end|><|user|>2=<|end|><|assistant|>"
    )
    assert played.turns[1].stop is StopReason.LENGTH


def test_a_real_engine_continues_its_cache_through_the_feedback() -> None:
    model, chosen = tiny_model(3), [RolloutRequest(problem(f"p{i}", f"{i}+{i}"), 0, 0, "test", 0) for i in range(6)]
    chat = ChatFormat(TOKENIZER, REFINE)
    played = roll_out(chosen, engine=HFEngine(model), chat=chat, verifier=FunctionVerifier(), sampling=SAMPLING)
    for sample, episode in zip(chosen, played, strict=True):
        context = (*episode.observations[0], *episode.attempts[0].ids, *episode.observations[1])
        (alone,) = HFEngine(model).generate([Request(context, sample.key(2))], SAMPLING)
        assert alone.ids == episode.attempts[1].ids


def test_the_longest_episode_counts_the_feedback() -> None:
    chat = ChatFormat(TOKENIZER, REFINE)
    total = (
        len(chat.prompt("1+2")) + 3 * 10 + len(chat.observation_ids(1, "", ())) + len(chat.observation_ids(2, "", ()))
    )
    assert check_context([problem("p", "1+2")], chat, 10, total) == total
    with pytest.raises(ConfigError, match=f"{total} tokens"):
        check_context([problem("p", "1+2")], chat, 10, total - 1)


# ---------------------------------------------------------------- what becomes of it


def test_feedback_is_context_only_for_the_learner() -> None:
    played, _, _ = play(REFINE, ["4", "5", "3"])
    rows = pack_episodes([played], [0], pad_id=0)
    scored = rows.tokens_BT[rows.turn_BT >= 0].tolist()
    assert tuple(scored) == ids("4<|end|>3<|end|>")
    assert rows.turn_S.tolist() == [0, 0, 1, 1]


def test_a_stage_with_feedback_trains_as_many_turns_as_it_has_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "total", lambda clock: 2.0)
    trainer = make_trainer(settings())
    trainer.sampler.chat = ChatFormat(TOKENIZER, REFINE)
    record = trainer.step()
    assert {f"r{k}" for k in (1, 2)} <= set(record.metrics) and "r3" not in record.metrics
    sampled = sum(len(turn.ids) for episode in record.episodes for turn in episode.turns)
    assert record.metrics["completions"] == 3 * len(record.episodes)
    assert record.metrics["sampled_tokens"] == sampled and record.tokens_per_second == sampled / 2
    assert record.metrics["gradient_norm_t2"] > 0


def test_the_second_accuracy_is_the_revisions(tmp_path: Path) -> None:
    """Every attempt is a digit, every feedback none, so only a count of attempts gives 100 %."""
    lm = tiny_model(3)
    task = RowsTask(
        None, lambda text, reference, row: True, test_rows=[{"prompt": f"{i}+{i}", "answer": "1"} for i in range(4)],
        script=Script(revise="2="), trusted=True,
    )  # fmt: skip
    revise = [UserTurn("1=", Role.FEEDBACK), "2="]
    found = evaluate(lm.model, task, tokenizer=lm.tokenizer, max_tokens=3, revise=revise, out=tmp_path / "eval")
    assert len(found.results.turns) == 2
    lines = (tmp_path / "eval/episodes/eval-attempts.jsonl").read_text().splitlines()
    for line in lines:
        first, second = json.loads(line)["turns"]
        assert "asides" not in first
        assert len(second["asides"]) == 1
    identity = json.loads((tmp_path / "eval/eval.json").read_text())
    assert identity["script"]["revise"][0] == {"text": "1=", "role": "feedback"}


def test_records_and_traces_show_the_feedback_beside_the_attempts() -> None:
    played, _, _ = play(REFINE, ["4", "5", "3"])
    stored = StoredEpisode.of(played, stage="eval", step=0)
    record = stored.to_json()
    assert [turn["text"] for turn in record["turns"]] == ["4", "3"]
    assert record["turns"][1]["asides"] == [{"text": "5", "tokens": list(ids("5<|end|>")), "stop": "end"}]
    assert [attempt.correct for attempt in stored.graded()] == [False, True]
    shown = episode_text(stored).plain
    assert "feedback   5\n           no attempt, 2 tokens, stop: end\nattempt 2  3\n" in shown


def test_a_script_without_feedback_leaves_no_trace_of_it() -> None:
    played, _, _ = play(Script(revise="2="), ["4", "3"])
    assert all("asides" not in turn for turn in StoredEpisode.of(played, stage="eval", step=0).to_json()["turns"])
    assert load_config("demo").task.revise is None
