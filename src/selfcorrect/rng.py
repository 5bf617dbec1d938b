"""Random numbers as functions of a key: what is drawn decides the number, not when or in which batch.

The key of a draw is its place (run seed, purpose, step, problem, sample, turn). A resumed run therefore
replays nothing, and the composition of a batch changes no sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def generator(*place: object) -> np.random.Generator:
    """Return a counter-based generator (Philox) for a place; the same place gives the same numbers everywhere.

    >>> int(generator(0, "order", 3).integers(100)) == int(generator(0, "order", 3).integers(100))
    True
    """
    digest = hashlib.blake2b(repr(place).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def shuffled(places: range, count: int, *place: object) -> list[int]:
    """Return the items at some positions of an endless stream that repeats ``range(count)``, shuffled again every epoch.

    >>> sorted(shuffled(range(3, 6), 3, 0, "order"))
    [0, 1, 2]
    """
    orders = {epoch: generator(*place, epoch).permutation(count) for epoch in {i // count for i in places}}
    return [int(orders[i // count][i % count]) for i in places]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """The place of one turn of one sample, which alone determines the random numbers of its tokens."""

    seed: int
    purpose: str
    step: int
    problem: str
    sample: int
    turn: int

    def number(self) -> int:
        """Return an integer in [0, 2^63), the seed for an engine that draws by itself."""
        place = (self.seed, self.purpose, self.step, self.problem, self.sample, self.turn)
        return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return a number in [0, 1) for each of ``count`` token positions; a larger ``count`` keeps the first ones.

        The bits come from SHAKE-128, an extendable hash: as good as any generator, and far cheaper to start.
        """
        place = (self.seed, self.purpose, self.step, self.problem, self.sample, self.turn)
        bits = np.frombuffer(hashlib.shake_128(repr(place).encode()).digest(8 * count), dtype="<u8")
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
