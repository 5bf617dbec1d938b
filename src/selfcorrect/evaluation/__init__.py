"""Measuring a model: metrics, intervals, evaluations and what is made of them."""
