"""Disjoint train, development and test splits of any stream of problems.

A problem belongs to the split its own text hashes to, so no seed, no order and no size of a draw can
put the same problem into two splits. "The same" means equal after `normalise`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

from selfcorrect.errors import DataError
from selfcorrect.types import Problem, Split

SHARES: dict[Split, int] = {Split.TRAIN: 80, Split.DEV: 10, Split.TEST: 10}
"""The share of all possible problems that each split gets, in per cent."""

_BUCKETS = 2**64


def normalise(text: str) -> str:
    """The text as compared between splits: Unicode NFKC, casefolded, each run of white space one blank.

    Idempotent, so that it may be applied to a text that is normalised already.

    >>> normalise("  What is\\n\\tTWO + ２? ")
    'what is two + 2?'
    """
    if text.isascii():  # the fast path: NFKC leaves ASCII alone
        return " ".join(text.casefold().split())
    # Casefolding can undo NFKC and the other way round (U+0345 is one such), so go on to the fixed point.
    while (folded := unicodedata.normalize("NFKC", text).casefold()) != text:
        text = folded
    return " ".join(text.split())


def split_of(text: str) -> Split:
    """The split of a problem text: a BLAKE2b hash of its normalised form, in the proportions of `SHARES`.

    It is the same on every machine and for every seed. Random lists of problems come out only about in
    proportion: of 100 problems, 10 +- 3 are test problems.

    >>> split_of("What is 1 + 2?") is split_of(" what IS 1 + 2? ")
    True
    """
    digest = blake2b(normalise(text).encode("utf-8", "surrogatepass"), digest_size=8, person=b"selfcorrectsplit")
    place = int.from_bytes(digest.digest(), "big") * 100  # compared with shares of _BUCKETS * 100, exactly
    upper = 0
    for split, share in SHARES.items():
        upper += share * _BUCKETS
        if place < upper:
            return split
    raise AssertionError(f"the shares of the splits sum to {sum(SHARES.values())}, not 100")


def take_split(
    drawn: Iterable[Problem], split: Split, limit: int, *, name: str, max_attempts: int | None = None
) -> list[Problem]:
    """The first ``limit`` distinct problems of ``split`` in the stream ``drawn``, in the stream's order.

    At most ``max_attempts`` problems are drawn; the default, 50 a wanted problem and 2,000 more, is five times
    what a generator without repetitions needs for the smallest split.

    Raises:
        DataError: the stream ended, or the attempts were used up, before there were ``limit`` problems.
    """
    attempts = 50 * limit + 2000 if max_attempts is None else max_attempts
    kept: dict[str, Problem] = {}
    seen = 0
    stream = iter(drawn)
    while len(kept) < limit and seen < attempts and (problem := next(stream, None)) is not None:
        seen += 1
        text = normalise(problem.prompt)
        if text not in kept and split_of(text) is split:
            kept[text] = problem
    if len(kept) < limit:
        raise DataError(
            f"task {name!r} gave {len(kept)} distinct {split} problems in {seen:,} drawn, but {limit:,} were asked "
            f"for: a {split} split holds {SHARES[split]} % of the possible problems. Ask for at most {len(kept)}, "
            f"or set the task's options so that more problems are possible."
        )
    return list(kept.values())
