"""The one place that makes trackers by their names.

A third-party tracker takes one file and no change here. Name it in a configuration,
``log.trackers = ["my_tracker:MyTracker"]``, or publish it under the entry-point group ``selfcorrect.trackers``:

    # my_tracker.py
    class MyTracker:                                 # the members of `selfcorrect.runs.trackers.base.Tracker`
        def start(self, run):                        # run.path, run.name, run.id, run.project, run.settings
            self.file = (run.path / "curves.csv").open("w")
            self.where = f"less {run.path}/curves.csv"
            return 0                                 # it has no step yet: send all
        def log(self, step, metrics):                # metrics: {"r1": 0.5, "dev/acc_t1": 0.4, ...}
            self.file.write(f"{step},{metrics['reward']}\\n")
        def finish(self):
            self.file.close()
"""

from __future__ import annotations

from selfcorrect.config.tracker_names import check_tracker_name, place_of
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.extras import imported
from selfcorrect.runs.trackers.base import Tracker

MEMBERS = ("start", "log", "finish")
"""The methods that every tracker must have."""


def make_tracker(name: str) -> Tracker:
    """Make the tracker with a name; it does nothing before its `start`.

    Raises:
        ConfigError: the name is unknown, or the tracker or a package that it needs cannot be imported.
    """
    try:
        check_tracker_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind = imported("tracker", name, place_of(name))
    try:
        tracker: Tracker = kind()
    except SelfCorrectError:
        raise
    except Exception as error:  # making one runs other people's code
        raise ConfigError(f"tracker {name!r} cannot be made ({type(error).__name__}: {error}).") from error
    lacking = [member for member in MEMBERS if not callable(getattr(tracker, member, None))]
    if lacking:
        raise ConfigError(
            f"tracker {name!r} made a {type(tracker).__name__}, which has no {', '.join(lacking)}: a tracker needs "
            f"{', '.join(MEMBERS)} (see selfcorrect.runs.trackers.base.Tracker)."
        )
    return tracker
