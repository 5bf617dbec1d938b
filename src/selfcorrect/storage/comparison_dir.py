"""The directory of a comparison: runs of several methods, with a card for each method and the trials of settings."""

from __future__ import annotations

TRIALS = "trials.json"
"""What settings were tried for a comparison, beside its methods' directories."""
METHOD_CARD = "method.json"
"""Beside the runs of one method (one per seed) it may lie what a report is to call them."""
