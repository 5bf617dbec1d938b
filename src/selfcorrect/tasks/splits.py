"""Disjoint train, development and test splits of any stream of problems.

The hash of its text assigns a problem to a split, so no seed, order or size of a draw can put the same
problem into two splits. "The same" means equal after `normalise`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from selfcorrect.errors import DataError
from selfcorrect.types import Problem, Split

SHARES: dict[Split, int] = {Split.TRAIN: 80, Split.DEV: 10, Split.TEST: 10}
"""The percentage of all possible problems in each split."""

_BUCKETS = 2**64


def normalise(text: str) -> str:
    """Return the text as compared between splits: Unicode NFKC, casefolded, each run of white space one blank.

    The function is idempotent: a normalised text stays as it is.

    >>> normalise("  What is\\n\\tTWO + ２? ")
    'what is two + 2?'
    """
    if text.isascii():  # the fast path: NFKC leaves ASCII alone
        return " ".join(text.casefold().split())
    # Casefolding can undo NFKC and vice versa (for instance at U+0345), so iterate to the fixed point.
    while (folded := unicodedata.normalize("NFKC", text).casefold()) != text:
        text = folded
    return " ".join(text.split())


def split_of(text: str, shares: Mapping[Split, int] = SHARES, salt: int = 0) -> Split:
    """Return the split of a problem text, by a BLAKE2b hash of its normalised form, in the proportions of ``shares``.

    The split is the same on every machine and for every seed of a task; another ``salt`` draws other splits. Proportions
    hold only approximately: among 100 random problems, 10 +- 3 are test problems.

    >>> split_of("What is 1 + 2?") is split_of(" what IS 1 + 2? ")
    True
    """
    digest = blake2b(
        normalise(text).encode("utf-8", "surrogatepass"),
        digest_size=8,
        person=b"selfcorrectsplit",
        salt=salt.to_bytes(8, "little"),  # 0 is the same as none
    )
    place = int.from_bytes(digest.digest(), "big") * 100  # compared with shares of _BUCKETS * 100, exactly
    upper = 0
    for split, share in shares.items():
        upper += share * _BUCKETS
        if place < upper:
            return split
    raise AssertionError(f"the shares of the splits sum to {sum(shares.values())}, not 100")


def take_split(
    drawn: Iterable[Problem], split: Split, limit: int, *, name: str, max_attempts: int | None = None
) -> list[Problem]:
    """Return the first ``limit`` distinct problems of ``split`` in the stream ``drawn``, in the stream's order.

    At most ``max_attempts`` problems are drawn. The default, 2,000 and 50 more per requested problem, is five times what
    a generator without repetitions needs for the smallest split.

    Raises:
        DataError: the stream ended, or the attempts ran out, before there were ``limit`` problems.
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
            f"task {name!r} gave {len(kept)} distinct {split} problems in {seen:,} draws, but {limit:,} were "
            f"requested: a {split} split holds {SHARES[split]}% of the possible problems. Request at most {len(kept)}, "
            f"or set the task's options so that more problems are possible."
        )
    return list(kept.values())
