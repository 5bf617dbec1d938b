"""What delta is made of: answering again, keeping and repairing what was read, and detecting what is wrong.

Let ``r1`` and ``r2`` be the verdicts of the two attempts at a problem, and ``b`` that of a *blind* second attempt, which
follows the same instruction but a draft that says nothing of the problem. Then, problem by problem (docs/measuring.md),

    r2 - r1 = (b - r1) re-answering + r1 (r2 - b) keep + (1 - r1) (r2 - b) repair

With ``f``, the first attempt of a single-turn reference, re-answering is ``b - f``, and ``f - r1`` is *held back*.
``reading`` is keep + repair. Every term is a paired difference of two binary outcomes, so it has delta's intervals.

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcorrect.evaluation.intervals import (
    Counts,
    Interval,
    bootstrap_interval,
    clustered_intervals,
    independent_interval,
    tango_interval,
    wilson_interval,
)
from selfcorrect.evaluation.metrics import answer_changed
from selfcorrect.types import Attempt

DRAFTS = {"draft_swap": "another's", "empty_draft": "empty", "shuffled_draft": "own, shuffled"}
"""The blind drafts in short words, by the names of their controls in a summary."""
BLIND_ACCURACY = {"draft_swap": "acc_t2_swapped", "empty_draft": "acc_t2_empty", "shuffled_draft": "acc_t2_shuffled"}
"""The accuracy of the blind second attempts, by its name in each control."""
SHOWN = {"re_answering": "re-answering", "reading": "reading", "keep": "keep", "repair": "repair"}
"""What tables show of delta: the terms and `reading`, by their words."""
DETECTED = {
    "changed_if_incorrect": "of incorrect",
    "changed_if_correct": "of correct",
    "youden": "J",
    "fixed": "then correct",
    "broken": "then incorrect",
    "correct_if_incorrect": "m_w",
    "correct_if_correct": "m_r",
}
"""What tables show of a `Detection`, by their words."""
LIFTS = {"d": "d", "lift_incorrect": "after incorrect, L_w", "lift_correct": "after correct, L_r"}
"""What tables show of `Samples`, by their words."""
TERMS = ("re_answering", "keep", "repair")
"""The terms that add up to delta."""
FEWEST_SAMPLES = 4
"""The samples per problem from which `Samples` are measured."""
FEWEST_ANSWERS = 6
"""The answers from which a rate among them can tell anything: six that agree are the fewest with p < 0.05 in a sign test."""

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parts:
    """The terms of delta with one blind draft, whose second attempts have the accuracy ``acc_blind``."""

    acc_blind: float
    re_answering: float
    re_answering_ci95: Interval
    keep: float
    keep_ci95: Interval
    repair: float
    repair_ci95: Interval
    reading: float
    reading_ci95: Interval


@dataclass(frozen=True, slots=True)
class Detection:
    """How often incorrect and correct answers are changed, and how often a change ends well.

    ``i->c = P(incorrect) changed_if_incorrect fixed`` and ``c->i = P(correct) changed_if_correct broken``, exactly.
    ``youden`` is Youden's J, ``changed_if_incorrect - changed_if_correct``. ``correct_if_incorrect`` and ``correct_if_correct``
    are the second attempts' accuracies after an incorrect and after a correct first one: m_w and m_r of a shared pool of
    drafts (`evaluation.draft_pool`). A rate among no answers at all is None, and so is J where fewer than `FEWEST_ANSWERS`
    first answers are correct, or incorrect.
    """

    changed_if_incorrect: float | None
    changed_if_incorrect_ci95: Interval | None
    changed_if_correct: float | None
    changed_if_correct_ci95: Interval | None
    fixed: float | None
    fixed_ci95: Interval | None
    broken: float | None
    broken_ci95: Interval | None
    correct_if_incorrect: float | None
    correct_if_incorrect_ci95: Interval | None
    correct_if_correct: float | None
    correct_if_correct_ci95: Interval | None
    youden: float | None
    youden_ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Samples:
    """What several samples per problem tell without any intervention.

    ``d`` is the mean, over the ``mixed`` problems with correct and incorrect first attempts, of P(r2 = 1 | r1 = 1) less
    P(r2 = 1 | r1 = 0). ``lift_incorrect`` is what a second attempt after an incorrect first one gains over another first
    attempt at the same problem, ``lift_correct`` the same after a correct one:
    ``delta = P(r1 = 0) lift_incorrect + P(r1 = 1) lift_correct``, exactly.
    """

    samples: float
    mixed: int
    d: float | None
    d_ci95: Interval | None
    lift_incorrect: float | None
    lift_incorrect_ci95: Interval | None
    lift_correct: float | None
    lift_correct_ci95: Interval | None


@dataclass(frozen=True, slots=True)
class Decomposition:
    """What delta is made of, by blind draft (the keys of `DRAFTS`), with detection and, if there are enough, samples."""

    detection: Detection
    blind: Mapping[str, Parts]
    samples: Samples | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        found: dict[str, Any] = {"detection": _plain(self.detection)}
        if self.blind:
            found["blind"] = {name: _plain(parts) for name, parts in self.blind.items()}
        if self.samples is not None:
            found["samples"] = _plain(self.samples)
        return found


def _plain(value: Parts | Detection | Samples) -> dict[str, Any]:
    return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(value).items()}


def too_few(rate: float, problems: float) -> bool:
    """Return whether a fraction of some problems is of fewer than `FEWEST_ANSWERS`.

    >>> too_few(5 / 60, 60), too_few(6 / 60, 60)
    (True, False)
    """
    return rate * problems < FEWEST_ANSWERS - 1e-6


# ---------------------------------------------------------------- terms of delta


def terms(first: Flags, second: Flags, blind: Flags, reference: Flags | None = None) -> dict[str, tuple[Flags, Flags]]:
    """Return each term of delta as a pair of binary outcomes per episode, [N] each, whose difference it is.

    With a ``reference``, re-answering starts from its verdicts, and the term ``held_back`` comes first.
    """
    start = first if reference is None else reference
    found = {} if reference is None else {"held_back": (first, reference)}
    found["re_answering"] = (start, blind)
    found["keep"] = (first & blind, first & second)
    found["repair"] = (~first & blind, ~first & second)
    total = sum(after.astype(int) - before for before, after in found.values())
    assert np.array_equal(total, second.astype(int) - first), "the terms of delta do not add up to delta"
    return found


def parts_of_delta(problem_ids: Sequence[str], first: Flags, second: Flags, blind: Flags, *, seed: int) -> Parts:
    """Return the terms of delta with their 95% intervals; ``seed`` feeds the bootstrap over problems with several samples."""
    rows = _rows(problem_ids)
    pairs = {**terms(first, second, blind), "reading": (blind, second)}
    found: dict[str, Any] = {"acc_blind": int(blind.sum()) / len(blind)}
    for name, (before, after) in pairs.items():
        found[name], found[f"{name}_ci95"] = _paired(rows, before, after, seed)
    return Parts(**found)


def _rows(problem_ids: Sequence[str]) -> Counts:
    """Return the number of each episode's problem, [N]."""
    row_of = {problem_id: row for row, problem_id in enumerate(dict.fromkeys(problem_ids))}
    return np.array([row_of[problem_id] for problem_id in problem_ids], dtype=np.int64)


def _per_problem(rows: Counts, values: NDArray[Any]) -> Floats:
    return np.bincount(rows, weights=values, minlength=int(rows.max()) + 1).astype(np.float64)


def _paired(rows: Counts, before: Flags, after: Flags, seed: int) -> tuple[float, Interval]:
    """Return the mean of ``after - before`` with Tango's interval, or the bootstrap's for several samples per problem."""
    gained, lost = after & ~before, before & ~after
    value = (int(gained.sum()) - int(lost.sum())) / len(rows)
    episodes = np.bincount(rows)
    if len(episodes) == len(rows):
        return value, tango_interval(int(gained.sum()), int(lost.sum()), len(rows))
    counts = {
        name: _per_problem(rows, flags).astype(np.int64) for name, flags in (("i_to_c", gained), ("c_to_i", lost))
    }
    intervals, _ = clustered_intervals({**counts, "delta": counts["i_to_c"] - counts["c_to_i"]}, episodes, seed=seed)
    return value, intervals["delta"]


# ---------------------------------------------------------------- detection


def changed_answers(pairs: Sequence[tuple[Attempt, Attempt]]) -> Flags:
    """Return whether each second attempt changes the answer; an answer whose verdict changes counts as changed."""
    return np.array([a.correct != b.correct or answer_changed(a, b) for a, b in pairs], dtype=bool)


def detection(problem_ids: Sequence[str], first: Flags, second: Flags, changed: Flags, *, seed: int) -> Detection:
    """Return how often incorrect and correct answers are changed, and with what end."""
    rows = _rows(problem_ids)
    rates = {
        "changed_if_incorrect": (changed & ~first, ~first),
        "changed_if_correct": (changed & first, first),
        "fixed": (second & ~first, changed & ~first),
        "broken": (~second & first, changed & first),
        "correct_if_incorrect": (second & ~first, ~first),
        "correct_if_correct": (second & first, first),
    }
    found: dict[str, Any] = {}
    for name, (hits, among) in rates.items():
        found[name], found[f"{name}_ci95"] = _rate(rows, hits, among, seed)
    found["youden"], found["youden_ci95"] = _youden(rows, changed, first, seed)
    return Detection(**found)


def _rate(rows: Counts, hits: Flags, among: Flags, seed: int) -> tuple[float | None, Interval | None]:
    """Return the fraction of hits among some episodes with its interval; None among none."""
    count, total = int(hits.sum()), int(among.sum())
    if not total:
        return None, None
    if len(np.unique(rows)) == len(rows):
        return count / total, wilson_interval(count, total)
    hits_P, among_P = (_per_problem(rows, flags).astype(np.int64) for flags in (hits, among))
    there = among_P > 0
    intervals, _ = clustered_intervals({"rate": hits_P[there]}, among_P[there], seed=seed)
    return count / total, intervals["rate"]


def _youden(rows: Counts, changed: Flags, first: Flags, seed: int) -> tuple[float | None, Interval | None]:
    columns = [changed & ~first, ~first, changed & first, first]
    totals = [int(column.sum()) for column in columns]
    problems = int(rows.max()) + 1
    if any(too_few(total / len(rows), problems) for total in (totals[1], totals[3])):
        return None, None
    value = totals[0] / totals[1] - totals[2] / totals[3]
    if len(np.unique(rows)) == len(rows):
        return value, independent_interval(*totals)
    table = np.column_stack([_per_problem(rows, column) for column in columns])
    return value, bootstrap_interval(table, lambda t: t[:, 0] / t[:, 1] - t[:, 2] / t[:, 3], seed=seed)


# ---------------------------------------------------------------- several samples


def of_samples(problem_ids: Sequence[str], first: Flags, second: Flags, *, seed: int) -> Samples | None:
    """Return what several samples per problem tell; None if some problem has fewer than `FEWEST_SAMPLES`.

    The chance that another first attempt is correct is estimated from the other samples of the same problem, without bias.
    """
    rows = _rows(problem_ids)
    k_P, right_P = _per_problem(rows, np.ones(len(rows))), _per_problem(rows, first)
    if k_P.min() < FEWEST_SAMPLES:
        return None
    afresh = (right_P[rows] - first) / (k_P[rows] - 1)
    gain = second - afresh
    found: dict[str, Any] = {"samples": float(k_P.mean())}
    for name, among in (("lift_incorrect", ~first), ("lift_correct", first)):
        table = np.column_stack([_per_problem(rows, gain * among), _per_problem(rows, among)])
        found[name], found[f"{name}_ci95"] = _ratio(table, seed)
    mixed = (right_P > 0) & (right_P < k_P)
    both_P, one_P = _per_problem(rows, first & second), _per_problem(rows, ~first & second)
    d_P = both_P[mixed] / right_P[mixed] - one_P[mixed] / (k_P - right_P)[mixed]
    found["mixed"] = int(mixed.sum())
    found["d"], found["d_ci95"] = _ratio(np.column_stack([d_P, np.ones(len(d_P))]), seed)
    return Samples(**found)


def _ratio(table: Floats, seed: int) -> tuple[float | None, Interval | None]:
    """Return the ratio of the two columns' sums with its interval over problems."""
    if not len(table) or not table[:, 1].sum():
        return None, None
    value = float(table[:, 0].sum() / table[:, 1].sum())
    return value, bootstrap_interval(table, lambda t: t[:, 0] / t[:, 1], seed=seed)


# ---------------------------------------------------------------- stored results


@dataclass(frozen=True, slots=True)
class StoredTerm:
    """A term of delta as a summary has it; earlier versions stored no interval for some."""

    value: float
    ci95: tuple[float, float] | None = None


def stored_parts(results: Mapping[str, Any]) -> dict[str, dict[str, StoredTerm]]:
    """Return the terms of delta in stored results, by blind draft.

    Results of earlier versions have one draft and no keep and repair; the two terms that they have follow from the control.

    >>> control = {"acc_t2": 0.9, "acc_t2_swapped": 0.4, "difference": -0.5, "difference_ci95": [-0.6, -0.4]}
    >>> found = stored_parts({"acc_t1": 0.6, "controls": {"draft_swap": control}})["draft_swap"]
    >>> {name: (round(term.value, 3), term.ci95) for name, term in found.items()}
    {'re_answering': (-0.2, None), 'reading': (0.5, (0.4, 0.6))}
    """
    blind = results.get("decomposition", {}).get("blind", {})
    found = {name: dict(_stored(parts)) for name, parts in blind.items() if name in DRAFTS}
    for name, accuracy in BLIND_ACCURACY.items():
        control = results.get("controls", {}).get(name)
        if control is not None and name not in found:
            interval = control["difference_ci95"]
            found[name] = {
                "re_answering": StoredTerm(control[accuracy] - results["acc_t1"]),
                "reading": StoredTerm(
                    -control["difference"], None if interval is None else (-interval[1], -interval[0])
                ),
            }
    return found


def _stored(parts: Mapping[str, Any]) -> Iterator[tuple[str, StoredTerm]]:
    for name in SHOWN:
        yield name, StoredTerm(parts[name], tuple(parts[f"{name}_ci95"]))


def stored_detection(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the stored `Detection`; earlier versions have J from fewer answers than `FEWEST_ANSWERS`, which is left out."""
    found = results.get("decomposition", {}).get("detection")
    if found is None or not few_answers(results):
        return found  # type: ignore[no-any-return]
    return {**found, "youden": None, "youden_ci95": None}


def few_answers(results: Mapping[str, Any]) -> str | None:
    """Return in words that too few first answers are correct, or incorrect, to compare the two; None if there are enough."""
    n, right = results["n"], results["acc_t1"]
    for rate, words in ((right, "correct"), (1 - right, "incorrect")):
        if too_few(rate, n):
            return f"{rate * n:.3g} of {n:,} first answers are {words}"
    return None


def broken_identity(results: Mapping[str, Any]) -> str | None:
    """Return the first identity that stored results violate, in words; None if all hold."""
    for name, parts in results.get("decomposition", {}).get("blind", {}).items():
        if abs(sum(parts[term] for term in TERMS) - results["delta"]) > 1e-9:
            return f"delta = {results['delta']}, but its terms with the control {name} add up to another value"
        if abs(parts["keep"] + parts["repair"] - parts["reading"]) > 1e-9:
            return f"reading = {parts['reading']} with the control {name}, but keep + repair is another value"
    found = results.get("decomposition", {}).get("detection", {})
    for flip, share, rate, end in (
        ("i_to_c", 1 - results["acc_t1"], "changed_if_incorrect", "fixed"),
        ("c_to_i", results["acc_t1"], "changed_if_correct", "broken"),
    ):
        if found.get(end) is not None and abs(share * (found[rate] or 0.0) * found[end] - results[flip]) > 1e-9:
            return f"{flip} = {results[flip]}, but the rates of changed answers make another value"
    return None
