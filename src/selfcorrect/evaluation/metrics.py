"""Accuracy per attempt, flips between the first two attempts, and honest intervals around them.

Everything here is a fraction of **all** episodes (docs/method.md, section 8), computed from integer counts. With ``N``
episodes, of which ``gained`` are wrong at t1 and right at t2 and ``lost`` the other way round:

    i->c = gained / N,  c->i = lost / N,  delta = Acc@t2 - Acc@t1 = (gained - lost) / N

so that ``delta == (i->c) - (c->i)``. Conditional rates, as some later papers print, are found nowhere here.
Only `Outcome.CORRECT` counts as right: a truncated, unanswered or unverified attempt is a wrong one, and
`TurnResults` says how many there were.

Intervals, all at 95 % (docs/method.md, section 8):

* one sample per problem: `wilson_interval` for a proportion, `tango_interval` for the paired difference;
* several samples per problem: a bootstrap over problems, as samples of one problem are not independent.

The paper gives no intervals. Pure: no model, no tokenizer, no file.
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
from selfcorrect.types import Attempt, Episode, Flip, Outcome, StopReason

if TYPE_CHECKING:
    import pandas as pd


def attempts_of(episode: Episode) -> tuple[Attempt, ...]:
    """The attempts of an episode, in order; truncated means stopped by the token limit."""
    return tuple(
        Attempt(verdict.outcome, turn.text, verdict.extracted, turn.stop is StopReason.LENGTH)
        for turn, verdict in zip(episode.attempts, episode.verdicts, strict=True)
    )


# ---------------------------------------------------------------- one episode


def flip(attempts: Sequence[Attempt]) -> Flip:
    """Return how the second attempt compares with the first.

    Raises `DataError` for fewer than two attempts.
    """
    if len(attempts) < 2:
        raise DataError(f"an episode with {len(attempts)} attempt(s) has no flip: it needs a first and a second one.")
    flips: dict[tuple[bool, bool], Flip] = {
        (False, True): Flip.I2C,
        (True, False): Flip.C2I,
        (True, True): Flip.CC,
        (False, False): Flip.II,
    }
    return flips[attempts[0].correct, attempts[1].correct]


def edit_distance_ratio(a: str, b: str) -> float:
    """Levenshtein distance in characters over the summed length of both texts (docs/method.md, section 8), in [0, 1].

    0 for equal texts, two empty ones included; 1 only where exactly one of them is empty; at most 1/2
    for texts of one length.

    >>> edit_distance_ratio("kitten", "sitting")  # 3 edits, 6 + 7 characters
    0.23076923076923078
    """
    total = len(a) + len(b)
    return Levenshtein.distance(a, b) / total if total else 0.0


def answer_changed(first: Attempt, second: Attempt) -> bool:
    """Whether the extracted answers differ. No answer is a value of its own; without any, the texts decide."""
    if first.extracted is None and second.extracted is None:
        return first.text.strip() != second.text.strip()
    return first.extracted != second.extracted


# ---------------------------------------------------------------- results


@dataclass(frozen=True, slots=True)
class TurnResults:
    """Fractions of all episodes at one turn: right answers, and what went wrong besides wrong answers.

    ``out_of_memory`` and ``refused`` are what became of programs. Results that were stored before these two were count
    such programs among the wrong ones; ``accuracy_ci95`` is None only in results that were stored before it was.
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
    """The figures of docs/method.md, section 8 with their intervals; t1 and t2 are the first two turns, ``turns`` holds them all.

    ``n`` counts problems, ``samples`` the episodes per problem (their mean where problems differ). Everything
    else is a fraction of all episodes in [0, 1]; delta and its interval lie in [-1, 1]. Figures that compare two
    attempts are None for one-attempt episodes.
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
        """Plain numbers, text, lists and None, ready for ``json.dumps``."""
        plain = asdict(self)
        return _with_lists(plain | {"turns": [_with_lists(turn) for turn in plain["turns"]]})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Results:
        """The inverse of `to_json`. Raises `DataError` for missing or unknown keys, or an interval that is none."""
        _check_keys("results", stored, cls)
        if not isinstance(stored["turns"], Sequence) or not stored["turns"]:
            raise DataError(f"results: turns = {stored['turns']!r}, but it must list the figures of at least 1 turn.")
        for turn in stored["turns"]:
            _check_keys("results.turns", turn, TurnResults)
        turns = tuple(TurnResults(**_with_intervals(turn)) for turn in stored["turns"])
        return cls(**{**_with_intervals(stored), "turns": turns})

    def to_pandas(self) -> pd.DataFrame:
        """One row, so that several results concatenate to a table: ``delta``, ``delta_low``, ``t1_truncated``, ...

        Raises `ConfigError` where pandas is missing.
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
    """Stored results with the accuracies of the third and later attempts, ``acc_t3``, ..., beside those of the first two.

    >>> with_later_attempts({"acc_t1": 0.5, "turns": [{}, {}, {"accuracy": 0.7, "accuracy_ci95": [0.6, 0.8]}]})["acc_t3"]
    0.7
    """
    later: dict[str, Any] = {}
    for k, turn in enumerate(stored["turns"][2:], 3):
        later |= {f"acc_t{k}": turn["accuracy"], f"acc_t{k}_ci95": turn.get("accuracy_ci95")}
    return {**stored, **later}


def _check_keys(where: str, stored: object, cls: type[Results] | type[TurnResults]) -> None:
    """Exactly the fields of ``cls``: a figure must not be missing (unless older versions had none) nor vanish."""
    if not isinstance(stored, Mapping):
        raise DataError(f"{where} is a {type(stored).__name__}, but must be an object with named figures.")
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
        raise DataError(f"results: {name} = {value!r} is no interval: it must be [low, high] or null.")
    return float(value[0]), float(value[1])


# ---------------------------------------------------------------- many episodes


def summarize(problem_ids: Sequence[str], attempts: Sequence[Sequence[Attempt]], *, seed: int) -> Results:
    """The figures of a set of episodes, one entry each in ``problem_ids`` and ``attempts``, in any order.

    Episodes that share a problem id are samples of one problem. ``seed`` feeds the bootstrap, which is only
    used where some problem has several samples. Raises `DataError` for no episodes at all (their accuracy is not
    0), for episodes without attempts, and for episodes with differing numbers of them.
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
        # fsum is exact, so the order of the episodes does not show in the last digit.
        edit_distance_ratio_mean=math.fsum(edit_distance_ratio(a.text, b.text) for a, b in pairs) / total
        if pairs
        else None,
        turns=tuple(
            _turn_results([episode[k] for episode in attempts], intervals[f"acc_t{k + 1}"]) for k in range(turns)
        ),
    )


def _check_episodes(problem_ids: Sequence[str], attempts: Sequence[Sequence[Attempt]]) -> int:
    """The number of attempts, the same in every episode."""
    if len(problem_ids) != len(attempts):
        raise DataError(
            f"{len(problem_ids)} problem ids for {len(attempts)} episodes: give one problem id per episode."
        )
    if not attempts:
        raise DataError("there are no episodes to summarize: the accuracy of an empty set is not defined.")
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
    """Numerators of every figure and the number of episodes, per problem; (P,) each.

    The keys are names of `Results`, and acc_t3, ...; delta's numerator is gained - lost, so the identity holds exactly.
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
