"""The nouns of the package: frozen, typed, without behaviour beyond simple properties.

Letters that end tensor names, everywhere in the package:

| letter | dimension |
|---|---|
| P | problems of a step |
| G | group: episodes per problem |
| N | episodes of a step, N = P * G, episodes of one problem side by side |
| K | attempts of an episode; its turns that are no attempts are not counted |
| R | reference models |
| B | rows of a (micro-)batch; one episode is one row |
| T | token positions of a row |
| S | scored tokens: the sampled tokens of a (micro-)batch, row by row |
| D | width of the model |
| V | vocabulary |

Turns are counted from 0 in code and called t1, t2, ... in metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any


class Split(StrEnum):
    """The three disjoint parts of a task's problems."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class Part(StrEnum):
    """What episodes are stored of: the parts of an evaluation, each in a file of its own, and training."""

    ATTEMPTS = "attempts"
    SAMPLED = "sampled"
    RESAMPLE = "resample"
    SWAP = "swap"
    TRAIN = "train"


class Flip(StrEnum):
    """How the second attempt compares with the first: c is a correct one, i an incorrect one; I2C is a correction."""

    I2C = "i2c"
    C2I = "c2i"
    CC = "cc"
    II = "ii"


class Dtype(StrEnum):
    """Dtypes of weights and computation."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class Outcome(StrEnum):
    """What a verifier found. Only ``CORRECT`` earns a reward; the last two say nothing about the answer.

    ``OUT_OF_MEMORY`` and ``REFUSED`` are of programs: they took more memory, or asked for more, than they may.
    """

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    VERIFIER_FAILED = "verifier_failed"
    RIGHT = CORRECT
    WRONG = INCORRECT

    @classmethod
    def _missing_(cls, value: object) -> Outcome | None:
        """Read what earlier versions stored."""
        return {"right": cls.CORRECT, "wrong": cls.INCORRECT}.get(str(value))


class Role(StrEnum):
    """What a turn of the model is for. An attempt is verified; feedback is only read by the attempts after it."""

    ATTEMPT = "attempt"
    FEEDBACK = "feedback"


class StopReason(StrEnum):
    """Why a turn ended: the model's own end token, a stop text, or the token limit (a truncated turn)."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task: what the model reads (``prompt``) and the oracle answer (``reference``).

    ``data`` holds what the verifier needs beyond the reference; it never reaches the model.
    """

    id: str
    prompt: str
    reference: str
    difficulty: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One of several tests of an answer: ``outcome`` is ``passed``, ``failed`` or ``not run``."""

    label: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's finding on one answer, the part of the text it judged and, for a program, each of its tests.

    ``by_rule`` are the outcomes under each of several rules of finding the answer, where a task has several;
    ``outcome`` is then that of the rule that counts.
    """

    outcome: Outcome
    extracted: str | None = None
    detail: str = ""
    by_rule: Mapping[str, Outcome] = field(default_factory=dict, hash=False)
    checks: tuple[Check, ...] = ()

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT

    @property
    def reward(self) -> float:
        """The binary reward r(y, y*) of docs/method.md, section 1: 1.0 if right, else 0.0."""
        return 1.0 if self.correct else 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model: the ids put before it, the ids sampled, and what came of them.

    ``observation_ids`` is what stands between the turn before and this turn's first id (for the first turn, the whole
    prompt); it is never trained. ``logprobs`` are the engine's, one per sampled id, in nats. ``online`` is False where
    somebody else than the policy sampled the turn (a first attempt of the base model): such a turn is context only.
    So is every turn that is no attempt (``role``): it has no verdict.

    A turn that a server wrote has a text and no ids; ``counted`` is how many tokens the server says it sampled.
    """

    observation_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: StopReason
    verdict: Verdict | None
    online: bool = True
    role: Role = Role.ATTEMPT
    counted: int | None = None

    def __post_init__(self) -> None:
        if (self.role is Role.ATTEMPT) != (self.verdict is not None):
            raise ValueError(
                f"a turn has role {self.role} and verdict {self.verdict}: an attempt has a verdict, any other turn None."
            )

    @property
    def sampled(self) -> int:
        """How many ids were sampled for this turn."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Episode:
    """All turns of the model in one sample at one problem; its ids are one row, each turn extending the last.

    Whatever is counted per turn (rewards, metrics, K) counts ``attempts``.
    """

    problem: Problem
    sample: int
    turns: tuple[Turn, ...]

    @property
    def attempts(self) -> tuple[Turn, ...]:
        """The turns that are verified, in order."""
        return tuple(turn for turn in self.turns if turn.role is Role.ATTEMPT)

    @property
    def observations(self) -> tuple[tuple[int, ...], ...]:
        """What stands before each attempt and after the one before it: the user's words and the model's other turns."""
        found: list[tuple[int, ...]] = []
        before: tuple[int, ...] = ()
        for turn in self.turns:
            before += turn.observation_ids
            if turn.role is Role.ATTEMPT:
                found.append(before)
                before = ()
            else:
                before += turn.ids
        return tuple(found)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdict of every attempt."""
        return tuple(turn.verdict for turn in self.turns if turn.verdict is not None)

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(verdict.reward for verdict in self.verdicts)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(part for turn in self.turns for part in (turn.observation_ids, turn.ids)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the metrics need to know of one attempt."""

    outcome: Outcome
    text: str
    extracted: str | None
    truncated: bool

    @property
    def correct(self) -> bool:
        return self.outcome == Outcome.CORRECT


TOKENS, MESSAGES = "tokens", "messages"
"""Context modes: the second turn extends the sampled ids, or a server renders the chat's messages anew."""
