"""Accuracy per attempt, flips between the first two attempts, and their 95% intervals.

Every metric is a fraction of **all** episodes (docs/method.md, section 8), computed from integer counts. Among ``N``
episodes, ``gained`` are incorrect at t1 and correct at t2, and ``lost`` are correct at t1 and incorrect at t2:

    i->c = gained / N,  c->i = lost / N,  delta = Acc@t2 - Acc@t1 = (gained - lost) / N

so that ``delta == (i->c) - (c->i)``. The conditional rates of some later papers are not computed.
Only `Outcome.CORRECT` counts as correct. A truncated, unanswered or unverified attempt is incorrect, and
`TurnResults` has the fraction of each.

All intervals are at 95% (docs/method.md, section 8):

* one sample per problem: `wilson_interval` for a proportion, `tango_interval` for the paired difference;
* several samples per problem: a bootstrap over problems, because samples of one problem are not independent.

The paper gives no intervals. This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from selfcorrect.errors import DataError
from selfcorrect.evaluation.intervals import RESAMPLES, Counts, Interval, clustered_intervals, score_intervals
from selfcorrect.extras import require
from selfcorrect.types import Attempt, Flip, Outcome

if TYPE_CHECKING:
    import pandas as pd


# ---------------------------------------------------------------- one episode


def flip(attempts: Sequence[Attempt]) -> Flip:
    """Return how the second attempt compares with the first.

    Raises `DataError` for fewer than two attempts.
    """
    if len(attempts) < 2:
        raise DataError(f"an episode with {len(attempts)} attempt(s) has no flip: it needs at least two.")
    flips: dict[tuple[bool, bool], Flip] = {
        (False, True): Flip.I2C,
        (True, False): Flip.C2I,
        (True, True): Flip.CC,
        (False, False): Flip.II,
    }
    return flips[attempts[0].correct, attempts[1].correct]


MOST_COMPARED = 100_000
"""The characters of a text that the edit distance reads: its time grows with the product of both lengths."""


def edit_distance_ratio(a: str, b: str) -> float:
    """Return the Levenshtein distance in characters over the summed length of both texts, in [0, 1].

    Only the first `MOST_COMPARED` characters of each are read.

    The ratio (docs/method.md, section 8) is 0 for equal texts, including two empty ones. It is 1 only if exactly one
    text is empty, and at most 1/2 for texts of the same length.

    >>> edit_distance_ratio("kitten", "sitting")  # 3 edits, 6 + 7 characters
    0.23076923076923078
    """
    a, b = a[:MOST_COMPARED], b[:MOST_COMPARED]
    total = len(a) + len(b)
    return Levenshtein.distance(a, b) / total if total else 0.0


def answer_changed(first: Attempt, second: Attempt) -> bool:
    """Return whether the extracted answers differ. A missing answer is a distinct value; if both are missing, texts count."""
    if first.extracted is None and second.extracted is None:
        return first.text.strip() != second.text.strip()
    return first.extracted != second.extracted


# ---------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class TurnResults:
    """Fractions of all episodes at one turn: correct answers, and failures other than incorrect answers.

    ``out_of_memory`` and ``refused`` apply to programs. Results from versions without these two fields count such
    programs as incorrect; ``accuracy_ci95`` is None only in results from versions without it.
    """

    accuracy: float
    truncated: float
    no_answer: float
    timed_out: float
    verifier_failed: float
    out_of_memory: float = 0.0
    refused: float = 0.0
    accuracy_ci95: Interval | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The metrics of docs/method.md, section 8, with their intervals.

    t1 and t2 are the first two turns; ``turns`` holds all of them. ``n`` counts problems, ``samples`` the episodes per
    problem (their mean if problems differ). Everything else is a fraction of all episodes in [0, 1]; delta and its
    interval lie in [-1, 1]. Metrics that compare two attempts are None for one-attempt episodes.
    """

    n: int
    samples: int | float
    acc_t1: float
    acc_t2: float | None
    delta: float | None
    delta_ci95: Interval | None
    i_to_c: float | None
    c_to_i: float | None
    acc_t1_ci95: Interval
    acc_t2_ci95: Interval | None
    i_to_c_ci95: Interval | None
    c_to_i_ci95: Interval | None
    ci_method: str
    answer_change_rate: float | None
    edit_distance_ratio_mean: float | None
    turns: tuple[TurnResults, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, text, lists and None, ready for ``json.dumps``."""
        plain = asdict(self)
        return _with_lists(plain | {"turns": [_with_lists(turn) for turn in plain["turns"]]})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Results:
        """Invert `to_json`. Raises `DataError` for missing or unknown keys, or a malformed interval."""
        _check_keys("results", stored, cls)
        if not isinstance(stored["turns"], Sequence) or not stored["turns"]:
            raise DataError(f"results: turns = {stored['turns']!r}, but it must list the metrics of at least 1 turn.")
        for turn in stored["turns"]:
            _check_keys("results.turns", turn, TurnResults)
        turns = tuple(TurnResults(**_with_intervals(turn)) for turn in stored["turns"])
        return cls(**{**_with_intervals(stored), "turns": turns})

    def to_pandas(self) -> pd.DataFrame:
        """Return one row, so that several results concatenate to a table: ``delta``, ``delta_low``, ``t1_truncated``, ...

        Raises `ConfigError` if pandas is missing.
        """
        pandas = require("pandas", extra="data", why="Results.to_pandas()")
        row: dict[str, Any] = {}
        figures = self.to_json()
        for k, turn in enumerate(figures.pop("turns"), 1):
            figures |= {f"t{k}_{name}": value for name, value in turn.items()}
        for name, value in figures.items():
            if name.endswith("_ci95"):
                row[name.replace("_ci95", "_low")], row[name.replace("_ci95", "_high")] = value or (None, None)
            else:
                row[name] = value
        table: pd.DataFrame = pandas.DataFrame([row])
        return table


def with_later_attempts(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored results with the accuracies of the third and later attempts added as ``acc_t3``, ...

    >>> with_later_attempts({"acc_t1": 0.5, "turns": [{}, {}, {"accuracy": 0.7, "accuracy_ci95": [0.6, 0.8]}]})["acc_t3"]
    0.7
    """
    later: dict[str, Any] = {}
    for k, turn in enumerate(stored["turns"][2:], 3):
        later |= {f"acc_t{k}": turn["accuracy"], f"acc_t{k}_ci95": turn.get("accuracy_ci95")}
    return {**stored, **later}


def _check_keys(where: str, stored: object, cls: type[Results] | type[TurnResults]) -> None:
    """Reject keys other than the fields of ``cls``; only fields that older versions lacked may be missing."""
    if not isinstance(stored, Mapping):
        raise DataError(f"{where} is a {type(stored).__name__}, but must be an object with named metrics.")
    expected, found = {field.name for field in fields(cls)}, set(stored)
    missing = {field.name for field in fields(cls) if field.default is MISSING} - found
    if missing or found - expected:
        raise DataError(
            f"{where}: missing {sorted(missing)}, unknown {sorted(found - expected)}. "
            "The stored results come from another version: evaluate the episodes again."
        )


def _with_lists(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(x) if name.endswith("_ci95") and x is not None else x for name, x in plain.items()}


def _with_intervals(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _interval_from_json(name, x) if name.endswith("_ci95") else x for name, x in stored.items()}


def _interval_from_json(name: str, value: Any) -> Interval | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(x, (int, float)) for x in value):
        raise DataError(f"results: {name} = {value!r} is not an interval: it must be [low, high] or null.")
    return float(value[0]), float(value[1])


# ---------------------------------------------------------------- many episodes


def summarize(problem_ids: Sequence[str], attempts: Sequence[Sequence[Attempt]], *, seed: int) -> Results:
    """Summarize a set of episodes, one entry each in ``problem_ids`` and ``attempts``, in any order.

    Episodes that share a problem id are samples of one problem. ``seed`` feeds the bootstrap, which is used only if
    some problem has several samples. Raises `DataError` for an empty set (its accuracy is undefined, not 0), for
    episodes without attempts, and for episodes with different numbers of attempts.
    """
    turns = _check_episodes(problem_ids, attempts)
    total = len(attempts)
    counts_P, episodes_P = _counts_by_problem(problem_ids, attempts)
    problems = len(episodes_P)
    if total == problems:
        intervals = score_intervals({name: int(x_P.sum()) for name, x_P in counts_P.items()}, problems)
        method = "95 %, one sample per problem: Wilson score for proportions, Tango (1998) paired score for delta"
    else:
        intervals, same = clustered_intervals(counts_P, episodes_P, seed=seed)
        method = f"95 %, percentile bootstrap over problems ({RESAMPLES} resamples, seed {seed})"
        if same:
            method += (
                f"; for {', '.join(same)}, where all problems agree: "
                "Wilson score (Tango 1998 paired score for delta), each problem as one observation"
            )
    rates = {name: int(x_P.sum()) / total for name, x_P in counts_P.items()}
    pairs = [(episode[0], episode[1]) for episode in attempts] if turns > 1 else []
    return Results(
        n=problems,
        samples=total // problems if total % problems == 0 else total / problems,
        acc_t1=rates["acc_t1"],
        acc_t2=rates.get("acc_t2"),
        delta=rates.get("delta"),
        delta_ci95=intervals.get("delta"),
        i_to_c=rates.get("i_to_c"),
        c_to_i=rates.get("c_to_i"),
        acc_t1_ci95=intervals["acc_t1"],
        acc_t2_ci95=intervals.get("acc_t2"),
        i_to_c_ci95=intervals.get("i_to_c"),
        c_to_i_ci95=intervals.get("c_to_i"),
        ci_method=method,
        answer_change_rate=sum(answer_changed(a, b) for a, b in pairs) / total if pairs else None,
        # fsum is exact, so the order of the episodes does not change the last digit.
        edit_distance_ratio_mean=math.fsum(edit_distance_ratio(a.text, b.text) for a, b in pairs) / total
        if pairs
        else None,
        turns=tuple(
            _turn_results([episode[k] for episode in attempts], intervals[f"acc_t{k + 1}"]) for k in range(turns)
        ),
    )


def _check_episodes(problem_ids: Sequence[str], attempts: Sequence[Sequence[Attempt]]) -> int:
    """Return the number of attempts, which must be the same in every episode."""
    if len(problem_ids) != len(attempts):
        raise DataError(
            f"{len(problem_ids)} problem ids for {len(attempts)} episodes: give one problem id per episode."
        )
    if not attempts:
        raise DataError("there are no episodes to summarize: the accuracy of an empty set is undefined.")
    lengths = sorted({len(episode) for episode in attempts})
    if lengths[0] == 0 or len(lengths) > 1:
        raise DataError(
            f"the episodes have {', '.join(map(str, lengths))} attempts, but all must have the same number, "
            "at least 1: summarize episodes of one script at a time."
        )
    return lengths[0]


def _counts_by_problem(
    problem_ids: Sequence[str], attempts: Sequence[Sequence[Attempt]]
) -> tuple[dict[str, Counts], Counts]:
    """Return the numerators of every metric and the number of episodes, per problem, [P] each.

    The keys are fields of `Results`, and acc_t3, ...; delta's numerator is gained - lost, so the identity is exact.
    """
    tests: dict[str, Callable[[Sequence[Attempt]], bool]] = {
        f"acc_t{k + 1}": _right_at(k) for k in range(len(attempts[0]))
    }
    if len(attempts[0]) > 1:
        tests |= {
            "i_to_c": lambda episode: flip(episode) is Flip.I2C,
            "c_to_i": lambda episode: flip(episode) is Flip.C2I,
        }
    row_of = {problem_id: row for row, problem_id in enumerate(dict.fromkeys(problem_ids))}
    rows_N = np.array([row_of[problem_id] for problem_id in problem_ids])
    counts_P: dict[str, Counts] = {}
    for name, test in tests.items():
        hits_N = np.array([test(episode) for episode in attempts], dtype=bool)
        counts_P[name] = np.bincount(rows_N[hits_N], minlength=len(row_of)).astype(np.int64)
    if "i_to_c" in counts_P:
        counts_P["delta"] = counts_P["i_to_c"] - counts_P["c_to_i"]
    return counts_P, np.bincount(rows_N, minlength=len(row_of)).astype(np.int64)


def _right_at(turn: int) -> Callable[[Sequence[Attempt]], bool]:
    return lambda episode: episode[turn].correct


def _turn_results(attempts: Sequence[Attempt], accuracy_ci95: Interval) -> TurnResults:
    n = len(attempts)
    found = {outcome: sum(attempt.outcome == outcome for attempt in attempts) for outcome in Outcome}
    return TurnResults(
        accuracy=found[Outcome.CORRECT] / n,
        truncated=sum(attempt.truncated for attempt in attempts) / n,
        no_answer=found[Outcome.NO_ANSWER] / n,
        timed_out=found[Outcome.TIMED_OUT] / n,
        verifier_failed=found[Outcome.VERIFIER_FAILED] / n,
        out_of_memory=found[Outcome.OUT_OF_MEMORY] / n,
        refused=found[Outcome.REFUSED] / n,
        accuracy_ci95=accuracy_ci95,
    )
