"""Test two evaluations of the same problems for a difference, paired by problem.

If both evaluations have one sample per problem, each attempt gets the exact McNemar test and Tango's paired interval.
With several samples, and always for delta, the interval is a bootstrap over problems and p comes from a sign-flip
permutation test, because problems are independent of each other and samples of one problem are not.

With A as a single-turn reference, the pairs ``H`` (B's first attempt, then A's) and ``M1`` (A's first attempt, then B's
second) add up to B's delta. `merit_reference` says what they mean for the A at hand.

Evaluations of different tasks, problems or context modes are rejected. Settings that may differ on purpose (model,
instructions, sampling) are listed next to the result.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcorrect.errors import ConfigError, DataError
from selfcorrect.evaluation.compared import Side
from selfcorrect.evaluation.conclusion import Conclusion
from selfcorrect.evaluation.evaluation import conclusion_of
from selfcorrect.evaluation.intervals import RESAMPLES, Interval, tango_interval
from selfcorrect.evaluation.merit_reference import Merit, Reference, merit_of
from selfcorrect.storage.episode_log import StoredEpisode
from selfcorrect.types import Part

MODE = "context_mode"
COMPARED_PARTS = (Part.ATTEMPTS, Part.SAMPLED)
MUST_AGREE = ("task.name", "task.version", "problems.digest", "plan.drafts", MODE)
"""Settings that two evaluations must share to be comparable."""
SILENT = ("schema", "problems.", "model.", "endpoint.", "device", "task_source.")
"""Settings that are expected to differ, or that MUST_AGREE covers."""

MERIT = ("H", "M1")
"""The differences that need a single-turn reference."""
BOUNDS = {"H": "H >=", "M1": "M1 <="}
"""How a table names them where the base stands in for that reference."""

Rates = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric in A and in B, the difference B - A, its 95% interval, and the p-value of no difference."""

    figure: str
    a: float
    b: float
    difference: float
    ci95: Interval
    p: float
    method: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All metrics of two evaluations over ``n`` problems; ``samples`` are the samples per problem in A and in B.

    ``sealed`` says of each whether its files have a seal, by which changes would have been noticed. ``conclusions`` are those
    of each one's own controls, None without them. ``merit`` says what H and M1 mean, or why they are not among the differences.
    """

    n: int
    samples: tuple[int, int]
    differences: tuple[Difference, ...]
    settings: Mapping[str, tuple[Any, Any]]
    sealed: tuple[bool, bool] = (True, True)
    conclusions: tuple[Conclusion | None, Conclusion | None] = (None, None)
    merit: Merit | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


def compare(
    a: str | Path, b: str | Path, *, part: str = Part.ATTEMPTS, seed: int = 0, across_modes: bool = False
) -> Comparison:
    """Compare two finished evaluations: directories of `evaluate`, runs (their last stage), or ``RUN:STAGE``.

    Args:
        part: ``attempts``, or ``sampled`` if both also sampled at the training temperature.
        seed: the seed of the bootstrap and the permutation test.
        across_modes: also compare evaluations of different context modes; the comparison then says so.

    Raises:
        RunDirectoryError: one is no directory of an evaluation or a run.
        DataError: one is not finished, or their tasks, problems or context modes differ.
        ConfigError: there is no such part.
    """
    if part not in COMPARED_PARTS:
        raise ConfigError(f"part = {part!r} does not exist; choose from {', '.join(COMPARED_PARTS)}.")
    sides = Side.of(a), Side.of(b)
    here, there = (side.settings for side in sides)
    _refuse_different(here, there, f"{a}", f"{b}", across_modes=across_modes)
    n, samples, differences = compare_records(*(side.episodes(Part(part)) for side in sides), seed=seed)
    merit = merit_of(*sides, second_attempts=any(d.figure in MERIT for d in differences))
    kept = differences if merit.computed else tuple(d for d in differences if d.figure not in MERIT)
    keys = [key for key in {**here, **there} if not key.startswith(SILENT) and here.get(key) != there.get(key)]
    if any(side.stage for side in sides):  # a run does not record all that an evaluation does
        keys = [key for key in keys if key in here and key in there]
    differing = {key: (here.get(key), there.get(key)) for key in keys}
    one, other = (conclusion_of(side.results) for side in sides)
    return Comparison(n, samples, kept, differing, (sides[0].sealed, sides[1].sealed), (one, other), merit)


def compare_records(
    a: Iterable[StoredEpisode], b: Iterable[StoredEpisode], *, seed: int
) -> tuple[int, tuple[int, int], tuple[Difference, ...]]:
    """Return the number of problems, the samples per problem and the differences of two sets of stored episodes.

    Raises:
        DataError: the problems differ, or one side has different numbers of samples for different problems.
    """
    rights = [_by_problem(records) for records in (a, b)]
    if rights[0].keys() != rights[1].keys():
        only = [sorted(x.keys() - y.keys())[:3] for x, y in (rights, rights[::-1])]
        raise DataError(
            f"the problems differ: only A has {only[0] or 'none'}, only B {only[1] or 'none'} (the first few): "
            "evaluate both on the same problems."
        )
    ids = sorted(rights[0])
    # [P, samples, K] each, of 0 and 1
    right_a, right_b = (_stacked(side, ids, name) for side, name in zip(rights, "AB", strict=True))
    turns = min(right_a.shape[2], right_b.shape[2])
    differences = [_accuracy(f"Acc@t{k + 1}", right_a[:, :, k], right_b[:, :, k], seed) for k in range(turns)]
    if turns > 1:
        delta_a, delta_b = (right[:, :, 1] - right[:, :, 0] for right in (right_a, right_b))
        differences.append(_clustered("delta", delta_a.mean(1), delta_b.mean(1), seed, reach=2))
    if right_b.shape[2] > 1:
        reference, b1, b2 = right_a[:, :, 0], right_b[:, :, 0], right_b[:, :, 1]
        differences.append(_accuracy("H", b1, reference, seed))
        differences.append(_accuracy("M1", reference, b2, seed))
    return len(ids), (right_a.shape[1], right_b.shape[1]), tuple(differences)


def comparison_text(found: Comparison, a: str, b: str) -> str:
    """Return the comparison as a table to print, in %."""
    samples = "" if found.samples == (1, 1) else f" ({found.samples[0]} and {found.samples[1]} samples each)"
    lines = [f"A = {a}", f"B = {b}", f"{found.n} problems{samples}, paired. Values are in %."]
    lines.append(f"  {'':8}{'A':>7}{'B':>7}{'B - A':>8}  {'95% interval':<17}{'p':>8}")
    bounds = BOUNDS if found.merit and found.merit.reference is Reference.BASE else {}
    for d in found.differences:
        signed = "+" if d.figure == "delta" else ""
        both = f"{'':14}" if d.figure in MERIT else f"{100 * d.a:>{signed}7.1f}{100 * d.b:>{signed}7.1f}"
        interval = f"[{100 * d.ci95[0]:+.1f}, {100 * d.ci95[1]:+.1f}]"
        name = bounds.get(d.figure, d.figure)
        lines.append(f"  {name:8}{both}{100 * d.difference:>+8.1f}  {interval:<17}{d.p:>8.2g}")
    lines += [found.merit.text] if found.merit else []
    for side, conclusion in zip("AB", found.conclusions, strict=True):
        lines += conclusion.lines(side) if conclusion else []
    lines += [f"{figures}: {method}" for method, figures in _methods(found.differences).items()]
    lines += [f"differs: {key}: {x!r} in A, {y!r} in B" for key, (x, y) in found.settings.items()]
    unsealed = [side for side, is_sealed in zip("AB", found.sealed, strict=True) if not is_sealed]
    if unsealed:
        lines.append(
            f"not sealed: {' and '.join(unsealed)} (an earlier version wrote it, so changes cannot be noticed)"
        )
    if MODE in found.settings:
        lines.append("The context modes differ, which may cause part of each difference.")
    return "\n".join(lines)


def _methods(differences: Sequence[Difference]) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for difference in differences:
        found[difference.method].append(difference.figure)
    return {method: ", ".join(figures) for method, figures in found.items()}


# --- statistics -------------------------------------------------------------------------------------


def _accuracy(figure: str, a: Rates, b: Rates, seed: int) -> Difference:
    if a.shape[1] > 1 or b.shape[1] > 1:
        return _clustered(figure, a.mean(1), b.mean(1), seed, reach=1)
    from statsmodels.stats.contingency_tables import mcnemar  # seconds to import, so only where needed

    gained, lost = int(((b > a)[:, 0]).sum()), int(((b < a)[:, 0]).sum())
    both, neither = int((a * b).sum()), int(((1 - a) * (1 - b)).sum())
    p = float(mcnemar([[both, lost], [gained, neither]], exact=True).pvalue)
    n = len(a)
    method = "McNemar's exact test; Tango (1998) paired score interval"
    return Difference(figure, a.mean(), b.mean(), (gained - lost) / n, tango_interval(gained, lost, n), p, method)


def _clustered(figure: str, a: Rates, b: Rates, seed: int, *, reach: int) -> Difference:
    """Return the mean difference of per-problem rates a [P] and b [P]; one problem's rate lies in [-reach, reach]."""
    from scipy import stats

    d = b - a
    method = "sign-flip permutation test; percentile bootstrap over problems"
    if np.ptp(d) == 0:  # no spread to resample: at most a fraction z^2 / (n + z^2) of all problems could differ
        room = reach * tango_interval(0, 0, len(d))[1]
        interval = (max(-2.0, float(d[0]) - room), min(2.0, float(d[0]) + room))
        return Difference(
            figure, a.mean(), b.mean(), float(d[0]), interval, 1.0 if d[0] == 0 else 2.0 ** (1 - len(d)), method
        )
    batch = max(1, 5_000_000 // len(d))
    drawn = stats.bootstrap(
        (d,), np.mean, n_resamples=RESAMPLES, batch=batch, method="percentile", rng=np.random.default_rng(seed)
    )
    test = stats.permutation_test(
        (d,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES - 1,
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    interval = float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    return Difference(figure, a.mean(), b.mean(), float(d.mean()), interval, float(test.pvalue), method)


# --- reading ----------------------------------------------------------------------------------------


def _refuse_different(a: Mapping[str, Any], b: Mapping[str, Any], one: str, other: str, *, across_modes: bool) -> None:
    must_agree = [key for key in MUST_AGREE if not (across_modes and key == MODE)]
    differing = [key for key in must_agree if a.get(key) != b.get(key)]
    if "task.name" in differing:
        differing = ["task.name"]  # another task has another version and other problems anyway
    elif "problems.digest" in differing:
        differing += [key for key in a if key.startswith("problems.") and key not in differing and a[key] != b.get(key)]
    if differing:
        listed = "".join(f"\n  - {key}: {a.get(key)!r} in {one}, {b.get(key)!r} in {other}" for key in differing)
        raise DataError(
            f"{one} and {other} cannot be compared, because more than the model differs:{listed}\n"
            "Evaluate both on the same task, problems (--limit, --data-seed, --split) and context mode; "
            "`selfcorrect rescore` updates the verdicts of an older task version, and --across-modes compares "
            "different context modes."
        )


def _by_problem(episodes: Iterable[StoredEpisode]) -> dict[str, list[list[bool]]]:
    found: dict[str, list[list[bool]]] = defaultdict(list)
    for episode in episodes:
        found[episode.problem_id].append([turn.judged.correct for turn in episode.attempts])
    return found


def _stacked(side: Mapping[str, list[list[bool]]], ids: Sequence[str], name: str) -> Rates:
    shapes = {(len(side[key]), len(attempts)) for key in ids for attempts in side[key]}
    if len(shapes) != 1:
        raise DataError(f"{name} has {len(shapes) or 'no'} shapes of episodes (samples x attempts): {sorted(shapes)}.")
    return np.array([side[key] for key in ids], dtype=np.float64)
