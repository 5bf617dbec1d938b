"""The learner: from episodes to an updated policy."""
