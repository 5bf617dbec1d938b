"""95% intervals for proportions and their paired differences, and for mean counts.

* one sample per problem: `wilson_interval` for a proportion, `tango_interval` for the paired difference;
* several samples per problem: a bootstrap over problems, because samples of one problem are not independent;
* a mean count, such as tokens: `mean_interval`, Student's, over problems.

The paper gives no intervals. This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from selfcorrect.errors import DataError

Interval: TypeAlias = tuple[float, float]
Counts: TypeAlias = NDArray[np.int64]

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNKS = 10
"""Number of parts the resamples are drawn in, which bounds memory to RESAMPLES / _CHUNKS x (distinct problems) integers."""
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


# ---------------------------------------------------------------- intervals


def wilson_interval(count: float, n: int) -> Interval:
    """Return Wilson's 95% score interval for a proportion ``count / n`` (statsmodels' ``proportion_confint``).

    The bounds solve ``|p - count / n| = z sqrt(p (1 - p) / n)`` for p. ``count`` need not be an integer.
    """
    from statsmodels.stats.proportion import proportion_confint  # seconds to import, so only where needed

    low, high = proportion_confint(count, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def tango_interval(gained: float, lost: float, n: int) -> Interval:
    r"""Return Tango's 95% score interval for a paired difference of proportions, ``(gained - lost) / n``.

    It contains every d at which the score statistic is at most z in absolute value (Tango 1998, Statistics in
    Medicine 17, 891-908; statsmodels has no such interval as of 0.15):

        T(d) = (gained - lost - n d) / sqrt(n (2 q + d (1 - d)))

    where q is the maximum-likelihood estimate of P(lost) under the restriction P(gained) = q + d, i.e. the
    larger root of ``2 n q^2 + ((2 n - gained + lost) d - gained - lost) q - lost d (1 - d) = 0``.

    Without any flip the interval is ``+- z^2 / (n + z^2)``, not a point. Counts need not be integers. Raises `DataError`
    unless gained, lost >= 0, gained + lost <= n and n >= 1.
    """
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n * (1 + 1e-12):
        raise DataError(
            f"gained = {gained}, lost = {lost}, n = {n} are not counts of paired outcomes: "
            "give n >= 1, counts of at least 0, and gained + lost <= n."
        )

    from scipy.optimize import brentq  # takes a while to import, so only where needed

    def score(d: float) -> float:
        # T / sqrt(T^2 + z^2): grows with T, is +-1/sqrt(2) at T = +-z, and stays finite where the variance is 0.
        distance = gained - lost - n * d
        half_b = (gained + lost - (2 * n - gained + lost) * d) / 2
        root = math.sqrt(max(half_b * half_b + 2 * n * lost * d * (1 - d), 0.0))
        q = (half_b + root) / (2 * n)
        spread = _Z * math.sqrt(max(n * (2 * q + d * (1 - d)), 0.0))
        return distance / math.hypot(distance, spread) if distance else 0.0

    estimate = min(max((gained - lost) / n, -1.0), 1.0)
    at_z = math.sqrt(0.5)
    low = -1.0 if estimate == -1 else brentq(lambda d: score(d) - at_z, -1.0, estimate, xtol=1e-14)
    high = 1.0 if estimate == 1 else brentq(lambda d: score(d) + at_z, estimate, 1.0, xtol=1e-14)
    return float(low), float(high)


def score_intervals(counts: Mapping[str, float], n: int) -> dict[str, Interval]:
    """Return Wilson intervals for proportions and Tango's for delta, from (possibly fractional) counts over n problems."""
    return {
        name: tango_interval(counts["i_to_c"], counts["c_to_i"], n) if name == "delta" else wilson_interval(count, n)
        for name, count in counts.items()
    }


def _bootstrap_intervals(counts_P: Mapping[str, Counts], episodes_P: Counts, *, seed: int) -> dict[str, Interval]:
    """Return percentile intervals of ``sum(counts) / sum(episodes)``, drawing whole problems with replacement.

    The percentile method needs no acceleration constant, which is undefined near 0 and 1. It is too narrow with fewer
    than about 30 problems, or if only two or three of them make the difference.

    Problems with the same counts are interchangeable, so a resample is one multinomial draw over the distinct
    rows. Sorting the rows makes the result independent of the order and the names of the problems.
    """
    table_PQ = np.column_stack([episodes_P, *counts_P.values()])
    chunks = [totals[:, 1:] / totals[:, :1] for totals in _resampled_totals(table_PQ, seed)]
    low_Q, high_Q = np.quantile(np.concatenate(chunks), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(low_Q[q]), float(high_Q[q])) for q, name in enumerate(counts_P)}


def _resampled_totals(table_PQ: NDArray[Any], seed: int) -> Iterator[NDArray[Any]]:
    """Yield the column sums of `RESAMPLES` resamples of whole problems, some resamples at a time."""
    rows_UQ, frequency_U = np.unique(table_PQ, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    problems = len(table_PQ)
    for _ in range(_CHUNKS):
        yield rng.multinomial(problems, frequency_U / problems, size=RESAMPLES // _CHUNKS) @ rows_UQ


def bootstrap_interval(
    table_PQ: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, seed: int
) -> Interval | None:
    """Return the percentile interval of a statistic of the columns' sums, drawing whole problems with replacement.

    ``statistic`` maps sums [B, Q] to values [B]; resamples where it is undefined do not count. Without any spread over the
    resamples there is no interval.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.concatenate([statistic(totals) for totals in _resampled_totals(table_PQ, seed)])
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) < 1e-12:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def independent_interval(count_a: int, n_a: int, count_b: int, n_b: int) -> Interval:
    """Return Newcombe's 95% interval for the difference of two independent proportions, ``count_a / n_a - count_b / n_b``."""
    from statsmodels.stats.proportion import confint_proportions_2indep  # seconds to import, so only where needed

    low, high = confint_proportions_2indep(
        count_a, n_a, count_b, n_b, method="newcomb", compare="diff", alpha=1 - LEVEL
    )
    return float(low), float(high)


def mean_interval(totals: Sequence[int], numbers: Sequence[int]) -> Interval | None:
    """Return the t-interval of the mean ``sum(totals) / sum(numbers)`` of counts, over independent problems.

    Args:
        totals: the sum over the samples of each problem.
        numbers: how many samples each problem has.

    With T and N the sums of both over P problems, the residual of a problem is ``e = (total - number T / N) P / N``, and the
    interval is ``T / N +- t(0.975; P - 1) sqrt(sum e^2 / (P (P - 1)))``: with equally many samples of every problem, Student's
    interval of the mean of the problems' means. Without two problems, or where all have the same mean, there is no interval.
    """
    from scipy.stats import t

    total, number, problems = sum(totals), sum(numbers), len(totals)
    squares = sum((x * number - total * n) ** 2 for x, n in zip(totals, numbers, strict=True))  # integers: exact
    if problems < 2 or not squares:
        return None
    error = math.sqrt(squares / (problems * (problems - 1))) * problems / number**2
    half = float(t.ppf((1 + LEVEL) / 2, problems - 1)) * error
    return total / number - half, total / number + half


def clustered_intervals(
    counts_P: Mapping[str, Counts], episodes_P: Counts, *, seed: int
) -> tuple[dict[str, Interval], tuple[str, ...]]:
    """Return bootstrap intervals, and the names of the metrics that fell back to a score interval.

    If every problem has the same rate, resampling problems shows no spread, and the interval would shrink to a point.
    Each problem then counts as one observation with the (fractional) count of its rate. This is conservative: a rate
    in [0, 1] with mean p varies at most as much as a Bernoulli variable with probability p.
    """
    problems, episodes = len(episodes_P), int(episodes_P.sum())
    rates = {name: problems * int(x_P.sum()) / episodes for name, x_P in counts_P.items()}
    same = tuple(name for name, x_P in counts_P.items() if np.all(x_P * episodes == x_P.sum() * episodes_P))
    intervals = _bootstrap_intervals(counts_P, episodes_P, seed=seed)
    fallback = score_intervals(rates, problems) if same else {}
    return {name: fallback[name] if name in same else intervals[name] for name in intervals}, same
