"""Test written conversations as demonstrations: which tokens are trained, how a file holds them, and what is rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.episodes import SCRIPT, problem
from support.gradients import gradient, relative_gap
from support.models import tiny_model

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import make_config
from selfcorrect.errors import ConfigError, ContextError, DataError
from selfcorrect.models.card import ModelCard
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.checks import RunProblems, check_run
from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.training.demonstration_trainer import DemonstrationTrainer
from selfcorrect.training.demonstrations import Demonstration, digest_of
from selfcorrect.training.transcripts import Transcript, WrittenReply, transcript_of
from selfcorrect.types import Split
from selfcorrect.zoo.addition import make_tokenizer

CHAT = ChatFormat(make_tokenizer(), SCRIPT.with_turns(1))
LONG, SHORT = "1" * 7, "34"
TALK = [
    {"role": "user", "content": "1+2="},
    {"role": "assistant", "content": LONG, "weight": 0},
    {"role": "user", "content": "=?"},
    {"role": "assistant", "content": SHORT},
]


def config(**settings: Any) -> Config:
    return make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 6},
            "optimizer": {"max_grad_norm": 1e9},
            "task": {"train_problems": 16, "dev_problems": 5},
            "stages": {"cold": {"method": "sft", "steps": 2, "batch_size": 1, **settings}},
            "eval": {"problems": 5},
        }
    )


def of_file(path: Path, lines: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    return problems_with(path, lines).demonstrations["cold"]


def problems_with(path: Path, lines: Sequence[Mapping[str, Any]]) -> RunProblems:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunProblems.of(config(demonstrations=str(path)), AdditionTask(digits=4))


def checked(path: Path, messages: Sequence[Mapping[str, Any]], context_limit: int = 256) -> int:
    """Check a run whose cold start has one transcript."""
    problems = problems_with(path, [{"messages": messages}])
    card = ModelCard(make_tokenizer(), context_limit)
    return check_run(config(demonstrations=str(path)), AdditionTask(digits=4), card, problems)


# ---------------------------------------------------------------- what is trained


def test_the_gradient_is_that_of_the_trained_replies_and_their_ends_alone() -> None:
    """Compare with a plain forward pass on the conversation as the template renders it."""
    made = DemonstrationTrainer(config(), "cold", policy=tiny_model(0), demonstrations=[transcript_of(TALK)], chat=CHAT)
    made.learner.update = lambda *_: 0.0  # type: ignore[method-assign]
    record = made.step()
    plain = [{key: m[key] for key in ("role", "content")} for m in TALK]
    ids = CHAT.ids(str(CHAT.tokenizer.apply_chat_template(plain[:3], tokenize=False, add_generation_prompt=True)))
    response = [*CHAT.ids(SHORT), CHAT.tokenizer.eos_token_id]
    assert len(response) == 3
    other = tiny_model(0)
    logprobs = other.model(torch.tensor([[*ids, *response]])).logits[0].log_softmax(-1)
    loss = -torch.stack([logprobs[len(ids) - 1 + k, token] for k, token in enumerate(response)]).mean()
    loss.backward()
    assert relative_gap(gradient(made.policy.model), gradient(other.model)) < 1e-10
    assert record.metrics["loss"] == pytest.approx(float(loss.detach()), abs=1e-12)


def test_a_reply_is_trained_unless_its_weight_is_0() -> None:
    for weights, trained in (((None, None), [LONG, SHORT]), ((1, 0), [LONG]), ((0, 1.0), [SHORT])):
        talk = [dict(message) for message in TALK]
        for message, weight in zip(talk[1::2], weights, strict=True):
            message.pop("weight", None)
            message.update({} if weight is None else {"weight": weight})
        made = transcript_of(talk)
        assert made.trained == trained
        sample = made.sample(CHAT)
        scored = "".join(CHAT.tokenizer.convert_ids_to_tokens(sample.ids[sample.turn >= 0].tolist()))
        assert scored == "".join(text + CHAT.tokenizer.eos_token for text in trained)


# ---------------------------------------------------------------- a file


def test_a_file_mixes_responses_and_conversations(tmp_path: Path) -> None:
    one = AdditionTask(digits=4).problems(Split.TRAIN, seed=0, limit=1)[0]
    system = {"role": "system", "content": "0"}
    lines = [{"messages": TALK}, {"id": one.id, "response": "3"}, {"messages": [system, *TALK], "source": "x"}]
    found = of_file(tmp_path / "shown.jsonl", lines)
    replies = (WrittenReply(LONG, False), WrittenReply(SHORT))
    assert found == [
        Transcript(None, ("1+2=", "=?"), replies),
        Demonstration(one, "3"),
        Transcript("0", ("1+2=", "=?"), replies),
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("1+2", r"messages = '1\+2' is no list of objects"),
        ([*TALK, "more"], "is no list of objects"),
        ([], "have the roles none"),
        (TALK[:3], "have the roles user, assistant, user: .* take turns"),
        (TALK[1:], "take turns"),
        ([TALK[0], TALK[0], TALK[1], TALK[3]], "take turns"),
        ([*TALK[:2], {"role": "system", "content": "0"}, TALK[1]], "take turns"),
        ([{"role": "tool", "content": "0"}, TALK[1]], "have the roles tool, assistant"),
        ([{"content": "0"}, TALK[1]], "have the roles None, assistant"),
        ([TALK[0], {"role": "assistant", "content": " "}], "the assistant's content = ' ' is no text"),
        ([TALK[0], {"role": "assistant", "content": [{"type": "text", "text": "3"}]}], "is no text"),
        ([{"role": "user"}, TALK[3]], "the user's content = None is no text"),
        ([TALK[0], {**TALK[3], "weight": 0.5}], r"weight = 0\.5: a reply is trained \(1\) or context only \(0\)"),
        ([TALK[0], {**TALK[3], "weight": True}], "weight = True"),
        (TALK[:2], "every reply has weight 0"),
    ],
)
def test_what_is_no_conversation_is_named_with_its_line(tmp_path: Path, messages: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"shown\.jsonl:2: .*{message}"):
        of_file(tmp_path / "shown.jsonl", [{"messages": TALK}, {"messages": messages}])


def test_the_digest_sees_what_is_trained_and_keeps_that_of_responses() -> None:
    all_trained = transcript_of([{**message, "weight": 1} for message in TALK])
    assert digest_of([transcript_of(TALK)]) != digest_of([all_trained])
    one = transcript_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    # hashlib.blake2b(repr((None, ("a",), (("b", True),))).encode(), digest_size=16)
    assert digest_of([one]) == "c01eab0b30bf63523f18553b041a6a84"
    # hashlib.blake2b(repr(("p1", "1+1=", "2")).encode(), digest_size=16), as before there were transcripts
    assert digest_of([Demonstration(problem("p1", "1+1="), "2")]) == "0ddeb4ff6deba98bfb0d264a973debc1"


# ---------------------------------------------------------------- before any work


def test_a_trained_reply_has_to_fit_a_turn_and_context_need_not(tmp_path: Path) -> None:
    checked(tmp_path / "a.jsonl", TALK)
    with pytest.raises(ConfigError, match=r"the transcript that begins '1\+2=' has 8 tokens.*rollout\.max_tokens = 6"):
        checked(tmp_path / "b.jsonl", [TALK[0], {**TALK[1], "weight": 1}])


def test_a_conversation_has_to_fit_the_models_context(tmp_path: Path) -> None:
    limit = checked(tmp_path / "a.jsonl", TALK)
    long = [TALK[0], {**TALK[1], "content": "1" * limit}, *TALK[2:]]
    with pytest.raises(ContextError, match=rf"has \d+ tokens, but the model's context is {limit}"):
        checked(tmp_path / "b.jsonl", long, limit)


@pytest.mark.parametrize(("split", "what"), [(Split.DEV, "development"), (Split.TEST, "evaluated")])
def test_a_problem_that_measures_the_model_is_refused_wherever_it_is_asked(
    tmp_path: Path, split: Split, what: str
) -> None:
    task = AdditionTask(digits=4)
    shown, other = (task.problems(each, seed=0, limit=5)[4].prompt for each in (split, Split.TRAIN))
    checked(tmp_path / "a.jsonl", [{**TALK[0], "content": other}, *TALK[1:]])
    for place in (0, 2):
        talk = [dict(message) for message in TALK]
        talk[place]["content"] = shown
        with pytest.raises(DataError, match=f"one of the run's {what} problems"):
            checked(tmp_path / "b.jsonl", talk)
