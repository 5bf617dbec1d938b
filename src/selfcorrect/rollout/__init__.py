"""Rollouts: from scripts and problems to episodes."""
