"""A whole training run: stages, checkpoints, resuming, logs."""
