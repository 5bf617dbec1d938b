"""Statistics over seeds: mean and interval of a metric, and paired comparisons of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from selfcorrect.evaluation.intervals import LEVEL


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of ``runs`` values with its 95% interval (None if there is none)."""

    mean: float
    low: float | None
    high: float | None
    runs: int


def over_seeds(values: Sequence[float], own: Sequence[float] | None) -> Estimate:
    """Return the mean of one value per seed with its t-interval; a single value keeps its ``own`` interval."""
    if len(values) == 1:
        low, high = own if own is not None else (None, None)
        return Estimate(values[0], low, high, 1)
    return t_estimate(values)


def t_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and t-interval of at least two independent values."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    return Estimate(mean, mean - half, mean + half, len(values))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A paired difference between two methods over their shared seeds; p-values before and after Holm's correction."""

    difference: Estimate
    p: float
    p_holm: float


def compared(ours: Mapping[str, Mapping[int, float]], reference: Mapping[int, float]) -> dict[str, PairedDifference]:
    """Compare every method with the reference: paired t-tests over shared seeds, Holm's correction over all p-values.

    ``ours`` maps methods to one value per seed. A method is left out if it shares fewer than two seeds with the reference,
    or if its difference is the same for every seed, so that the t-test has no variance to use.
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
