class RolloutTiming:
    pass
