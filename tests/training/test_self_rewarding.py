"""Test the two stages of self-rewarding correction: what the first one trains on, its gradient, and a run of both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.crash import SETTINGS
from support.episodes import problem
from support.gradients import gradient, relative_gap
from support.models import tiny_model
from support.verifiers import FunctionVerifier

from selfcorrect.config.schema import Config
from selfcorrect.config.stages import SupervisedStage
from selfcorrect.config.toml import load_config, make_config
from selfcorrect.errors import ConfigError, InterruptedRun, TrainingError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.method.pairs import Pair, chosen_pairs, from_tensors, to_tensors
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.run import resume, train
from selfcorrect.script import Script, UserTurn
from selfcorrect.storage.files import read_jsonl
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.sft_trainer import SFTTrainer
from selfcorrect.types import Episode, Judgement, Role
from selfcorrect.zoo.addition import make_tokenizer

ASK = UserTurn("1=", Role.VERIFICATION, says_correct="8", says_wrong="Correct")
"""Two phrases that the tiny model can write, one token each."""
REVISE = (ASK, UserTurn("2=", when=Judgement.WRONG))
IFT = {"method": "self_rewarding_ift", "rounds": 1, "learn": "both", "correct_pairs": "equal"}


def settings(**supervised: Any) -> Config:
    return make_config(
        {
            "rollout": {"batch_size": 16, "group_size": 4, "max_tokens": 4},
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1e9},
            "task": {"train_problems": 16},
            "stages": {"stage": {"steps": 2, **IFT, **supervised}},
        }
    )


def trainer(config: Config | None = None, right: Any = lambda p, text: len(text) % 2 == 1) -> SFTTrainer:
    return SFTTrainer(
        config or settings(),
        "stage",
        policy=tiny_model(0),
        references={},
        problems=[problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
        chat=ChatFormat(make_tokenizer(), Script(revise=REVISE)),
        verifier=FunctionVerifier(right),
    )


def collected() -> tuple[SFTTrainer, list[Episode]]:
    """Return a trainer that has taken its sampling steps, and the episodes."""
    made = trainer()
    return made, [episode for _ in range(2) for episode in made.step().episodes]


STOPPED = Pair(0, (10,), (8,), (), (True, True), (7,), ())
CORRECTED = Pair(1, (20, 21), (8,), (22,), (False, True), (6, 2), (9,))
FAILED = Pair(1, (23,), (8,), (24,), (False, False), (6, 2), (9,))


# ---------------------------------------------------------------- what it trains on


def test_conversations_that_end_correctly_are_kept() -> None:
    pairs = [STOPPED, CORRECTED, FAILED, STOPPED, STOPPED]
    every = SupervisedStage(steps=3, method="self_rewarding_ift", correct_pairs="all")
    assert chosen_pairs(pairs, every, np.random.default_rng(0)) == [CORRECTED, STOPPED, STOPPED, STOPPED]
    balanced = every.model_copy(update={"correct_pairs": "equal"})
    assert chosen_pairs(pairs, balanced, np.random.default_rng(0)) == [CORRECTED, STOPPED]
    assert (
        chosen_pairs([CORRECTED] * 3 + [STOPPED] * 2, balanced, np.random.default_rng(0))
        == [CORRECTED] * 2 + [STOPPED] * 2
    )


def test_verifications_come_back_from_a_checkpoint_and_older_checkpoints_have_none() -> None:
    pairs = [STOPPED, CORRECTED]
    assert from_tensors(to_tensors(pairs)) == pairs
    older = {
        "problem": torch.tensor([3]),
        "right": torch.tensor([[False, True]]),
        "lengths": torch.tensor([2, 1, 1]),
        "ids": torch.tensor([1, 2, 7, 5], dtype=torch.int32),
    }
    assert from_tensors(older) == [Pair(3, (1, 2), (7,), (5,), (False, True))]


def test_a_step_samples_first_attempts_and_second_ones_where_they_are_incorrect() -> None:
    made = trainer()
    record = made.step()
    incorrect = sum(episode.rewards[0] == 0 for episode in record.episodes)
    assert 0 < incorrect < 16
    assert (record.metrics["completions"], record.metrics["updates"]) == (16 + incorrect, 0)
    attempts = [len(turn.ids) for episode in record.episodes for turn in (episode.turns[0], episode.turns[2])]
    assert record.metrics["sampled_tokens"] == sum(attempts), "nobody samples what is written"
    for episode in record.episodes:
        first, said, second = episode.turns
        assert said.said is (Judgement.CORRECT if first.verdict.correct else Judgement.WRONG)  # type: ignore[union-attr]
        assert said.ids == made.chat.given_ids("8" if second.skipped else "Correct")


@pytest.mark.pitfall(4)
@pytest.mark.parametrize(("learn", "first"), [("second", False), ("both", True)])
def test_true_verifications_and_correct_attempts_are_scored(learn: str, first: bool) -> None:
    """Of a conversation that stopped: with `both` its attempt too; of one that was corrected, never the incorrect attempt."""
    made = trainer(settings(learn=learn))
    episodes = [e for _ in range(2) for e in made.sampler.sample(_)]
    for corrected in (False, True):
        episode = next(e for e in episodes if (e.rewards[0] == 0) == corrected and e.rewards[1] == 1)
        (rows,) = made.rows([made.pair(episode)])
        assert rows.tokens_BT[0].tolist() == list(episode.ids)
        one, said, two = (turn.ids for turn in episode.turns)
        expected = [*said, *two] if corrected else [*(one if first else ()), *said]
        assert rows.tokens_BT[rows.turn_BT >= 0].tolist() == expected


def test_the_gradient_is_that_of_the_mean_log_likelihood_of_what_is_scored() -> None:
    """Compare with a plain forward pass over the episodes themselves, one conversation at a time."""
    made, episodes = collected()
    pairs = made.batch_of(made.pairs())
    assert {pair.correct[0] for pair in pairs} == {False, True}
    other, total, tokens = tiny_model(0), torch.zeros((), dtype=torch.float64), 0
    of_pair = {made.pair(episode): episode for episode in episodes}
    for p in pairs:
        ids = list(of_pair[p].ids)
        logprobs = other.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        end = 0
        for turn, reward in zip(of_pair[p].turns, of_pair[p].trained_rewards, strict=True):
            start = end + len(turn.observation_ids)
            end = start + len(turn.ids)
            if reward == 1:  # a true verification, a correct attempt
                total = total - sum(logprobs[at - 1, ids[at]] for at in range(start, end))
                tokens += end - start
    (total / tokens).backward()
    made.update = lambda: 0.0  # type: ignore[method-assign]
    record = made.step()
    assert relative_gap(gradient(made.policy.model), gradient(other.model)) < 1e-10
    assert record.metrics["loss"] == pytest.approx(float(total.detach()) / tokens, abs=1e-12)
    assert record.metrics["pairs"] == 2 * record.metrics["correct_pairs"], "as many of one kind as of the other"


def test_a_model_that_corrects_nothing_yields_no_conversation_to_train_on() -> None:
    made = trainer(right=lambda p, text: False)
    made.step(), made.step()
    with pytest.raises(TrainingError, match="none of 32 episodes yields a pair"):
        made.step()


def test_a_stage_of_corrections_alone_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"correct_pairs = 'none' with method = 'self_rewarding_ift'.*'equal' or 'all'"
    ):
        settings(correct_pairs="none")


# ---------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(3, dtype=torch.float32, hidden_size=16, intermediate_size=16, num_attention_heads=1).save(folder)
    return folder


def digits() -> RowsTask:
    """A task that a model with random weights sometimes solves: any text of odd length is correct."""
    rows = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(10)]
    return RowsTask(rows, lambda text, reference, row: len(text) % 2 == 1, trusted=True)


def both_stages(model_folder: Path, *changes: str) -> Config:
    config = load_config("demo", [*SETTINGS, f"model.source={model_folder}", "log.tensorboard=false", *changes])
    held = {"ift": 0.1}
    stage = {"method": "self_rewarding", "steps": 3, "reward_weights": [0, 1], "kl_coefs": [held, held]}
    stage |= {"verification": {"weight": 0.0, "kl_coefs": held}}
    stages = {"ift": {"steps": 2, **IFT}, "self_rewarding": stage}
    task = {**config.model_dump()["task"], "revise": REVISE}
    return make_config({**config.model_dump(), "task": task, "stages": stages})


def test_a_run_of_both_stages_anchors_the_second_to_the_first(model_folder: Path, tmp_path: Path) -> None:
    summary = train(both_stages(model_folder), tmp_path / "run", task=digits())
    assert list(summary.json["results"]) == ["base", "ift", "self_rewarding"]
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [(m["stage"], m["updates"]) for m in metrics] == [
        *[("ift", 0)] * 2, *[("ift", 1)] * 2, *[("self_rewarding", 1)] * 3,
    ]  # fmt: skip
    last = metrics[-3:]
    assert last[0]["kl_ift_t1"] == pytest.approx(0, abs=1e-6) and all("kl_base_t1" not in m for m in last)
    assert all(m["reward"] == m["r2"] for m in last), "the verdict of the last attempt that was made"


@pytest.mark.slow
@pytest.mark.pitfall(14)
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_stopped_run_of_both_stages_ends_with_the_same_bits(
    model_folder: Path, tmp_path: Path, stop_after: int
) -> None:
    config, seen = both_stages(model_folder, "log.save_every=1"), []
    train(config, tmp_path / "whole", task=digits())
    callbacks = Callbacks(
        on_step=lambda r: seen.append(r.metrics["stage"]), should_stop=lambda: 15 if len(seen) == stop_after else None
    )
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "stopped", task=digits(), callbacks=callbacks)
    resume(tmp_path / "stopped", task=digits())
    files = ["metrics.jsonl", *(f"checkpoints/{name}/model.safetensors" for name in ("ift", "self_rewarding"))]
    for file in files:
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_phrase_that_the_model_cannot_write_is_told_before_any_work(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its tokenizer has no such words; a run that only samples may still ask in them."""
    config = both_stages(model_folder)
    task = {**config.model_dump()["task"], "revise": Script(revise="2=").with_verification().revise}
    words = make_config({**config.model_dump(), "task": task})
    with caplog.at_level(logging.WARNING, "selfcorrect"):
        train(config, tmp_path / "digits", task=digits())
        assert "it will never say so" not in caplog.text
        train(words, tmp_path / "words", task=digits())
    assert "stages.ift teaches the model to write 'The answer is wrong', which reads as ''" in caplog.text
