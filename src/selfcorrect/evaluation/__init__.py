"""Measuring a model: metrics, intervals, evaluations, comparisons and exports."""
