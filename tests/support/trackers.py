"""Provide trackers as a user of the package would write them, and stand-ins for the packages of others."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from selfcorrect.runs.trackers.base import TrackedRun

STARTED: list[Recorder] = []
"""Every tracker that was started, in order."""


class Recorder:
    """A tracker that remembers what it was told, and has the steps of the earlier one with the same id."""

    def __init__(self) -> None:
        self.steps: dict[int, Mapping[str, float]] = {}
        self.run: TrackedRun | None = None
        self.id = ""
        self.finished = 0

    where = "nowhere but here"

    def start(self, run: TrackedRun) -> int:
        self.run, self.id = run, run.id
        earlier = [tracker for tracker in STARTED if tracker.id == run.id]
        STARTED.append(self)
        return max((step for tracker in earlier for step in tracker.steps), default=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert step not in self.steps
        self.steps[step] = metrics

    def finish(self) -> None:
        self.finished += 1


class FailsToStart(Recorder):
    def start(self, run: TrackedRun) -> int:
        raise ConnectionError("no route to host\nand more")


class FailsToLog(Recorder):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise ConnectionError("no route to host")
        super().log(step, metrics)


class FailsToFinish(Recorder):
    def finish(self) -> None:
        raise ConnectionError("no route to host")


class CannotBeMade:
    def __init__(self) -> None:
        raise OSError("no such library")


NOT_A_TRACKER = dict


class FakeWandb:
    """The calls of `wandb` that the package makes. A run has the steps of the earlier one with its id."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.logged: dict[str, dict[int, dict[str, float]]] = {}
        self.finished = 0

    def init(self, **how: Any) -> Any:
        self.calls.append(how)
        steps = self.logged.setdefault(how["id"], {})

        def log(metrics: dict[str, float], step: int) -> None:
            assert step > max(steps, default=-1), "wandb would drop it"
            steps[step] = metrics

        def finish() -> None:
            self.finished += 1

        following = max(steps, default=-1) + 1
        return SimpleNamespace(log=log, finish=finish, step=following, url="https://wandb.ai/me/p/r", dir="/x/files")


class FakeTrackio:
    """The calls of `trackio` that the package makes; it prints as the real one does."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.logged: dict[str, list[int]] = {}
        self.finished = 0

    def init(self, **how: Any) -> Any:
        print("* Trackio project initialized")
        self.calls.append(how)
        steps = self.logged.setdefault(how["name"], [])
        following = max(steps, default=-1) + 1
        return SimpleNamespace(log=lambda metrics, step: steps.append(step), _next_step=following, url=None)

    def finish(self) -> None:
        print("* Run finished")
        self.finished += 1


class FakeMlflow:
    """The calls of `mlflow` that the package makes, with one store for all clients."""

    def __init__(self, uri: str = "sqlite:////here/mlflow.db") -> None:
        self.uri, self.experiments, self.runs = uri, {}, {}  # type: ignore[var-annotated]
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (key, value, step),
            Param=lambda key, value: (key, value),
            RunTag=lambda key, value: (key, value),
        )

    def get_tracking_uri(self) -> str:
        return self.uri

    def MlflowClient(self) -> FakeMlflow:
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def search_runs(self, experiments: list[str], words: str, max_results: int) -> list[Any]:
        assert words.startswith("tags.`selfcorrect.id` = '")
        wanted = words.split("'")[1]
        return [run for run in self.runs.values() if run.data.tags["selfcorrect.id"] == wanted]

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
        name = f"run{len(self.runs)}"
        data = SimpleNamespace(tags=dict(tags), params={}, metrics=[])
        self.runs[name] = SimpleNamespace(info=SimpleNamespace(run_id=name, name=run_name, status="RUNNING"), data=data)
        return self.runs[name]

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(params) <= 100 and all(len(value) <= 500 for _, value in params)
        data = self.runs[run].data
        data.metrics += metrics
        data.params |= dict(params)
        data.tags |= dict(tags)

    def update_run(self, run: str, status: str) -> None:
        self.runs[run].info.status = status

    def set_terminated(self, run: str) -> None:
        self.runs[run].info.status = "FINISHED"
