"""The names of trackers: built in, offered by installed packages, or ``module:attribute``.

Checking a name imports nothing; `selfcorrect.runs.trackers.factory` makes the tracker.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from selfcorrect.config.engine_names import PLACE

TENSORBOARD = "tensorboard"
BUILTIN = {
    TENSORBOARD: "selfcorrect.runs.trackers.tensorboard:TensorBoardTracker",
    "wandb": "selfcorrect.runs.trackers.wandb:WandbTracker",
    "trackio": "selfcorrect.runs.trackers.trackio:TrackioTracker",
    "mlflow": "selfcorrect.runs.trackers.mlflow:MlflowTracker",
}
"""The built-in trackers and their locations. A new one takes its file and a line here."""

GROUP = "selfcorrect.trackers"
"""The entry-point group under which installed packages offer trackers."""


def offered_trackers() -> dict[str, EntryPoint]:
    """Return the trackers that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILTIN}


def check_tracker_name(name: str) -> str:
    """Return a tracker's name unchanged if it is valid. A ``module:attribute`` is looked up only when the tracker is made.

    Raises:
        ValueError: no tracker has this name; the message suggests a close one.
    """
    if name in BUILTIN or PLACE.fullmatch(name):
        return name
    known = [*BUILTIN, *sorted(offered_trackers())]
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"there is no tracker {name!r}; there are {', '.join(known)}, or your own as 'module:attribute'.{hint}"
    )


def place_of(name: str) -> str:
    """Return where the tracker with a valid name lies, as ``module:attribute``."""
    return BUILTIN.get(name) or (name if ":" in name else offered_trackers()[name].value)
