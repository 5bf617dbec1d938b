"""Causal language models: weights, LoRA adapters, forward passes, log-probabilities."""
