"""Test supervised stages on demonstrations: their data, loss and order, that a stopped run resumes, and what is rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import SETTINGS
from support.episodes import SCRIPT, problem
from support.gradients import gradient, relative_gap
from support.models import tiny_model

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config, make_config, to_toml
from selfcorrect.errors import CheckpointError, ConfigError, DataError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.report.model_card import _stage
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.checkpoints import longer
from selfcorrect.runs.checks import RunProblems
from selfcorrect.runs.run import resume, train
from selfcorrect.storage.files import read_jsonl
from selfcorrect.tasks import get_task
from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.tasks.rows import RowsTask
from selfcorrect.tasks.verifier import Verifier
from selfcorrect.training.demonstration_trainer import DemonstrationTrainer
from selfcorrect.training.demonstrations import Demonstration
from selfcorrect.types import Split
from selfcorrect.zoo.addition import make_tokenizer

ROWS = [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(10)]


def config(**settings: Any) -> Config:
    stage = {"method": "sft", "steps": 4, "batch_size": 6, **settings}
    return make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 8},
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1e9},
            "task": {"train_problems": 16},
            "stages": {"cold": stage},
        }
    )


def trainer(settings: Config | None = None, count: int = 10) -> DemonstrationTrainer:
    shown = [Demonstration(problem(f"p{i}", f"{i}+{i}=", str(2 * i)), "0" * (i % 3) + str(2 * i)) for i in range(count)]
    chat = ChatFormat(make_tokenizer(), SCRIPT.with_turns(1))
    return DemonstrationTrainer(settings or config(), "cold", policy=tiny_model(0), demonstrations=shown, chat=chat)


# ---------------------------------------------------------------- loss, order, schedule


def test_the_gradient_is_that_of_the_mean_log_likelihood_of_the_responses_and_their_ends() -> None:
    """Compare with a plain forward pass, one demonstration at a time."""
    made, other = trainer(), tiny_model(0)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for each in made.batch():
        prompt = made.chat.ids(made.chat.rendered(each.problem.prompt))
        response = [*made.chat.ids(each.response), made.chat.tokenizer.eos_token_id]
        logprobs = other.model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        for place, token in enumerate(response, len(prompt)):
            total, tokens = total - logprobs[place - 1, token], tokens + 1
    (total / tokens).backward()
    made.learner.update = lambda *_: 0.0  # type: ignore[method-assign]
    record = made.step()
    assert relative_gap(gradient(made.policy.model), gradient(other.model)) < 1e-10
    assert record.metrics["loss"] == pytest.approx(float(total.detach()) / tokens, abs=1e-12)
    assert tokens > 2 * 6, "a response has several tokens"


def test_micro_batches_do_not_change_the_gradient() -> None:
    small = make_config({**config().model_dump(), "optimizer": {"micro_batch_tokens": 12, "max_grad_norm": 1e9}})
    found = []
    for settings in (config(), small):
        made = trainer(settings)
        made.learner.update = lambda *_: 0.0  # type: ignore[method-assign]
        made.step()
        found.append(gradient(made.policy.model))
    assert relative_gap(found[0], found[1]) < 1e-10


def test_every_pass_takes_each_demonstration_once_in_a_new_order() -> None:
    made, seen = trainer(config(batch_size=5)), []
    for step in range(4):
        made.state.step = step
        seen += [each.problem.id for each in made.batch()]
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == sorted(f"p{i}" for i in range(10))
    assert first != second


def test_steps_lower_the_loss_and_follow_the_schedule() -> None:
    settings = {"learning_rate": 1e-2, "schedule": "linear", "min_lr_ratio": 0}
    made = trainer(make_config({**config(batch_size=10).model_dump(), "optimizer": settings}))
    records = [made.step().metrics for _ in range(4)]
    assert [m["learning_rate"] for m in records] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    assert all(m["completions"] == m["sampled_tokens"] == 0 for m in records)
    assert all(m["updates"] == 1 and m["demonstrations"] == 10 for m in records)


# ---------------------------------------------------------------- where demonstrations are from


@pytest.mark.sandbox
@pytest.mark.parametrize("name", ["addition", "arithmetic", "worked_sums", "micro_code"])
def test_the_solutions_of_a_task_are_correct_responses(name: str) -> None:
    task = get_task(name)
    problems = task.problems(Split.TRAIN, seed=0, limit=20)
    with Verifier(task, workers=1) as verifier:
        solution = task.solution  # type: ignore[attr-defined]
        assert all(v.correct for v in verifier.verify([(p, solution(p)) for p in problems]))


def test_a_stage_without_a_file_shows_the_solution_of_every_training_problem_and_of_no_other() -> None:
    found = RunProblems.of(config(), AdditionTask(digits=4))
    shown = found.demonstrations["cold"]
    assert [each.problem for each in shown] == found.train
    assert all(each.response == each.problem.reference for each in shown)
    assert not {each.problem.prompt for each in shown} & {p.prompt for p in [*found.dev, *found.evaluated]}


def test_a_task_without_solutions_is_rejected_and_the_message_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"'rows' has no solutions.*set stages\.cold\.demonstrations to a JSON Lines"):
        RunProblems.of(config(), RowsTask(ROWS, lambda text, reference, row: True))


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def of_file(path: Path, lines: Sequence[Mapping[str, Any]]) -> Sequence[Demonstration]:
    stage = config(demonstrations=write(path, lines))
    return RunProblems.of(stage, RowsTask(ROWS, lambda text, reference, row: True)).demonstrations["cold"]


def training_problems() -> list[Any]:
    return list(RowsTask(ROWS, lambda text, reference, row: True).problems(Split.TRAIN, seed=0, limit=16))


def test_a_file_names_its_problems_by_id_or_prompt_and_may_show_several_responses(tmp_path: Path) -> None:
    one, two = training_problems()[:2]
    lines = [
        {"id": one.id, "response": "first, then"},
        {"prompt": two.prompt, "response": "other"},
        {"id": one.id, "prompt": "ignored", "response": "another way", "more": 1},
    ]
    found = of_file(tmp_path / "shown.jsonl", lines)
    assert [(d.problem, d.response) for d in found] == [(one, "first, then"), (two, "other"), (one, "another way")]


def test_every_bad_line_of_a_file_is_named(tmp_path: Path) -> None:
    task = RowsTask(ROWS, lambda text, reference, row: True)
    test = task.problems(Split.TEST, seed=0, limit=1)[0]
    good = training_problems()[0].prompt
    lines = [
        {"prompt": test.prompt, "response": "of the test split"},
        {"response": "nowhere"},
        {"prompt": good, "response": " "},
        {"prompt": good, "answer": "2"},
        {"id": 3, "response": "x"},
    ]
    with pytest.raises(DataError) as caught:
        of_file(tmp_path / "shown.jsonl", lines)
    told = str(caught.value).splitlines()[1:]
    assert len(told) == 5
    assert f"shown.jsonl:1: prompt = {test.prompt!r} is none of the run's 16 training problems" in told[0]
    assert "neither 'id' nor 'prompt' among 'response'" in told[1]
    assert "response = ' ' is no text" in told[2] and "response = None is no text" in told[3] and "id = 3" in told[4]
    with pytest.raises(DataError, match="at least one demonstration is needed"):
        of_file(tmp_path / "shown.jsonl", [])


# ---------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(3, dtype=torch.float32, hidden_size=16, intermediate_size=16, num_attention_heads=1).save(folder)
    return folder


def run_config(model_folder: Path, *more: str, **stage: Any) -> Config:
    settings = [*SETTINGS, f"model.source={model_folder}", "optimizer.schedule=constant", "log.trackers=[]"]
    made = load_config("demo", [*settings, "task.options.digits=2", "optimizer.learning_rate=3e-3", *more])
    after = made.stages["stage1"].model_copy(update={"steps": 1, "kl_coefs": ({"cold": 0.1}, {"base": 0.1})})
    stages = {"cold": {"method": "sft", "steps": 5, "batch_size": 7, **stage}, "stage1": after.model_dump()}
    return make_config({**made.model_dump(), "stages": stages})


@pytest.mark.parametrize("lora", [False, True])
def test_a_stopped_run_resumes_with_the_same_bits(model_folder: Path, tmp_path: Path, lora: bool) -> None:
    config = run_config(model_folder, *(["model.lora.rank=2", "model.lora.alpha=4"] if lora else []))
    whole = train(config, tmp_path / "whole")
    metrics = [m for m in read_jsonl(tmp_path / "whole/metrics.jsonl") if m["stage"] == "cold"]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5]
    assert set(whole.json["results"]) == {"base", "cold", "stage1"}
    assert len({whole.json["provenance"]["model_digests"][name] for name in ("base", "cold", "stage1")}) == 3
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    for stop_after in (1, 3):
        out, seen = tmp_path / f"stopped{stop_after}", []
        callbacks = Callbacks(
            on_step=lambda r, seen=seen: seen.append(r.metrics["stage"]),
            should_stop=lambda seen=seen, n=stop_after: 15 if seen.count("cold") == n else None,
        )
        with pytest.raises(InterruptedRun):
            train(config, out, callbacks=callbacks)
        resume(out)
        for log in ("metrics.jsonl", "episodes/eval-stage1-attempts.jsonl"):
            assert (out / log).read_bytes() == (tmp_path / "whole" / log).read_bytes(), (stop_after, log)
        for stage in ("cold", "stage1"):
            ends = [p / "checkpoints" / stage / weights for p in (out, tmp_path / "whole")]
            assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_run_does_not_resume_on_other_demonstrations(model_folder: Path, tmp_path: Path) -> None:
    problems = AdditionTask(digits=2).problems(Split.TRAIN, seed=0, limit=40)
    lines = [{"id": p.id, "response": p.reference} for p in problems]
    config = run_config(model_folder, demonstrations=write(tmp_path / "shown.jsonl", lines))
    steps: list[int] = []
    callbacks = Callbacks(
        on_step=lambda r: steps.append(r.metrics["step"]), should_stop=lambda: 15 if len(steps) == 2 else None
    )
    with pytest.raises(InterruptedRun):
        train(config, tmp_path / "run", callbacks=callbacks)
    write(tmp_path / "shown.jsonl", lines[::-1])
    with pytest.raises(CheckpointError, match="the demonstrations of stage 'cold' have changed"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("rollout.max_tokens=2", r"has 4 tokens with the end of the turn.*rollout\.max_tokens = 2"),
        ('rollout.stop=["1"]', r"has text behind '1'.*rollout\.stop"),
    ],
)
def test_what_sampling_could_never_write_is_rejected(
    model_folder: Path, tmp_path: Path, settings: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(run_config(model_folder, settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"rounds": 2}, "stages.cold.rounds: no such setting"),
        ({"reward_weights": [1]}, "stages.cold.reward_weights: no such setting"),
        ({"demonstrations": ""}, "stages.cold.demonstrations"),
    ],
)
def test_settings_of_other_stages_are_rejected(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**stage)


def test_a_batch_need_not_be_groups_and_settings_survive_a_file(tmp_path: Path) -> None:
    made = config(batch_size=5, demonstrations="shown.jsonl")
    (tmp_path / "config.toml").write_text(to_toml(made))
    assert load_config(tmp_path / "config.toml") == made


def test_a_constant_schedule_can_be_made_longer() -> None:
    old = make_config({**config().model_dump(), "log": {"save_every": 2}})
    new = make_config({**old.model_dump(), "stages": {"cold": {**old.model_dump()["stages"]["cold"], "steps": 6}}})
    assert longer(old, new) == new


def test_a_model_card_says_what_the_stage_trained_on() -> None:
    told = [_stage(made, made.stages["cold"]) for made in (config(), config(demonstrations="secret/place.jsonl"))]
    assert told[0] == "supervised on demonstrations, the task's solutions (`sft`), 4 steps of 6, learning rate 0.01."
    assert "written responses" in told[1] and "secret" not in told[1]
