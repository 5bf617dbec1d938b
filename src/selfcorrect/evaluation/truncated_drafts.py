"""What truncated first attempts contribute: a second attempt that only finishes such a draft has corrected nothing.

Among ``N`` episodes, ``T`` have a first attempt that the token limit cut off. Every metric is a mean over episodes, so

    N delta = N_complete delta_complete + (what the T truncated drafts contribute)

exactly, and likewise for i->c, c->i and every term of delta. The summary keeps both: the flips that begin with a truncated
draft as counts, and the metrics of the other episodes, from which the conclusion is drawn (docs/measuring.md).

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from selfcorrect.evaluation.decomposition import TERMS, Parts, parts_of_delta
from selfcorrect.evaluation.flags import correct_at, truncated_at
from selfcorrect.evaluation.intervals import Interval
from selfcorrect.evaluation.metrics import summarize
from selfcorrect.storage.episode_log import StoredEpisode

NAME = "truncated_drafts"
"""The key in the results of a summary; results without a truncated first attempt do not have it."""


WORTH_A_LINE = 0.01
"""The fraction of flips from which tables say that they begin with a truncated draft; summaries count every one."""


@dataclass(frozen=True, slots=True)
class CompleteDrafts:
    """The metrics of the episodes whose first attempt is complete, at ``n`` problems, with delta's terms by blind draft."""

    n: int
    acc_t1: float
    acc_t2: float
    delta: float
    delta_ci95: Interval
    i_to_c: float
    c_to_i: float
    blind: Mapping[str, Parts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TruncatedDrafts:
    """The episodes whose first attempt is truncated, ``count`` of ``of``, and the others' metrics; None without any others.

    ``i_to_c`` flips of ``all_i_to_c`` begin with such a draft, ``c_to_i`` of ``all_c_to_i``.
    """

    count: int
    of: int
    i_to_c: int
    all_i_to_c: int
    c_to_i: int
    all_c_to_i: int
    complete: CompleteDrafts | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, ready for ``json.dumps``."""
        return _plain(asdict(self))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(x) if isinstance(x, Mapping) else list(x) if isinstance(x, tuple) else x
        for name, x in values.items()
    }


def truncated_drafts(
    main: Sequence[StoredEpisode], blind: Mapping[str, Sequence[StoredEpisode]], *, seed: int
) -> TruncatedDrafts | None:
    """Return what truncated first attempts contribute; None if there are none, or no second attempts.

    ``blind`` has the episodes of each blind draft in the order of ``main``; ``seed`` feeds the bootstrap.
    """
    cut = truncated_at(main, 0)
    if not cut.any() or any(len(episode.attempts) < 2 for episode in main):
        return None
    first, second = correct_at(main, 0), correct_at(main, 1)
    gained, lost = ~first & second, first & ~second
    whole = np.flatnonzero(~cut).tolist()
    return TruncatedDrafts(
        count=int(cut.sum()),
        of=len(cut),
        i_to_c=int((cut & gained).sum()),
        all_i_to_c=int(gained.sum()),
        c_to_i=int((cut & lost).sum()),
        all_c_to_i=int(lost.sum()),
        complete=_complete(main, blind, whole, seed) if whole else None,
    )


def _complete(
    main: Sequence[StoredEpisode], blind: Mapping[str, Sequence[StoredEpisode]], whole: Sequence[int], seed: int
) -> CompleteDrafts:
    """Return the metrics of the episodes at the places ``whole``."""
    ids = [main[i].problem_id for i in whole]
    found = summarize(ids, [main[i].graded()[:2] for i in whole], seed=seed)
    first, second = (correct_at([main[i] for i in whole], attempt) for attempt in (0, 1))
    parts = {
        draft: parts_of_delta(ids, first, second, correct_at([episodes[i] for i in whole], 1), seed=seed)
        for draft, episodes in blind.items()
    }
    figures = (found.acc_t2, found.delta, found.delta_ci95, found.i_to_c, found.c_to_i)
    assert not any(figure is None for figure in figures), "two attempts have a delta"
    return CompleteDrafts(found.n, found.acc_t1, *figures, parts)  # type: ignore[arg-type]


# ---------------------------------------------------------------- stored results


def conclusive(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the results from which conclusions are drawn: those of the complete first attempts; None if all are truncated.

    Results of earlier versions do not tell the two apart, so all of theirs count.
    """
    found = results.get(NAME)
    if found is None:
        return results
    complete = found["complete"]
    return None if complete is None else {**complete, "decomposition": {"blind": complete["blind"]}}


def basis_of(every: Sequence[Mapping[str, Any]]) -> str:
    """Return which episodes of one or more results count for a conclusion, in words; empty if all do.

    >>> basis_of([{"truncated_drafts": {"count": 47, "of": 120}, "turns": [{"truncated": 0.39}]}])
    'only the 73 of 120 episodes with a complete first attempt count'
    >>> basis_of([{"turns": [{"truncated": 0.39}]}])
    'caution: 39.0% of the first attempts are truncated, and an earlier version did not store which flips begin with one'
    """
    split = [results[NAME] for results in every if results.get(NAME)]
    if split:
        total = sum(found["of"] for found in split)
        kept = total - sum(found["count"] for found in split)
        return f"only the {kept:,} of {total:,} episodes with a complete first attempt count"
    shares = [turn.get("truncated", 0.0) for results in every for turn in results.get("turns", [])[:1]]
    if not any(shares):
        return ""
    share = 100 * sum(shares) / len(shares)
    said = f"{share:.1f}%" if share >= 0.05 else "<0.1%"
    return f"caution: {said} of the first attempts are truncated, and an earlier version did not store which flips begin with one"


def truncated_flips_text(found: Mapping[str, Any]) -> str:
    """Return in words which flips begin with a truncated first attempt, and delta without them; empty if hardly any does.

    Counts summed over several results have no ``complete``, and delta is then left out.

    >>> complete = {"n": 73, "delta": 0.0137, "delta_ci95": [-0.04, 0.07], "blind": {}}
    >>> flips = {"i_to_c": 12, "all_i_to_c": 15, "c_to_i": 1, "all_c_to_i": 4}
    >>> print(truncated_flips_text({"count": 47, "of": 120, **flips, "complete": complete}))
    12 of 15 i->c and 1 of 4 c->i begin with a truncated first attempt, which the second may only finish; on the other 73 of 120 \
episodes delta is +1.4 [-4.0, +7.0]
    """
    begun, flips = (found[f"{which}i_to_c"] + found[f"{which}c_to_i"] for which in ("", "all_"))
    if not begun or begun < WORTH_A_LINE * flips:
        return ""
    which = " and ".join(
        f"{found[kind]:,} of {found[f'all_{kind}']:,} {words}"
        for kind, words in (("i_to_c", "i->c"), ("c_to_i", "c->i"))
        if found[f"all_{kind}"]
    )
    said = f"{which} begin with a truncated first attempt, which the second may only finish"
    if "complete" not in found:
        return said
    complete = found["complete"]
    if complete is None:
        return f"{said}; no first attempt is complete"
    low, high = (f"{100 * end:+.1f}" for end in complete["delta_ci95"])
    kept = f"{found['of'] - found['count']:,} of {found['of']:,} episodes"
    return f"{said}; on the other {kept} delta is {100 * complete['delta']:+.1f} [{low}, {high}]"


def broken_split(results: Mapping[str, Any]) -> str | None:
    """Return the first identity that the split of stored results by truncated drafts violates, in words; None if all hold."""
    found = results.get(NAME)
    if found is None:
        return None
    total, complete = found["of"], found["complete"]
    kept = total - found["count"]
    if not 0 < found["count"] <= total or (complete is None) != (kept == 0):
        return f"{found['count']} truncated of {total} first attempts, but metrics of {kept} complete ones"
    for flip in ("i_to_c", "c_to_i"):
        rest = 0.0 if complete is None else kept * complete[flip]
        if (
            abs(found[f"all_{flip}"] - total * results[flip]) > 1e-6
            or abs(found[flip] + rest - found[f"all_{flip}"]) > 1e-6
        ):
            return f"{flip} = {results[flip]}, but those after truncated and after complete first attempts are others"
    return None if complete is None else _broken_terms(complete, results.get("decomposition", {}))


def _broken_terms(complete: Mapping[str, Any], whole: Mapping[str, Any]) -> str | None:
    """Return the first identity that the terms of delta after complete first attempts violate; ``whole`` has those of all."""
    if complete["blind"].keys() != whole.get("blind", complete["blind"]).keys():
        return "other blind drafts for complete first attempts than for all of them"
    sums = [(f"{draft}, complete drafts", sum(p[t] for t in TERMS)) for draft, p in complete["blind"].items()]
    for words, value in [("i->c - c->i", complete["i_to_c"] - complete["c_to_i"]), *sums]:
        if abs(value - complete["delta"]) > 1e-9:
            return f"delta = {complete['delta']} after complete first attempts, but {words} makes {value}"
    return None
