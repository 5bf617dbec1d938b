"""What the controls conclude: whether a model reads its draft, and whether it corrects itself, answers again or copies.

The rules are those of docs/measuring.md. Each conclusion names the interval that decides it. There is none from too few
answers: *n* answers that all agree have p = 2 x 2^-n in the exact sign test (McNemar's, for paired outcomes), which is below
0.05 from n = 6. With fewer correct first answers not even a model that keeps all of them shows that it does; with fewer
incorrect ones, not even a model that repairs all.

*About 0* means that the interval lies within 5 points of 0, or within a quarter of what the term could be where that is less:
at an accuracy of 2% a term of 2 points is not about 0, it is all that there is.

A second attempt that finishes a draft which the token limit cut off has corrected nothing, so only the episodes whose first
attempt is complete count (`truncated_drafts`).

This module is pure: it uses no model, tokenizer or file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from selfcorrect.evaluation.advice import OF_EVAL, Names, Truncation, advice, narrower, truncations_of
from selfcorrect.evaluation.decomposition import DRAFTS, SHOWN, Flags, StoredTerm, stored_parts, too_few
from selfcorrect.evaluation.supply import Supply
from selfcorrect.evaluation.truncated_drafts import basis_of, conclusive

ABOUT_ZERO = 0.05
"""A difference of accuracies within this of 0 counts as about 0."""
NEARLY = 0.05
"""An accuracy below this, or above 1 less this, leaves the controls little to tell."""
ABOUT_ZERO_SHARE = 0.25
"""It must also lie within this fraction of the largest value that the difference could have."""
LEAST_MARGIN = 0.005
"""The narrowest interval for which a number of problems is named: where no attempt is correct, nothing is narrow enough."""

Terms = Mapping[str, StoredTerm]
Test = Callable[[float, float], bool]


class Reads(StrEnum):
    """Whether the second attempt depends on the draft that it follows."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "cannot be told"


class Behaviour(StrEnum):
    """What a model does when it is asked to revise its answer."""

    CORRECTS = "corrects itself"
    ANSWERS_AGAIN = "only answers again"
    COPIES = "copies its draft"
    DOES_NOT = "does not correct itself"
    UNKNOWN = "cannot be told"


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Both answers, each with what decides it in words."""

    reads: Reads
    reads_because: str
    behaviour: Behaviour
    because: str

    def to_json(self) -> dict[str, str]:
        """Return plain values, ready for ``json.dumps``."""
        return {name: str(value) for name, value in asdict(self).items()}

    def lines(self, name: str) -> list[str]:
        """Return the two sentences that a table ends with; one if neither can be told, for the same reason."""
        told = self.reads is not Reads.UNKNOWN or self.behaviour is not Behaviour.UNKNOWN
        if not told and self.reads_because == self.because:
            return [f"{name}: cannot be told whether it reads its draft or corrects itself ({self.because})"]
        does = (
            "cannot be told whether it corrects itself"
            if self.behaviour is Behaviour.UNKNOWN
            else f"it {self.behaviour}"
        )
        return [f"{name} reads its draft: {self.reads} ({self.reads_because})", f"{name}: {does} ({self.because})"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a conclusion needs: accuracies, delta, and the terms of delta by blind draft (`stored_parts`).

    ``problems`` counts problems, because several samples of one problem are not independent; 0 means that no first attempt is
    complete. ``basis`` says in words which episodes count, if not all do. ``truncated`` says of both attempts how many answers of
    all episodes are truncated. ``supply`` has all problems of a task that cannot make more. ``i_to_c`` is the fraction of
    episodes of which only the second attempt is correct; None where it is not stored. With several ``seeds`` the intervals are
    over them.
    """

    problems: int
    acc_t1: float
    acc_t2: float
    delta: StoredTerm
    parts: Mapping[str, Terms]
    basis: str = ""
    truncated: tuple[Truncation, ...] = ()
    supply: Supply | None = None
    i_to_c: float | None = None
    seeds: int = 1

    def blind(self, draft: str) -> float:
        """Return the accuracy of the second attempts at a blind draft."""
        return self.acc_t1 + self.parts[draft]["re_answering"].value

    @property
    def highest(self) -> float:
        return max(self.acc_t1, self.acc_t2, *(self.blind(draft) for draft in self.parts))

    @property
    def lowest(self) -> float:
        return min(self.acc_t1, self.acc_t2, *(self.blind(draft) for draft in self.parts))

    def all(self, term: str, test: Test) -> bool:
        """Return whether a term's interval passes a test with every blind draft; no interval passes none."""
        intervals = [terms[term].ci95 if term in terms else None for terms in self.parts.values()]
        return all(interval is not None and test(*interval) for interval in intervals)

    def words(self, term: str, order: Callable[[float, float], float]) -> str:
        """Return a term in words, with the blind draft whose interval comes first in the order."""
        known = {draft: terms[term] for draft, terms in self.parts.items() if term in terms and terms[term].ci95}
        if not known:
            return f"an earlier version stored no interval of {SHOWN[term]}: `selfcorrect eval --controls` measures it"
        draft = min(known, key=lambda name: order(*(known[name].ci95 or (0.0, 0.0))))
        return f"{SHOWN[term]} with the draft '{DRAFTS[draft]}' is {_shown(known[draft])}"

    def advice(self, rate: float, truncated: Sequence[Truncation], others: str) -> str:
        """Return what to change where too few answers are of a kind; see `advice.advice`."""
        return advice(rate, self.problems, truncated, others=others, supply=self.supply)

    def narrower(self, *terms: str) -> str:
        """Return what makes delta's interval, or a term's with every blind draft, narrow enough to tell; empty without any."""
        known = [
            (part, self._margin_of(term, draft))
            for term in terms
            for draft, parts in self.parts.items()
            if (part := self.delta if term == "delta" else parts.get(term)) is not None
        ]
        times = [_times(part, margin) for part, margin in known if part.ci95 is not None]
        if not times:
            return ""
        said = "; no i->c was seen" if self.i_to_c == 0 else ""
        return (
            f"{said}; {narrower(max(times), self.problems, self.truncated[:1], supply=self.supply, seeds=self.seeds)}"
        )

    def _margin_of(self, term: str, draft: str) -> float:
        """Return up to where delta, or a term with a blind draft, counts as about 0."""
        if term == "delta":
            return ABOUT_ZERO
        return self.reading_margin(draft) if term == "reading" else _margin(1 - self.acc_t1)

    def reading_margin(self, draft: str) -> float:
        """Return up to where reading counts as about 0."""
        ends = (self.acc_t2, self.blind(draft))
        return _margin(min(max(ends), 1 - min(ends)))


def _margin(possible: float) -> float:
    return min(ABOUT_ZERO, ABOUT_ZERO_SHARE * possible)


def _times(term: StoredTerm, margin: float) -> float:
    """Return how many times as many problems bring a term's interval within a margin, or halve one that lies within it."""
    assert term.ci95 is not None
    half = max(term.value - term.ci95[0], term.ci95[1] - term.value)
    margin = max(margin, LEAST_MARGIN)
    return (half / margin) ** 2 if half > margin else 4.0


def _shown(term: StoredTerm) -> str:
    assert term.ci95 is not None
    low, high = (f"{100 * end:+.1f}" for end in term.ci95)
    return f"{100 * term.value:+.1f} [{low}, {high}]"


def _above(low: float, high: float) -> bool:
    return low > 0


def _below(low: float, high: float) -> bool:
    return high < 0


def _lowest(low: float, high: float) -> float:
    return low


def _highest(low: float, high: float) -> float:
    return -high


def _widest(low: float, high: float) -> float:
    return -max(-low, high)


def conclude(found: Evidence) -> Conclusion:
    """Return what the controls conclude; `found` has at least one blind draft, or no complete first attempt."""
    nothing = _nothing_to_measure(found)
    reads, reads_because = (Reads.UNKNOWN, nothing) if nothing is not None else _reads(found)
    behaviour, because = (Behaviour.UNKNOWN, nothing) if nothing is not None else _behaviour(found)
    if nothing is None and reads is Reads.UNKNOWN:
        if behaviour is not Behaviour.UNKNOWN:  # else the behaviour has the advice
            reads_because += found.narrower("reading")
        elif because.startswith(f"{reads_because};"):  # the same reason, with the advice
            reads_because = because
    basis = f"; {found.basis}" if found.basis and found.problems else ""
    return Conclusion(reads, f"{reads_because}{basis}", behaviour, f"{because}{basis}")


def _nothing_to_measure(found: Evidence) -> str | None:
    """Return why no term can be measured: nearly no attempt of any kind is correct, or nearly all are."""
    if not found.problems:
        return (
            f"no first attempt is complete: {advice(0.0, 1, found.truncated[:1], others='easier', supply=found.supply)}"
        )
    correct = round(found.acc_t1 * found.problems)
    said = f"{correct:,} of {found.problems:,} first answers are correct, and second ones hardly differ"
    if too_few(found.highest, found.problems):
        return f"{said}: {found.advice(found.highest, found.truncated, 'easier')}"
    if too_few(1 - found.lowest, found.problems):
        return f"{said}: {found.advice(1 - found.lowest, found.truncated[:1], 'harder')}"
    return None


def _reads(found: Evidence) -> tuple[Reads, str]:
    if found.all("reading", _above):
        return Reads.YES, found.words("reading", _lowest)
    if found.all("reading", _below):
        return Reads.YES, f"to its harm: {found.words('reading', _highest)}"
    if _opposed(found, "keep", "repair"):
        return Reads.YES, f"{found.words('keep', _lowest)}, and {found.words('repair', _highest)}"
    if _opposed(found, "repair", "keep"):
        return Reads.YES, f"{found.words('repair', _lowest)}, and {found.words('keep', _highest)}"
    if _about_zero(found):
        return Reads.NO, found.words("reading", _widest)
    return Reads.UNKNOWN, found.words("reading", _lowest)


def _opposed(found: Evidence, gains: str, loses: str) -> bool:
    """Return whether one term lies above 0 and another below 0, as both cannot be by one chance."""
    return not _few_correct(found) and found.all(gains, _above) and found.all(loses, _below)


def _about_zero(found: Evidence) -> bool:
    """Return whether reading is about 0 with every blind draft."""
    intervals = {draft: terms["reading"].ci95 for draft, terms in found.parts.items()}
    return all(
        interval is not None and max(-interval[0], interval[1]) <= found.reading_margin(draft)
        for draft, interval in intervals.items()
    )


def _few_correct(found: Evidence) -> bool:
    return too_few(found.acc_t1, found.problems)


def _behaviour(found: Evidence) -> tuple[Behaviour, str]:
    """Return the first behaviour whose rule holds."""
    if too_few(1 - found.acc_t1, found.problems):
        rate = 1 - found.acc_t1
        said = f"{round(rate * found.problems):,} of {found.problems:,} first answers are incorrect, too few to correct"
        return Behaviour.UNKNOWN, f"{said}: {found.advice(rate, found.truncated[:1], 'harder')}"
    if found.delta.ci95 is None:
        return Behaviour.UNKNOWN, "delta has no interval"
    return next((behaviour, because(found)) for behaviour, holds, because in RULES if holds(found))


def _copies(found: Evidence) -> bool:
    return _opposed(found, "keep", "repair")


def _corrects(found: Evidence) -> bool:
    return _gains(found) and found.all("reading", _above) and found.all("repair", _above)


def _answers_again(found: Evidence) -> bool:
    return _gains(found) and found.all("re_answering", _above) and _little_of_delta(found)


def _gains(found: Evidence) -> bool:
    return found.delta.ci95 is not None and _above(*found.delta.ci95)


def _loses(found: Evidence) -> bool:
    return found.delta.ci95 is not None and _below(*found.delta.ci95)


def _repairs_nothing(found: Evidence) -> bool:
    return found.all("repair", lambda low, high: high < _margin(1 - found.acc_t1))


def _little_of_delta(found: Evidence) -> bool:
    """Return whether reading is at most half of delta, and at most about 0, with every blind draft."""
    return all(
        terms["reading"].ci95[1] <= min(found.reading_margin(draft), found.delta.value / 2)
        for draft, terms in found.parts.items()
        if terms["reading"].ci95 is not None
    )


def _held_back(found: Evidence) -> str:
    """Return a caution where second attempts at a blind draft are worse than first ones."""
    if not found.all("re_answering", _below):
        return ""
    return "; without its draft it answers worse than at first, so its first attempts may be held back (H)"


def _undecided(found: Evidence) -> str:
    """Return the first interval that keeps the model from correcting itself, and what narrows it."""
    terms: tuple[str, ...]
    if not _gains(found):
        said, terms = f"delta is {_shown(found.delta)}; {found.words('repair', _lowest)}", ("delta", "repair")
    else:
        terms = ("repair",) if found.all("reading", _above) else ("reading",)
        said = found.words(terms[0], _lowest)
    return f"{said}{found.narrower(*terms)}"


RULES: Sequence[tuple[Behaviour, Callable[[Evidence], bool], Callable[[Evidence], str]]] = (
    (
        Behaviour.COPIES,
        _copies,
        lambda found: f"{found.words('keep', _lowest)}, and {found.words('repair', _highest)}",
    ),
    (
        Behaviour.CORRECTS,
        _corrects,
        lambda found: f"delta is {_shown(found.delta)}, and {found.words('repair', _lowest)}{_held_back(found)}",
    ),
    (
        Behaviour.ANSWERS_AGAIN,
        _answers_again,
        lambda found: f"delta is {_shown(found.delta)}, and {found.words('reading', _highest)}",
    ),
    (Behaviour.DOES_NOT, _loses, lambda found: f"delta is {_shown(found.delta)}"),
    (Behaviour.DOES_NOT, _repairs_nothing, lambda found: found.words("repair", _highest)),
    (Behaviour.UNKNOWN, lambda found: True, _undecided),
)
"""What each behaviour rests on, the first that holds: its rule, and the intervals that decide it in words."""


def useless_controls(
    correct: Sequence[Flags],
    problems: int,
    truncated: Sequence[Truncation] = (),
    *,
    names: Names = OF_EVAL,
    supply: Supply | None = None,
) -> str | None:
    """Return why the controls will hardly tell anything after these attempts, [N] verdicts each, and what to change; else None.

    >>> import numpy as np
    >>> print(useless_controls([np.arange(80) < 1, np.arange(80) < 0], 80))
    1 of 80 first answers are correct and 0 of 80 second ones, so the controls can tell nothing: take easier problems
    """
    n = len(correct[0])
    rates = [float(flags.mean()) for flags in correct]
    low = too_few(max(rates), problems) or max(rates) < NEARLY
    if not low and not too_few(1 - rates[0], problems) and rates[0] <= 1 - NEARLY:
        return None
    counts = [f"{int(flags.sum()):,} of {n:,}" for flags in correct]
    rate = max(rates) if low else 1 - rates[0]
    how = (
        advice(rate, problems, truncated, others="easier", names=names, supply=supply)
        if low
        else advice(rate, problems, truncated[:1], others="harder", names=names, supply=supply)
    )
    nothing = "nothing" if too_few(rate, problems) else "little"
    return (
        f"{counts[0]} first answers are correct and {counts[1]} second ones, so the controls can tell {nothing}: {how}"
    )


def evidence_of(results: Mapping[str, Any]) -> Evidence | None:
    """Return the evidence in the results of a summary: that of the complete first attempts; None without a blind draft."""
    parts = stored_parts(results)
    if not parts or results.get("delta") is None:
        return None
    found = conclusive(results)
    if found is None:
        nothing = Evidence(0, 0.0, 0.0, StoredTerm(0.0), {})
        return replace(nothing, truncated=truncations_of(results), supply=Supply.stored(results))
    ends = found["delta_ci95"]
    delta = StoredTerm(found["delta"], None if ends is None else (ends[0], ends[1]))
    return Evidence(
        found["n"],
        found["acc_t1"],
        found["acc_t1"] + delta.value,
        delta,
        stored_parts(found),
        basis=basis_of([results]),
        truncated=truncations_of(results),
        supply=Supply.stored(results),
        i_to_c=found.get("i_to_c"),
    )
