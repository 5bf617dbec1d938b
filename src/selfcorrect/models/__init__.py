"""Causal language models as the package uses them: weights, LoRA adapters, log-probabilities."""
