"""Test the stage that verifies drafts on prompts of their own: what is shown, sampled, learnt, counted, stored and resumed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS
from support.episodes import problem
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.trainers import make_trainer, settings

from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.stage_labels import label_of_settings, stage_label
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.errors import ConfigError, ContextError, DataError, InterruptedRun, ModelError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.report.episode_archive import _attempts
from selfcorrect.report.episode_text import episode_text
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.rollout.draft_verification import check_draft_context
from selfcorrect.runs.run import resume, train
from selfcorrect.script import DRAFT_REQUEST, DRAFT_REQUEST_BY_DIGIT, SAYS_WRONG, Script, UserTurn
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.storage.files import read_jsonl
from selfcorrect.tasks import get_task
from selfcorrect.tasks.base import draft_request_of
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.trained_turns import check_script
from selfcorrect.training.trainer import Trainer
from selfcorrect.types import Episode, Judgement, Role
from selfcorrect.zoo.addition import make_tokenizer

ASK = UserTurn("{prompt}{attempt}=", Role.VERIFICATION, says_correct="8", says_wrong="9")
"""The bundled tokenizer has these words, and a model with random weights writes the digits now and then."""
STAGE: dict[str, Any] = {
    "method": "self_verification",
    "reward_weights": [1.5],
    "kl_coefs": [{"base": 0.1}],
    "verification": {"weight": 2.0, "kl_coefs": {"base": 0.3}},
}
TWO_TURNS = {**STAGE, "reward_weights": [1.5, 1.0], "kl_coefs": [{"base": 0.1}, {}], "bonus": 3.0}
BIG = {"batch_size": 32, "group_size": 4}


def verifying(stage: dict[str, Any] | None = None, **more: Any) -> Trainer:
    return make_trainer(settings(stage=stage or STAGE, rollout=BIG, **more), asked=ASK)


def parts(episodes: Any) -> tuple[list[Episode], list[Episode]]:
    """Return a step's episodes that solve, and those that verify."""
    return [e for e in episodes if not e.of_draft], [e for e in episodes if e.of_draft]


# ---------------------------------------------------------------- what is shown and sampled


def test_a_step_verifies_drafts_of_its_own_half_of_them_correct() -> None:
    episodes = verifying().step().episodes
    solved, verified = parts(episodes)
    assert [e.of_draft for e in episodes] == ([False] * 4 + [True] * 4) * 8, (
        "a group that solves, a group that verifies"
    )
    groups = [verified[i : i + 4] for i in range(0, 32, 4)]
    drafts = [group[0].turns[0] for group in groups]
    assert sum(draft.verdict.correct for draft in drafts) == 4  # type: ignore[union-attr]
    made = {(e.problem.id, e.turns[0].text): e.turns[0].verdict for e in solved}
    for group, draft in zip(groups, drafts, strict=True):
        assert {(e.problem.id, e.turns[0].text) for e in group} == {(group[0].problem.id, draft.text)}
        assert made[group[0].problem.id, draft.text] == draft.verdict
        assert len({e.turns[1].ids for e in group}) > 1, "each verification has its own random numbers"
    assert len({(e.problem.id, e.sample) for e in verified}) == 32


@pytest.mark.pitfall(9)
def test_a_verification_continues_a_first_message_with_the_problem_and_the_draft() -> None:
    trainer = verifying()
    tokens = trainer.sampler.chat.tokenizer
    solved, verified = parts(trainer.step().episodes)
    ids = {(e.problem.id, e.turns[0].text): e.turns[0].ids for e in solved}
    said = set()
    for episode in verified:
        draft, verification = episode.turns
        plain = tokens.decode(ids[episode.problem.id, draft.text], skip_special_tokens=True)
        assert tokens.decode(draft.observation_ids) == f"<|user|>{episode.problem.prompt}{plain}=<|end|><|assistant|>"
        assert episode.ids == (*draft.observation_ids, *verification.ids) and draft.ids == ()
        last = max((verification.text.rfind(word), word) for word in "89")
        expected = None if last[0] < 0 else Judgement.CORRECT if last[1] == "8" else Judgement.WRONG
        assert verification.said is expected
        said.add(expected)
        true = Judgement.CORRECT if draft.verdict.correct else Judgement.WRONG  # type: ignore[union-attr]
        assert episode.trained_rewards == (float(draft.verdict.correct), float(expected is true))  # type: ignore[union-attr]
    assert said == {None, *Judgement}


def test_the_problems_text_and_special_tokens_cannot_move_the_draft() -> None:
    chat = ChatFormat(make_tokenizer(), Script(system="7"), asked_of_drafts=ASK)
    tokens = chat.tokenizer
    shown = chat.draft_prompt("1+{attempt}2", (7, 2, 3, 8))  # 1, <|end|>, <|user|>, 2
    assert tokens.decode(shown) == tokens.decode(
        chat.ids("<|system|>7<|end|><|user|>1+{attempt}212=<|end|><|assistant|>")
    )
    twice = "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}"
    tokens.chat_template = twice
    with pytest.raises(ModelError, match="shows the message that asks to verify a draft 2 times"):
        ChatFormat(tokens, Script(), asked_of_drafts=ASK).draft_prompt("1+2", (7,))


def test_two_turns_are_solved_and_their_first_attempts_verified() -> None:
    trainer = verifying(TWO_TURNS)
    assert [turn.name for turn in trainer.turns] == ["t1", "t2", "v1"]
    record = trainer.step()
    solved, verified = parts(record.episodes)
    assert all([turn.skipped for turn in e.turns] == [False, False, True] for e in solved)
    assert all([turn.skipped for turn in e.turns] == [False, True, False] for e in verified)
    firsts = {(e.problem.id, e.turns[0].text) for e in solved}
    assert all((e.problem.id, e.turns[0].text) in firsts for e in verified)
    assert record.metrics["completions"] == 3 * 32 and "skipped_t2" not in record.metrics


# ---------------------------------------------------------------- what is learnt


def logprob(model: Any, episode: Episode, k: int) -> torch.Tensor:
    """Return the log-probability of a turn, by `transformers`' own forward pass of this one row."""
    logp = torch.log_softmax(model(torch.tensor([episode.ids])).logits[0], -1)
    begin = sum(len(turn.observation_ids) + len(turn.ids) for turn in episode.turns[:k])
    begin += len(episode.turns[k].observation_ids)
    return torch.stack([logp[begin + t - 1, token] for t, token in enumerate(episode.turns[k].ids)]).sum()


@pytest.mark.pitfall(4)
@pytest.mark.parametrize("micro_batch_tokens", [10**9, 60])
@pytest.mark.parametrize("stage", [STAGE, TWO_TURNS], ids=["one turn", "two turns"])
def test_the_gradient_of_a_step_row_by_row(stage: dict[str, Any], micro_batch_tokens: int) -> None:
    """Attempts are compared in their group of episodes, verifications in their group of one draft; two means are added."""
    trainer = verifying(stage, optimizer={"micro_batch_tokens": micro_batch_tokens})
    episodes = trainer.sampler.sample_step(0).learnt
    batch = trainer.pack_rollout(episodes)
    trainer.accumulate_gradient(batch, trainer.advantages(batch), first=False)
    policy, base = tiny_model(0).model, tiny_model(1).model
    loss = torch.zeros((), dtype=torch.float64)
    held = [0.1, 0.0, 0.3] if len(stage["reward_weights"]) == 2 else [0.1, 0.3]
    for begin in range(0, len(episodes), 4):
        group = episodes[begin : begin + 4]
        for k in [len(held) - 1] if group[0].of_draft else range(len(held) - 1):
            mine = [logprob(policy, e, k) for e in group]
            ratio = [float((p - logprob(base, e, k)).detach()) for p, e in zip(mine, group, strict=True)]
            earned = [earns(stage, e, k) - held[k] * r for e, r in zip(group, ratio, strict=True)]
            for i, p in enumerate(mine):
                loss = loss - (earned[i] - (sum(earned) - earned[i]) / 3) * p / 32
    loss.backward()
    assert relative_gap(gradient(trainer.policy), gradient(policy)) < 1e-9


def earns(stage: dict[str, Any], episode: Episode, k: int) -> float:
    r = episode.trained_rewards
    if episode.of_draft:
        return stage["verification"]["weight"] * r[-1]
    return stage["reward_weights"][k] * r[k] + (stage["bonus"] * (r[1] - r[0]) if k else 0.0)


def test_metrics_are_those_of_either_task() -> None:
    record = verifying(optimizer={"tis_cap": 2.0}).step()
    solved, verified = parts(record.episodes)
    found = record.metrics
    assert (found["completions"], found["updates"]) == (64, 1)
    assert found["sampled_tokens"] == sum(len(turn.ids) for e in record.episodes for turn in e.turns)
    assert found["r1"] == sum(e.rewards[0] for e in solved) / 32
    assert found["rv1"] == sum(e.trained_rewards[1] for e in verified) / 32 and 0 < found["rv1"] < 1
    assert found["correct_drafts"] == 0.5 and found["r1"] != 0.5
    assert found["reward"] == pytest.approx(1.5 * found["r1"] + 2.0 * found["rv1"])
    assert found["tokens_t1"] == sum(len(e.turns[0].ids) for e in solved) / 32
    assert found["tokens_v1"] == sum(len(e.turns[1].ids) for e in verified) / 32
    assert found["max_logprob_diff"] < 1e-9
    policy, base = tiny_model(0).model, tiny_model(1).model
    ratios = [float((logprob(policy, e, 1) - logprob(base, e, 1)).detach()) for e in verified]
    assert found["kl_base_v1"] == pytest.approx(sum(ratios) / 32, abs=1e-9)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revisions": 2, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}, "revisions = 2"),
        ({"max_gen_batches": 2}, "max_gen_batches = 2"),
        ({"offline_share": 0.5, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}, "offline_share = 0.5"),
        ({"adaptive": {}}, "adaptive"),
        ({"replay": {}, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}, "replay"),
        ({"baseline": "fitted"}, "baseline = 'fitted'"),
    ],
)
def test_settings_that_are_for_attempts_alone_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*leave {message.split(maxsplit=1)[0]} out"):
        settings(stage={**STAGE, **change})


def test_a_script_with_verifications_of_its_own_is_refused() -> None:
    stage = settings(stage=STAGE).stages["stage"]
    check_script("s", stage, Script())
    with pytest.raises(ConfigError, match="also asks for verifications in the conversation: leave these out"):
        check_script("s", stage, Script().with_verification())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("Is it right? {attempt}", r"must hold \{prompt\}"),
        ("{prompt} {attempt} {attempt}", r"\{attempt\}, which stands for the draft, once"),
        ({"text": "{prompt} {attempt}", "role": "feedback"}, 'role = "feedback"'),
        ({"text": "{prompt} {attempt}", "when": "wrong"}, "when = wrong"),
        ({"text": "{prompt} {attempt}", "says_correct": "0", "says_wrong": "0"}, "they must differ"),
        ({"text": "{prompt} {attempt}", "sense": 1}, "sense"),
        (7, "draft_request"),
    ],
)
def test_a_request_that_shows_no_draft_is_refused(request_: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"task": {"draft_request": request_}})


def test_a_prompt_with_a_draft_must_fit_the_context() -> None:
    chat = ChatFormat(make_tokenizer(), Script(), asked_of_drafts=ASK)
    problems = [problem("p", "1+2"), problem("longest", "123+4")]
    whole = len(chat.ids("<|user|>123+4=<|end|><|assistant|>")) + 2 * 5
    assert check_draft_context(problems, chat, 5, whole) == whole
    with pytest.raises(ContextError, match=f"could take {whole} tokens .*'longest'.*context is {whole - 1}"):
        check_draft_context(problems, chat, 5, whole - 1)


# ---------------------------------------------------------------- settings


def test_the_request_is_the_configured_one_the_tasks_or_the_packages() -> None:
    addition, plain = get_task("addition"), RowsTask([{"prompt": "1", "answer": "1"}], lambda *_: True)
    assert draft_request_of(make_config({}), addition) == DRAFT_REQUEST_BY_DIGIT
    assert draft_request_of(make_config({}), plain) == DRAFT_REQUEST
    assert DRAFT_REQUEST.phrases[1] == SAYS_WRONG and SAYS_WRONG in DRAFT_REQUEST.text
    told = make_config(
        {"task": {"draft_request": {"text": "{prompt}: {attempt}?", "says_correct": "y", "says_wrong": "n"}}}
    )
    expected = UserTurn("{prompt}: {attempt}?", Role.VERIFICATION, says_correct="y", says_wrong="n")
    assert draft_request_of(told, addition) == expected
    assert make_config({"task": {"draft_request": "{prompt} {attempt}"}}).task.draft_request == UserTurn(
        "{prompt} {attempt}", Role.VERIFICATION
    )


def test_a_run_keeps_the_request_in_its_config_and_older_runs_keep_their_digest(tmp_path: Path) -> None:
    told = make_config({"task": {"draft_request": "{prompt} {attempt}"}})
    (tmp_path / "config.toml").write_text(to_toml(told))
    assert load_config(tmp_path / "config.toml") == told
    assert config_digest(make_config({})) != config_digest(told)
    assert "draft_request" not in to_toml(make_config({}))


def test_a_stage_that_verifies_drafts_is_not_called_single_turn() -> None:
    for method, label in (("self_verification", "s"), ("score", "single-turn (s)")):
        settings_ = {"stages": {"s": {"steps": 1, "method": method, "reward_weights": [1], "kl_coefs": [{}]}}}
        assert stage_label(make_config(settings_), "s") == label_of_settings(settings_, "s") == label


# ---------------------------------------------------------------- stored, shown, resumed


def test_episodes_are_stored_and_shown_with_the_verification_after_the_draft() -> None:
    _, verified = parts(verifying().step().episodes)
    episode = next(e for e in verified if e.turns[1].said is Judgement.WRONG)
    stored = StoredEpisode.of(episode, stage="s", step=1)
    line = json.loads(json.dumps(stored.to_json()))
    assert StoredEpisode.from_json(line) == stored
    (attempt,) = line["turns"]
    assert attempt["tokens"] == [] and attempt["after"][0]["said"] == "wrong"
    text = episode_text(stored).plain
    assert text.index("attempt 1") < text.index("verdict    ") and "says wrong" in text
    assert next(_attempts(stored))[6] == [[episode.turns[1].text, "wrong", "after"]]
    line["turns"][0]["after"][0]["role"] = "attempt"
    with pytest.raises(DataError, match="after holds an attempt"):
        StoredEpisode.from_json(line)


def run_config(model_folder: Path, *changes: str) -> Config:
    config = load_config("demo", [*SETTINGS, f"model.source={model_folder}", "log.tensorboard=false", *changes])
    task = {**config.model_dump()["task"], "draft_request": ASK.to_json()}
    return make_config({**config.model_dump(), "task": task, "stages": {"both": {"steps": 4, **copy.deepcopy(STAGE)}}})


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_model(3, dtype=torch.float32).save(tmp_path / "model")
    return tmp_path / "model"


def digits() -> RowsTask:
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(10)]
    return RowsTask(rows, lambda text, reference, row: len(text) % 2 == 1, trusted=True)


def test_a_run_evaluates_two_attempts_and_logs_both_tasks(model_folder: Path, tmp_path: Path) -> None:
    summary = train(run_config(model_folder, "eval.turns=2", "log.episodes=16"), tmp_path / "run", task=digits())
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [m["completions"] for m in metrics] == [16] * 4 and {"rv1", "correct_drafts", "kl_base_v1"} <= set(
        metrics[0]
    )
    assert len(summary.json["results"]["both"]["turns"]) == 2 and "verifications" not in summary.json["results"]["both"]
    logged = [StoredEpisode.from_json(line) for line in read_jsonl(tmp_path / "run/episodes/train-both.jsonl")]
    roles = [episode.turns[-1].skipped for episode in logged if episode.step == 1]
    assert roles == ([True] * 4 + [False] * 4) * 2


def test_a_run_whose_verifications_exceed_the_context_does_not_start(model_folder: Path, tmp_path: Path) -> None:
    """One attempt has half of the context, so it fits with its prompt; a draft and its verification do not."""
    half = tiny_model(3).context_limit // 2
    with pytest.raises(ContextError, match="verification"):
        train(run_config(model_folder, "eval.turns=1", f"rollout.max_tokens={half}"), tmp_path / "run", task=digits())
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.parametrize("stop_after", [1, 3])
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_stopped_run_ends_with_the_same_bits(model_folder: Path, tmp_path: Path, ahead: int, stop_after: int) -> None:
    changes = ["log.save_every=1", f"rollout.ahead={ahead}", *(["optimizer.tis_cap=2.0"] if ahead else [])]
    config, seen = run_config(model_folder, *changes), list[Any]()
    train(config, tmp_path / "whole", task=digits())
    callbacks = Callbacks(on_step=seen.append, should_stop=lambda: 15 if len(seen) == stop_after else None)
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "stopped", task=digits(), callbacks=callbacks)
    resume(tmp_path / "stopped", task=digits())
    for file in ("metrics.jsonl", "checkpoints/both/model.safetensors", "episodes/train-both.jsonl"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
