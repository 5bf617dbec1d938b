"""Conversations become episodes."""
