"""Test the supervised baselines: their training pairs, tokens and rounds, and that a killed run resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.crash import SETTINGS
from support.episodes import SCRIPT, problem
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
from selfcorrect.runs.checkpoints import longer
from selfcorrect.runs.run import resume, train
from selfcorrect.storage.files import read_jsonl
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.training.sft_trainer import SFTTrainer, place_of
from selfcorrect.zoo.addition import make_tokenizer

RNG = np.random.default_rng


def pair(place: int, first: int, second: int, right: Sequence[int]) -> Pair:
    """Return an episode of problem ``place`` whose attempts are one id each."""
    return Pair(place, (first,), (9,), (second,), (bool(right[0]), bool(right[1])))


COLLECTED = [
    pair(0, 10, 11, (0, 1)),
    pair(0, 12, 13, (0, 0)),
    pair(0, 14, 15, (1, 1)),
    pair(1, 20, 21, (1, 0)),
    pair(1, 22, 23, (1, 1)),
    pair(2, 30, 31, (0, 0)),
]
"""Problem 0 has correct responses 11, 14, 15; problem 1 has 20, 22, 23; problem 2 has none."""


def told(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    return [(p.first[0], p.second[0]) for p in pairs]


def chosen(collected: Sequence[Pair] = COLLECTED, seed: int = 0, **settings: Any) -> list[Pair]:
    return chosen_pairs(collected, SupervisedStage(steps=3, **settings), RNG(seed))


# ---------------------------------------------------------------- which pairs


def test_star_keeps_the_episodes_that_went_from_wrong_to_right() -> None:
    assert told(chosen(method="star")) == [(10, 11)]


def test_star_plus_also_keeps_those_that_stayed_right() -> None:
    assert told(chosen(method="star", correct_pairs="all")) == [(10, 11), (14, 15), (22, 23)]


def test_equal_takes_no_more_right_pairs_than_there_are_others() -> None:
    found = {tuple(told(chosen(method="star", correct_pairs="equal", seed=s))) for s in range(20)}
    assert found == {((10, 11), (14, 15)), ((10, 11), (22, 23))}


def test_pair_sft_joins_each_wrong_first_attempt_with_any_right_response_to_its_problem() -> None:
    drawn = [chosen(method="pair_sft", seed=s) for s in range(40)]
    assert {tuple(first for first, _ in told(pairs)) for pairs in drawn} == {(10, 12)}
    seconds = [second for pairs in drawn for _, second in told(pairs)]
    assert set(seconds) == {11, 14, 15}
    assert all(p.correct == (False, True) and p.observation_ids == (9,) for pairs in drawn for p in pairs)


def test_pair_sft_plus_does_the_same_for_right_first_attempts() -> None:
    drawn = [chosen(method="pair_sft", correct_pairs="all", seed=s) for s in range(40)]
    assert {tuple(first for first, _ in told(pairs)) for pairs in drawn} == {(10, 12, 14, 20, 22)}
    assert {second for pairs in drawn for first, second in told(pairs) if first >= 20} == {20, 22, 23}


def test_pairs_come_back_from_a_checkpoint_as_they_were() -> None:
    pairs = [Pair(3, (1, 2), (), (5,), (True, False)), Pair(0, (), (7, 8), (9, 9, 9), (False, True))]
    assert from_tensors(to_tensors(pairs)) == pairs
    assert from_tensors(to_tensors([])) == []


# ---------------------------------------------------------------- which tokens, and the gradient


def settings(steps: int = 4, rounds: int = 2, **supervised: Any) -> Config:
    supervised = {"method": "star", "rounds": rounds, **supervised}
    return make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4},
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1e9},
            "task": {"train_problems": 16},
            "stages": {"stage": {"steps": steps, **supervised}},
        }
    )


def trainer(config: Config | None = None, right: Any = lambda p, text: len(text) % 2 == 1) -> SFTTrainer:
    return SFTTrainer(
        config or settings(),
        "stage",
        policy=tiny_model(0),
        references={},
        problems=[problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
        chat=ChatFormat(make_tokenizer(), SCRIPT),
        verifier=FunctionVerifier(right),
    )


@pytest.mark.parametrize(("learn", "turns"), [("second", [1]), ("both", [0, 1])])
def test_only_the_learnt_attempts_are_scored(learn: str, turns: list[int]) -> None:
    made = trainer(settings(learn=learn))
    episode = made.sampler.sample(0)[0]
    (rows,) = made.rows([made.pair(episode)])
    assert rows.tokens_BT[0].tolist() == list(episode.ids)
    expected = [i for k in turns for i in episode.turns[k].ids]
    assert rows.tokens_BT[rows.turn_BT >= 0].tolist() == expected


def test_the_gradient_is_that_of_the_mean_log_likelihood_of_the_second_attempts_tokens() -> None:
    """Compare with a plain forward pass, one conversation at a time."""
    made = trainer()
    for _ in range(2):
        made.step()
    pairs = made.batch_of(made.pairs())
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    other = tiny_model(0)
    for p in pairs:
        prompt = made.chat.prompt(made.problems[p.problem].prompt)
        ids = [*prompt, *p.first, *p.observation_ids, *p.second]
        logits = other.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(len(ids) - len(p.second), len(ids)):
            total = total - logits[position - 1, ids[position]]
            tokens += 1
    (total / tokens).backward()
    made.update = lambda: 0.0  # type: ignore[method-assign]
    record = made.step()
    assert relative_gap(gradient(made.policy.model), gradient(other.model)) < 1e-10
    assert record.metrics["loss"] == pytest.approx(float(total.detach()) / tokens, abs=1e-12)


# ---------------------------------------------------------------- rounds


def test_the_steps_of_a_stage_are_shared_out_over_its_rounds() -> None:
    places = [place_of(step, 7, 3) for step in range(14)]
    assert [p.round for p in places] == [0] * 4 + [1] * 4 + [2] * 6
    assert [p.samples for p in places] == [True, True, False, False] * 2 + [True] * 3 + [False] * 3


def test_each_round_samples_with_the_model_before_and_trains_the_first_weights_anew() -> None:
    made = trainer(settings(steps=4, rounds=2))
    first = [w.clone() for w in made.policy.parameters()]
    for _ in range(4):
        made.step()
    after = [w.clone() for w in made.policy.parameters()]
    assert not torch.equal(after[0], first[0])
    made.step()
    assert len(made.collected) == 8, "the first round's episodes are dropped"
    assert all(torch.equal(a, b) for a, b in zip(made.policy.parameters(), after, strict=True)), (
        "sampling moves nothing"
    )
    made.step()
    seen: list[torch.Tensor] = []
    update = made.update
    made.update = lambda: (seen.extend(w.clone() for w in made.policy.parameters()), update())[1]  # type: ignore[method-assign]
    made.step()
    assert all(torch.equal(a, b) for a, b in zip(seen, first, strict=True))
    steps = {int(state["step"]) for state in made.learner.optimizer.state.values()}
    assert steps == {1}, "a fresh optimizer"


def test_the_schedule_runs_over_each_round() -> None:
    config = make_config(
        {**settings(steps=4, rounds=2).model_dump(), "optimizer": {"learning_rate": 1.0, "schedule": "linear", "min_lr_ratio": 0}}
    )  # fmt: skip
    made = trainer(config)
    rates = []
    for step in (2, 3, 6, 7):
        made.state.step = step
        rates.append(made.learning_rate())
    assert rates == [1.0, 0.5, 1.0, 0.5]


def test_a_round_without_a_pair_is_an_error() -> None:
    made = trainer(right=lambda p, text: False)
    made.step(), made.step()
    with pytest.raises(TrainingError, match="none of 16 episodes yields a pair"):
        made.step()


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


def run_config(model_folder: Path, **supervised: Any) -> Config:
    config = load_config(
        "demo", [*SETTINGS, f"model.source={model_folder}", "optimizer.schedule=constant", "log.tensorboard=false"]
    )
    stages = {
        "stage1": config.stages["stage1"].model_copy(update={"steps": 1}).model_dump(),
        "star": {"method": "pair_sft", "steps": 4, "rounds": 2, "correct_pairs": "all", **supervised},
    }
    return make_config({**config.model_dump(), "stages": stages})


@pytest.mark.slow
def test_a_supervised_stage_runs_like_any_other_and_a_killed_one_ends_with_the_same_bits(
    model_folder: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder)
    whole = train(config, tmp_path / "whole", task=digits())
    metrics = [m for m in read_jsonl(tmp_path / "whole/metrics.jsonl") if m["stage"] == "star"]
    assert [m["updates"] for m in metrics] == [0, 0, 1, 1] * 2
    assert [m["completions"] for m in metrics] == [16, 16, 0, 0] * 2
    assert [m["sampled_tokens"] > 0 for m in metrics] == [True, True, False, False] * 2
    assert set(whole.json["results"]) == {"base", "stage1", "star"}
    for stop_after in (3, 5):
        out, seen = tmp_path / f"stopped{stop_after}", []
        callbacks = Callbacks(
            on_step=lambda r, seen=seen: seen.append(r.metrics["stage"]),
            should_stop=lambda seen=seen, n=stop_after: 15 if seen.count("star") == n else None,
        )
        with pytest.raises(InterruptedRun):
            train(config, out, task=digits(), callbacks=callbacks)
        resume(out, task=digits())
        for log in ("metrics.jsonl", "episodes/eval-star-attempts.jsonl"):
            assert (out / log).read_bytes() == (tmp_path / "whole" / log).read_bytes(), (stop_after, log)
        ends = [p / "checkpoints/star/model.safetensors" for p in (out, tmp_path / "whole")]
        assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_run_without_stages_evaluates_the_base(model_folder: Path, tmp_path: Path) -> None:
    config = make_config({**run_config(model_folder).model_dump(), "stages": {}})
    summary = train(config, tmp_path / "base", task=digits())
    assert list(summary.json["results"]) == ["base"]
    assert resume(tmp_path / "base", task=digits()).json["results"] == summary.json["results"]
    with pytest.raises(ConfigError, match="this run has no stages"):
        resume(tmp_path / "base", overrides=["seed=3"])
    assert json.loads((tmp_path / "base/summary.json").read_text())["results"]["base"]["n"] == 6


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"steps": 4, "method": "star", "bonus": 2.0}, "stages.stage.bonus: no such setting"),
        ({"steps": 2, "method": "star", "rounds": 3}, "rounds = 3, but there are only 2 steps"),
        (
            {"steps": 2, "method": "dpo"},
            "stages.stage.reward_weights.*supervised methods are star, pair_sft, self_rewarding_ift, sft",
        ),
        ({"steps": 2}, "stages.stage.reward_weights: Field required"),
        ({"steps": 2, "reward_weights": [1, 1], "kl_coefs": [{}, {}], "offline_apart": True}, "for example 0.5"),
        ({"steps": 2, "reward_weights": [1, 1], "kl_coefs": [{}, {}], "batch_size": 9}, "stages.stage.batch_size = 9"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"stages": {"stage": stage}})


def test_a_supervised_run_cannot_be_made_longer(model_folder: Path) -> None:
    old = run_config(model_folder)
    stages = old.model_dump()["stages"]
    new = make_config({**old.model_dump(), "stages": {**stages, "star": {**stages["star"], "steps": 6}}})
    with pytest.raises(ConfigError, match="rounds of the supervised stage"):
        longer(old, new)
