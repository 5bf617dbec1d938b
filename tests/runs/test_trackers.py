"""Trackers: which one a name makes, what they get, and that none of them ends or delays the result of a run."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support import trackers
from support.crash import SETTINGS

from selfcorrect.cli.app import main
from selfcorrect.config import plugins
from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import load_config
from selfcorrect.config.tracker_names import TRACKERS
from selfcorrect.errors import ConfigError, DataError, InterruptedRun
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runs.loggers import MetricLogger
from selfcorrect.runs.run import resume, train
from selfcorrect.runs.trackers.base import TrackedRun
from selfcorrect.runs.trackers.factory import make_tracker
from selfcorrect.runs.trackers.tensorboard import TensorBoardTracker
from selfcorrect.storage.files import read_jsonl

RECORDER = "support.trackers:Recorder"


@pytest.fixture(autouse=True)
def started() -> list[trackers.Recorder]:
    trackers.STARTED.clear()
    return trackers.STARTED


def settings(model: Path, *names: str) -> list[str]:
    more = ["eval.problems=2", "eval.dev_every=0", "eval.controls=false", "rollout.max_tokens=3"]
    return [*SETTINGS, *more, f"model.source={model}", f"log.trackers={json.dumps(names)}", "log.project=sums"]


def config(model: Path, *names: str) -> Config:
    return load_config("demo", settings(model, *names))


def line(step: int, stage: str = "stage1") -> dict[str, object]:
    return {"stage": stage, "step": step, "r1": step / 10, "dev": {"acc_t1": 0.5, "sampled": {"acc_t1": 0.25}}}


def taken(*steps: int) -> list[dict[str, object]]:
    """Return the metrics of the steps that a resumed run has taken."""
    return [line(step) for step in steps]


# ---------------------------------------------------------------- names


def test_by_default_curves_stay_in_the_runs_directory() -> None:
    assert load_config("demo").log.trackers == ("tensorboard",)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            '["wand"]',
            r"log\.trackers.*there is no tracker 'wand'; there are tensorboard, wandb.*Did you mean 'wandb'\?",
        ),
        ('["a:b:c"]', "there is no tracker"),
        ('["wandb", "mlflow", "wandb"]', "'wandb' stands there twice"),
    ],
)
def test_a_wrong_name_is_refused_where_a_configuration_is_read(names: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("demo", [f"log.trackers={names}"])


def test_an_installed_package_can_offer_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("mine", RECORDER, TRACKERS.group),
        EntryPoint("tensorboard", RECORDER, TRACKERS.group),  # nobody can take the package's own names
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == TRACKERS.group else [])
    assert load_config("demo", ['log.trackers=["mine"]']).log.trackers == ("mine",)
    assert isinstance(make_tracker("mine"), trackers.Recorder)
    assert isinstance(make_tracker("tensorboard"), TensorBoardTracker)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:Tracker", "tracker 'no_such_module:Tracker' cannot be imported .ModuleNotFoundError"),
        ("support.trackers:CannotBeMade", "cannot be made .OSError: no such library"),
        ("support.trackers:NOT_A_TRACKER", "made a dict, which has no start, log, finish"),
        ("wandb", r'log\.trackers = wandb needs wandb.*pip install "selfcorrect\[wandb\]"'),
        ("trackio", r'log\.trackers = trackio needs trackio.*pip install "selfcorrect\[trackio\]"'),
        ("mlflow", r'log\.trackers = mlflow needs mlflow.*pip install "selfcorrect\[mlflow\]"'),
        ("tensorboard", "names tensorboard, which cannot be imported"),
    ],
)
def test_a_tracker_that_is_missing_is_refused_before_anything_is_written(
    name: str, words: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "trackio", "mlflow", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=words):
        train(config(model_folder, name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_which_trackers_a_run_has_changes_no_digest_of_its_checkpoints(model_folder: Path) -> None:
    """A run that an earlier version began, which knew two trackers only, is resumed."""
    one = config_digest(config(model_folder, "tensorboard"))
    assert config_digest(config(model_folder, "tensorboard", "mlflow", "trackio")) == one
    old = config_digest(load_config("demo", [*settings(model_folder, "wandb")]))
    assert config_digest(load_config("demo", [*settings(model_folder), "log.wandb=sums"])) == old != one


# ---------------------------------------------------------------- what a tracker gets


def test_a_tracker_gets_every_number_of_every_step_once(
    model_folder: Path, tmp_path: Path, started: list[trackers.Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []
    stop = Callbacks(on_step=lambda r: steps.append(1), should_stop=lambda: 15 if len(steps) == 5 else None)
    caplog.set_level(logging.INFO, "selfcorrect")
    with pytest.raises(InterruptedRun):
        train(config(model_folder, RECORDER), tmp_path / "run", callbacks=stop)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    summary = resume(tmp_path / "moved", allow_code=[RECORDER])
    one, two = started
    assert two.run and one.id == two.id and one.id.startswith("run-")
    assert (two.run.name, two.run.project, two.run.settings["seed"]) == ("moved", "sums", 0)
    assert [*one.steps, *two.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert one.finished == two.finished == 1
    metrics = read_jsonl(tmp_path / "moved/metrics.jsonl")
    assert two.steps[7]["r1"] == metrics[6]["r1"] and "step" not in two.steps[7]
    assert summary.curves == ("nowhere but here",)
    assert caplog.messages.count("curves: nowhere but here") == 2


def test_what_a_tracker_missed_is_sent_and_what_a_run_repeats_is_not(
    model_folder: Path, tmp_path: Path, started: list[trackers.Recorder]
) -> None:
    """The first process was killed at step 5, two steps after its checkpoint; then the tracker was away for a while."""
    given = config(model_folder, RECORDER)
    killed = MetricLogger.open(tmp_path, given)
    killed.start([])
    for step in range(1, 6):
        killed.add(line(step))
    again = MetricLogger.open(tmp_path, given)
    again.start(taken(1, 2, 3))
    for step in (4, 5, 6):
        again.add(line(step))
    assert [*started[1].steps] == [6]
    assert started[1].steps[6] == {"r1": 0.6, "dev/acc_t1": 0.5, "dev/sampled/acc_t1": 0.25}
    MetricLogger.open(tmp_path, given).start(taken(*range(1, 10)))
    assert [*started[2].steps] == [7, 8, 9]


def test_steps_count_through_all_stages(model_folder: Path, tmp_path: Path, started: list[trackers.Recorder]) -> None:
    logger = MetricLogger.open(tmp_path, config(model_folder, RECORDER))
    logger.start([])
    logger.add(line(3, "stage1"))
    logger.add(line(1, "score"))
    assert [*started[0].steps] == [3, 4]


def test_only_the_process_that_writes_makes_trackers(model_folder: Path, tmp_path: Path, started: list) -> None:
    logger = MetricLogger.open(tmp_path, config(model_folder, "support.trackers:CannotBeMade"), active=False)
    logger.start(taken(1))
    logger.add(line(2))
    logger.close()
    assert not started and not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("kind", ["FailsToStart", "FailsToLog", "FailsToFinish"])
def test_a_tracker_that_fails_ends_no_run_and_is_told_of_once(
    kind: str, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, started: list
) -> None:
    failing = f"support.trackers:{kind}"
    summary = train(config(model_folder, failing, RECORDER), tmp_path / "run")
    told = [message for message in caplog.messages if "no route to host" in message]
    assert len(told) == 1 and told[0].startswith(f"tracker '{failing}' failed (ConnectionError: no route to host)")
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == 7
    assert [*started[-1].steps] == [1, 2, 3, 4, 5, 6, 7] and started[-1].finished == 1
    assert len(summary.curves) == (1 if kind == "FailsToStart" else 2)


def test_damaged_metrics_are_the_runs_fault_and_no_trackers(
    model_folder: Path, tmp_path: Path, started: list[trackers.Recorder]
) -> None:
    train(config(model_folder, RECORDER), tmp_path)
    (tmp_path / "summary.json").unlink()  # as if it had been killed before its end
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step":1,', '"step":x,', 1))
    started.clear()
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1, is damaged"):
        resume(tmp_path, allow_code=[RECORDER])
    assert not any(tracker.steps for tracker in started)


# ---------------------------------------------------------------- the id


def test_a_run_has_one_id_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "my run é").mkdir()
    first = TrackedRun(tmp_path / "my run é", "p", {}).id
    (tmp_path / "my run é").rename(tmp_path / "other")
    assert TrackedRun(tmp_path / "other", "p", {}).id == first
    assert first.startswith("my-run---") and len(first) <= 49 and first.isascii()
    (tmp_path / "second").mkdir()
    assert TrackedRun(tmp_path / "second", "p", {}).id != first


@pytest.mark.parametrize(
    "stored", ["", "[]", '{"id": 3}', '{"id": "x\' or 1=1"}', '{"id": "../../elsewhere-01234567"}']
)
def test_an_id_that_cannot_be_one_is_replaced(stored: str, tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text(stored)
    run = TrackedRun(tmp_path, "p", {})
    assert "'" not in run.id and "/" not in run.id
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"id": run.id}


def test_a_run_that_is_drawn_in_its_own_directory_alone_needs_no_id(model_folder: Path, tmp_path: Path) -> None:
    logger = MetricLogger.open(tmp_path, config(model_folder, "tensorboard"))
    logger.start(taken(1))
    logger.close()
    assert not (tmp_path / "tracking.json").exists() and [*(tmp_path / "tensorboard").iterdir()]
    assert logger.curves == (f"tensorboard --logdir {tmp_path}/tensorboard",)


# ---------------------------------------------------------------- the packages of others


def drawn(model: Path, folder: Path, name: str) -> MetricLogger:
    """Log steps 1-3, then resume and log steps 2-4, as a run does that was killed after a checkpoint at step 1."""
    logger = MetricLogger.open(folder, config(model, name))
    for kept, steps in (((), (1, 2, 3)), ((1,), (2, 3, 4))):
        logger = MetricLogger.open(folder, config(model, name))
        logger.start(taken(*kept))
        for step in steps:
            logger.add(line(step))
        logger.close()
    return logger


def test_wandb_continues_its_run(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = trackers.FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    logger = drawn(model_folder, tmp_path, "wandb")
    one, two = fake.calls
    assert one["id"] == two["id"] and two["resume"] == "allow" and one["project"] == "sums"
    assert one["name"] == tmp_path.name and one["config"]["log"]["project"] == "sums"
    assert [*fake.logged[one["id"]]] == [1, 2, 3, 4] and fake.finished == 2
    assert fake.logged[one["id"]][4] == {"r1": 0.4, "dev/acc_t1": 0.5, "dev/sampled/acc_t1": 0.25}
    assert logger.curves == ("https://wandb.ai/me/p/r",)


def test_trackio_continues_its_run_and_prints_nothing_among_results(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = trackers.FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)  # type: ignore[arg-type]
    logger = drawn(model_folder, tmp_path, "trackio")
    one, two = fake.calls
    assert one["name"] == two["name"] and two["resume"] == "allow" and not one["embed"]
    assert fake.logged == {one["name"]: [1, 2, 3, 4]} and fake.finished == 2
    assert logger.curves == ("trackio show --project sums",)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        ("sqlite:////here/mlflow.db", "mlflow ui --backend-store-uri sqlite:////here/mlflow.db"),
        ("https://there/", "https://there/#/experiments/1/runs/run0"),
    ],
)
def test_mlflow_continues_its_run(
    uri: str, where: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = trackers.FakeMlflow(uri)
    monkeypatch.setitem(sys.modules, "mlflow", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)  # type: ignore[arg-type]
    logger = drawn(model_folder, tmp_path, "mlflow")
    assert fake.experiments == {"sums": "1"}
    (run,) = fake.runs.values()
    assert [step for key, _, step in run.data.metrics if key == "r1"] == [1, 2, 3, 4]
    assert ("dev/sampled/acc_t1", 0.25, 4) in run.data.metrics
    assert run.data.params["stages.score.steps"] == "4" and run.info.status == "FINISHED"
    assert logger.curves == (where,)


# ---------------------------------------------------------------- the command


def test_train_says_where_its_curves_are_at_both_ends(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", trackers.FakeTrackio())  # type: ignore[arg-type]
    given = [word for change in settings(model_folder, "tensorboard", "trackio") for word in ("--set", change)]
    assert main(["train", "demo", *given, "--out", "mine", "--no-report"]) == 0
    out, err = capsys.readouterr()
    lines = ["curves: tensorboard --logdir mine/tensorboard", "curves: trackio show --project sums"]
    assert [text for text in out.splitlines() if text.startswith("curves")] == lines
    said = [text for text in err.splitlines() if "curves" in text]
    assert said == [f"selfcorrect: {text}" for text in lines]
    assert err.index(lines[0]) < err.index("stage1 1/3")
    assert main(["train", "--resume", "mine", "--no-report", "--json"]) == 0
    json.loads(capsys.readouterr().out)
