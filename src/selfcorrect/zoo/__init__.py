"""Bundled models, and finding a model by its name."""
