"""Random numbers as functions of position: who asks decides the number, not when or beside whom.

Every draw is keyed by its place (run seed, purpose, step, problem, sample, turn), so a resumed run
replays nothing and the composition of a batch changes no sample.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def generator(*place: object) -> np.random.Generator:
    """A counter-based generator (Philox) for a place; the same place gives the same numbers anywhere.

    >>> int(generator(0, "order", 3).integers(100)) == int(generator(0, "order", 3).integers(100))
    True
    """
    digest = hashlib.blake2b(repr(place).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def shuffled(places: range, count: int, *place: object) -> list[int]:
    """Some places of an endless stream that goes through ``range(count)`` again and again, each time in an order of its own.

    >>> sorted(shuffled(range(3, 6), 3, 0, "order"))
    [0, 1, 2]
    """
    orders = {epoch: generator(*place, epoch).permutation(count) for epoch in {i // count for i in places}}
    return [int(orders[i // count][i % count]) for i in places]


@dataclass(frozen=True, slots=True)
class SampleKey:
    """The place of one turn of one sample; its tokens' random numbers are a function of this alone."""

    seed: int
    purpose: str
    step: int
    problem: str
    sample: int
    turn: int

    def number(self) -> int:
        """A whole number in [0, 2^63), for engines that draw by themselves from a seed."""
        place = (self.seed, self.purpose, self.step, self.problem, self.sample, self.turn)
        return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "little") >> 1

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """One number in [0, 1) for each token position of the turn; more positions leave the first ones as they are.

        The bits are those of SHAKE-128, an extendable hash: as good as any generator, and far cheaper to start.
        """
        place = (self.seed, self.purpose, self.step, self.problem, self.sample, self.turn)
        bits = np.frombuffer(hashlib.shake_128(repr(place).encode()).digest(8 * count), dtype="<u8")
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
