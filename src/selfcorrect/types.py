"""The package's value types: frozen dataclasses and enums, with no behaviour beyond simple properties.

These letters end tensor names everywhere in the package:

| letter | dimension |
|---|---|
| P | problems per step |
| G | group size: episodes per problem |
| N | episodes per step, N = P * G, episodes of one problem next to each other |
| K | trained turns per episode: attempts and, if the script asks for any, verifications; feedback does not count |
| R | reference models |
| B | rows of a (micro-)batch; one episode is one row |
| T | token positions per row |
| S | scored tokens: the sampled tokens of a (micro-)batch, row by row |
| D | hidden size of the model |
| V | vocabulary size |

Code counts turns from 0; metrics call them t1, t2, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from typing import Any


class Split(StrEnum):
    """The three disjoint splits of a task's problems."""

    TRAIN = "train"
    DEV = "dev"
    TEST = "test"


class Part(StrEnum):
    """Where stored episodes come from: training, or one part of an evaluation. Each part has its own file."""

    ATTEMPTS = "attempts"
    SAMPLED = "sampled"
    RESAMPLE = "resample"
    SWAP = "swap"
    EMPTY = "empty"
    SHUFFLED = "shuffled"
    TRAIN = "train"


class Flip(StrEnum):
    """How correctness changes from the first attempt to the second: c is correct, i incorrect; I2C is a correction."""

    I2C = "i2c"
    C2I = "c2i"
    CC = "cc"
    II = "ii"


class Dtype(StrEnum):
    """The dtype of weights and computation."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class DtypeChoice(StrEnum):
    """A dtype, or the one that suits the device."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class ServerAPI(StrEnum):
    """The protocol of a model server; `selfcorrect.evaluation.served_model` has the rule of ``AUTO``."""

    AUTO = "auto"
    CHAT = "chat"
    COMPLETIONS = "completions"


class Outcome(StrEnum):
    """The result of a verification. Only ``CORRECT`` earns a reward; the last two say nothing about the answer.

    Only programs are ``OUT_OF_MEMORY`` (they exceeded the memory limit) or ``REFUSED`` (they tried something forbidden).
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
    """The purpose of a model turn. An attempt is verified; feedback only informs the attempts after it.

    In a verification the model judges its last attempt. The turn is rewarded and trained as an attempt is, but counts as none.
    """

    ATTEMPT = "attempt"
    FEEDBACK = "feedback"
    VERIFICATION = "verification"


TRAINED_ROLES = (Role.ATTEMPT, Role.VERIFICATION)
"""The roles of the turns that earn rewards and are trained; other turns are context only."""


class Judgement(StrEnum):
    """What a model says about its last attempt in a verification turn."""

    CORRECT = "correct"
    WRONG = "wrong"


class StopReason(StrEnum):
    """Why a turn ended: the model's end token, a stop text, or the token limit (a truncated turn).

    ``FAILED`` means that there is no turn: a server rejected the request or did not answer it. Such an attempt has no
    answer, and its verdict's detail has the reason.

    ``SKIPPED`` means that the script did not ask for the turn, because an earlier turn had not met its condition. The attempt
    before it then stands as the final answer.
    """

    END = "end"
    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a task: the text that the model reads (``prompt``) and the oracle answer (``reference``).

    ``data`` holds what the verifier needs in addition to the reference; it never reaches the model.
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
    """A verifier's result for one attempt: the outcome, the extracted answer and, for a program, each of its tests.

    Some tasks extract the answer by several rules. ``by_rule`` then holds the outcome under each rule, and ``outcome``
    repeats the one that earns the reward.
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
        """Return the binary reward r(y, y*) of docs/method.md, section 1: 1.0 if correct, else 0.0."""
        return 1.0 if self.correct else 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model: the ids before it, the sampled ids, and their verdict.

    ``observation_ids`` stand between the previous turn and this turn's first sampled id; for the first turn they are the
    whole prompt. They are never trained. ``logprobs`` holds the engine's log-probability of every sampled id, in nats.
    ``online`` is False where another model than the policy sampled the turn, for instance the base model a first attempt;
    such a turn is context only. A feedback turn (``role``) is context only too, and has no verdict.

    Several second attempts may revise one first attempt. It was sampled for the first of their episodes and is ``copied``, as
    context only, in the others. A stored first attempt that is replayed, and a verification that was written instead of sampled
    (`rollout.roll_out`), are ``copied``, too.

    A turn from a chat server has a text and no ids; ``counted`` is the number of sampled tokens that the server reported,
    ``other_model`` the name under which it answered, if that is not the requested one, and ``reasoning`` what it reported
    apart from the text: no part of the attempt, and not seen by later turns.

    ``said`` is the judgement that a verification states; None if it states none.
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
    other_model: str | None = None
    copied: bool = False
    reasoning: str | None = None
    said: Judgement | None = None

    @classmethod
    def not_taken(cls, role: Role, before: Sequence[Turn]) -> Turn:
        """Return a turn that was skipped. As an attempt it repeats the last attempt ``before``, whose answer stands."""
        if role is not Role.ATTEMPT:
            return cls((), (), (), "", StopReason.SKIPPED, None, online=False, role=role, counted=0)
        last = next(turn for turn in reversed(before) if turn.role is Role.ATTEMPT)
        return cls((), (), (), last.text, StopReason.SKIPPED, last.verdict, online=False, counted=0)

    def __post_init__(self) -> None:
        if (self.role is Role.ATTEMPT) != (self.verdict is not None):
            raise ValueError(
                f"a turn has role {self.role} and verdict {self.verdict}: an attempt needs a verdict, any other turn has None."
            )

    @property
    def sampled(self) -> int:
        """Return the number of ids that were sampled for this turn."""
        return 0 if self.copied else len(self.ids)

    @property
    def skipped(self) -> bool:
        return self.stop is StopReason.SKIPPED


@dataclass(frozen=True, slots=True)
class Episode:
    """All model turns of one sample for one problem. Each turn extends the one before, so the ids form one row.

    Rewards, metrics and K count ``attempts``, not turns.
    """

    problem: Problem
    sample: int
    turns: tuple[Turn, ...]

    @property
    def attempts(self) -> tuple[Turn, ...]:
        """Return the verified turns, in order."""
        return tuple(turn for turn in self.turns if turn.role is Role.ATTEMPT)

    @property
    def trained(self) -> tuple[Turn, ...]:
        """Return the turns that earn rewards: attempts and verifications, taken or skipped, in order."""
        return tuple(turn for turn in self.turns if turn.role in TRAINED_ROLES)

    @property
    def trained_rewards(self) -> tuple[float, ...]:
        """Return the reward of each of the `trained` turns.

        A verification earns 1.0 if it says of the attempt before it what the verifier says, else 0.0; without a judgement 0.0.
        """
        found: list[float] = []
        correct = False
        for turn in self.trained:
            if turn.verdict is not None:
                correct = turn.verdict.correct
                found.append(turn.verdict.reward)
            else:
                right = Judgement.CORRECT if correct else Judgement.WRONG
                found.append(1.0 if turn.said is right else 0.0)
        return tuple(found)

    @property
    def of_draft(self) -> bool:
        """Return whether this is a conversation in which the model only verifies a draft (`rollout.draft_verification`)."""
        return self.turns[-1].role is Role.VERIFICATION and not self.turns[-1].skipped

    @property
    def observations(self) -> tuple[tuple[int, ...], ...]:
        """Return the ids between each attempt and the one before it: the user's turns and the model's other turns."""
        observations: list[tuple[int, ...]] = []
        before: tuple[int, ...] = ()
        for turn in self.turns:
            before += turn.observation_ids
            if turn.role is Role.ATTEMPT:
                observations.append(before)
                before = ()
            else:
                before += turn.ids
        return tuple(observations)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Return the verdict of every attempt."""
        return tuple(turn.verdict for turn in self.turns if turn.verdict is not None)

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(verdict.reward for verdict in self.verdicts)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(part for turn in self.turns for part in (turn.observation_ids, turn.ids)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the metrics need to know about one attempt."""

    outcome: Outcome
    text: str
    extracted: str | None
    truncated: bool

    @property
    def correct(self) -> bool:
        return self.outcome == Outcome.CORRECT


TOKENS, MESSAGES = "tokens", "messages"
"""Context modes: a later turn extends the sampled ids, or a server renders the whole chat again."""
