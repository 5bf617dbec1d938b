"""The names of trackers; `selfcorrect.runs.trackers.factory` makes the tracker."""

from __future__ import annotations

from selfcorrect.config.plugins import Plugins

TENSORBOARD = "tensorboard"
TRACKERS = Plugins(
    "tracker",
    "selfcorrect.trackers",
    {
        TENSORBOARD: "selfcorrect.runs.trackers.tensorboard:TensorBoardTracker",
        "wandb": "selfcorrect.runs.trackers.wandb:WandbTracker",
        "trackio": "selfcorrect.runs.trackers.trackio:TrackioTracker",
        "mlflow": "selfcorrect.runs.trackers.mlflow:MlflowTracker",
    },
)
"""The trackers. A new built-in one takes its file and a line here."""
