"""Where a run's curves are drawn: one protocol, and the trackers that the package has."""
