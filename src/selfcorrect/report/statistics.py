"""A figure over seeds: mean and interval, and comparisons of methods; always with the kind of interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from selfcorrect.evaluation.intervals import LEVEL


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval (None where there is none); ``runs`` is how many values went into it."""

    mean: float
    low: float | None
    high: float | None
    runs: int


def over_seeds(values: Sequence[float], own: Sequence[float] | None) -> Estimate:
    """The mean of one value per seed with its t-interval; of a single one, that run's own interval."""
    if len(values) == 1:
        low, high = own if own is not None else (None, None)
        return Estimate(values[0], low, high, 1)
    return t_estimate(values)


def t_estimate(values: Sequence[float]) -> Estimate:
    """Mean and t-interval of at least two independent values."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return Estimate(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A paired difference between two methods over the seeds that both have; p-values before and after Holm."""

    difference: Estimate
    p: float
    p_holm: float


def compared(ours: Mapping[str, Mapping[int, float]], reference: Mapping[int, float]) -> dict[str, PairedDifference]:
    """Every method against the reference: paired t over shared seeds, p-values with Holm's correction over all.

    ``ours`` maps methods to one value per seed. Methods that share fewer than two seeds with the reference are left
    out, and so are differences that are the same for every seed, for which the t-test has no spread to go by.
    """
    from statsmodels.stats.multitest import multipletests  # seconds to import, so only where needed

    found: dict[str, tuple[Estimate, float]] = {}
    for name, values in ours.items():
        seeds = sorted(set(values) & set(reference))
        differences = [values[seed] - reference[seed] for seed in seeds]
        if len(seeds) < 2 or math.isclose(max(differences), min(differences), abs_tol=1e-12):
            continue
        found[name] = (t_estimate(differences), float(stats.ttest_1samp(differences, 0.0).pvalue))
    if not found:
        return {}
    corrected = multipletests([p for _, p in found.values()], method="holm")[1]
    return {
        name: PairedDifference(estimate, p, float(holm))
        for (name, (estimate, p)), holm in zip(found.items(), corrected, strict=True)
    }
