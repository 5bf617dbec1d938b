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

from selfcorrect.config.tracker_names import TRACKERS
from selfcorrect.errors import ConfigError, SelfCorrectError
from selfcorrect.runs.trackers.base import Tracker

MEMBERS = ("start", "log", "finish")
"""The methods that every tracker must have."""


def make_tracker(name: str) -> Tracker:
    """Make the tracker with a name; it does nothing before its `start`.

    Raises:
        ConfigError: the name is unknown, or the tracker or a package that it needs cannot be imported.
    """
    kind = TRACKERS.load(name)
    try:
        made = kind()
    except SelfCorrectError:
        raise
    except Exception as error:  # making one runs other people's code
        raise ConfigError(f"tracker {name!r} cannot be made ({type(error).__name__}: {error}).") from error
    tracker: Tracker = TRACKERS.with_members(name, made, MEMBERS, "selfcorrect.runs.trackers.base.Tracker")
    return tracker
