"""A whole run on the case that was seen: a base that copies its drafts, made worse by settings that suit another model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfcorrect.__main__ import main
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import apply_override, load_config, make_config
from selfcorrect.models.language_model import load_model
from selfcorrect.rng import generator
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs.run import train
from selfcorrect.tasks.addition import AdditionTask
from selfcorrect.training.learner import Learner
from selfcorrect.training.sample import Segment, TrainingSample
from selfcorrect.training.sft import supervised_gradient
from selfcorrect.types import Problem, Split
from selfcorrect.zoo.resolve import find_model

pytestmark = pytest.mark.slow
UPDATES, ROWS, RATE = 40, 64, 4e-3


@pytest.fixture(scope="module")
def copying_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's base for additions, taught to repeat its draft, correct or not, and to add as before."""
    config = load_config("demo")
    model, task, rng = find_model(config.model, seed=0), AdditionTask(), generator("copies")
    model.model.requires_grad_(True)
    chat = ChatFormat(model.tokenizer, task.script)
    problems = task.problems(Split.TRAIN, seed=0, limit=2000)
    learner = Learner(model, config.optimizer, learning_rate=RATE)

    def rows(problem: Problem) -> Iterator[TrainingSample]:
        digits = "".join(map(str, rng.integers(10, size=7)))
        draft = chat.given_ids(digits if rng.random() < 0.5 else problem.reference)
        prompt, between = chat.prompt(problem.prompt), chat.observation_ids(1, problem.prompt, draft)
        yield TrainingSample.of_segments([Segment(prompt, draft), Segment(between, draft, 1)])
        yield TrainingSample.of_segments([Segment(prompt, chat.given_ids(problem.reference), 0)])

    for update in range(UPDATES):
        chosen = [problems[i] for i in rng.integers(len(problems), size=ROWS)]
        samples = [row for problem in chosen for row in rows(problem)]
        supervised_gradient(learner, samples, rows=len(samples))
        learner.update(RATE * (1 - update / UPDATES), "copies")
    folder = tmp_path_factory.mktemp("copying") / "base"
    model.save(folder)
    return folder


def settings(base: Path, *changes: str) -> Config:
    """Return the settings that were tuned for SmolLM2, with another base and task, and a rate that does harm in few steps."""
    smollm2, demo = (load_config(name).model_dump() for name in ("smollm2_arithmetic", "demo"))
    table = {
        **smollm2,
        "task": {**demo["task"], "dev_problems": 200},
        "model": {**demo["model"], "source": str(base)},
        "stages": {"stage1": {**smollm2["stages"]["stage1"], "steps": 20}},
    }
    own = ["rollout.max_tokens=8", "rollout.stop=[]", "rollout.temperature=1.0", "optimizer.learning_rate=2e-3"]
    looks = ["eval.dev_every=5", "eval.dev_limit=200", "eval.problems=300", "log.trackers=[]"]
    for change in (*own, *looks, *changes):
        apply_override(table, change)
    return make_config(table)


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect what the package warns of."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("selfcorrect")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


def test_it_says_once_what_goes_wrong_and_its_summary_begins_with_it(
    copying_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings() as warned:
        train(settings(copying_base), tmp_path / "run")
    for sign, change in (
        ("the second attempt copies the first", "Change: reword task.revise"),
        ("the model is worse than its base by more than chance allows", "Change: lower the learning rate"),
    ):
        [message] = [message for message in warned if sign in message]
        assert message.startswith("stage1 step ") and change in message
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    base, last = (summary["results"][name] for name in ("base", "stage1"))
    assert base["answer_change_rate"] < 0.02 and last["acc_t2"] < base["acc_t2"]
    assert next(iter(summary)) == "below_base"
    assert summary["below_base"].startswith("The run ended below its base: greedy Acc@t2 is ")
    assert main(["train", "--resume", str(tmp_path / "run"), "-q", "--no-report"]) == 0
    assert capsys.readouterr().out.startswith(summary["below_base"])


def test_stop_if_worse_ends_it_and_keeps_the_best_checkpoint(
    copying_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with warnings() as warned:
        train(settings(copying_base, "log.stop_if_worse=true"), run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) < 20 and len(lines) % 5 == 0
    ended = f"log.stop_if_worse ended stage1 at step {len(lines)} of 20, worse than the base"
    summary = json.loads((run / "summary.json").read_text())
    assert next(iter(summary)) == "stopped" and summary["stopped"] == {"stage1": ended}
    [message] = [message for message in warned if ended in message]
    looked = {
        0: lines[-1]["dev"]["base"]["accuracy"],
        **{one["step"]: one["dev"]["acc_t2"] for one in lines if "dev" in one},
    }
    best = max(looked, key=lambda step: (looked[step], -step))
    assert f"kept is stage1-{best:06d}" in message
    kept, checkpoint = (load_model(run / "checkpoints" / name).digest() for name in ("stage1", f"stage1-{best:06d}"))
    assert kept == checkpoint
    assert main(["train", "--resume", str(run), "-q", "--no-report"]) == 3
    assert capsys.readouterr().out.startswith(ended)
