"""The learner, which turns episodes into an updated policy."""
