"""MLflow: its local store unless ``MLFLOW_TRACKING_URI`` names a server."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from selfcorrect.extras import require
from selfcorrect.runs.trackers.base import TrackedRun
from selfcorrect.storage.evaluation_dir import flat

ID, STEP = "selfcorrect.id", "selfcorrect.step"
"""Tags of a run: by the first it is found again, the second is the last step that was sent."""
PARAMETERS = 100
"""Maximum parameters that MLflow takes at a time."""
LENGTH = 500
"""Maximum characters of a parameter that every store takes."""


class MlflowTracker:
    """A run of MLflow, which a resumed run continues; the project is its experiment."""

    def __init__(self) -> None:
        self._package = require("mlflow", extra="mlflow", why="log.trackers = mlflow")
        self._entities = require("mlflow.entities", extra="mlflow", why="log.trackers = mlflow")
        self._client: Any = None
        self._experiment = self._run = ""

    @property
    def where(self) -> str:
        uri = str(self._package.get_tracking_uri())
        if uri.startswith(("http://", "https://")):
            return f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._run}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def start(self, run: TrackedRun) -> int:
        self._client = self._package.MlflowClient()
        known = self._client.get_experiment_by_name(run.project)
        self._experiment = known.experiment_id if known else self._client.create_experiment(run.project)
        found = self._client.search_runs([self._experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return int(found[0].data.tags.get(STEP, 0))
        self._run = self._client.create_run(self._experiment, run_name=run.name, tags={ID: run.id}).info.run_id
        settings = iter(flat(run.settings).items())
        while some := [*islice(settings, PARAMETERS)]:
            parameters = [self._entities.Param(name, str(value)[:LENGTH]) for name, value in some]
            self._client.log_batch(self._run, params=parameters)
        return 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        values = [self._entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=values, tags=[self._entities.RunTag(STEP, str(step))])

    def finish(self) -> None:
        self._client.set_terminated(self._run)
