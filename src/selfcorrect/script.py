"""Scripts: the user's side of a conversation, as data.

The template of the first turn receives the problem. Every later turn is a fixed instruction, which does not reveal
whether the attempt before it was correct (intrinsic self-correction). It may repeat the problem.

Not every model turn is an attempt: a script may ask for feedback first (Self-Refine). A feedback turn is sampled like an
attempt, but is context only: it is not verified, earns no reward and is not trained. Reward weights, anchors, Acc@t2 and
everything else that is set or reported per turn count attempts.

A script may also ask for a verification: the model says whether its last attempt is correct. That turn is rewarded and
trained, but is no attempt either. A later user turn may depend on it (``when = "wrong"``): the conversation ends there if the
model says anything else, and its last attempt stands (docs/method.md, section 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle
from typing import Annotated, Any

from pydantic import BeforeValidator, model_serializer

from selfcorrect.errors import ConfigError
from selfcorrect.reasoning import final_part
from selfcorrect.types import Judgement, Role

GENERAL_INSTRUCTION = (
    "There might be an error in the answer above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the answer. Only output the final answer!"
)
"""The paper's second-turn instruction (docs/method.md, section 9), worded for any task with an answer."""

FEEDBACK = (
    "Review the answer above step by step. Say what is right and what, if anything, is wrong, and how to repair it. "
    "Give this feedback only; do not write a new answer yet."
)
"""The request of `Script.with_feedback`; the wording is this package's."""


SAYS_CORRECT, SAYS_WRONG = "The answer is correct", "The answer is wrong"
"""The phrases of a verification, as in PAG (Jiang et al., arXiv 2506.10406)."""

VERIFY = (
    "Check the answer above step by step. Do not write a new answer. End with one of two sentences: "
    f'"{SAYS_CORRECT}." or "{SAYS_WRONG}."'
)
"""The request of `Script.with_verification`; the wording is this package's."""

VERIFY_BY_DIGIT = "Any error? {prompt}"
"""The same request for a bundled model, which writes digits and knows few words: 1 says that there is an error, 0 none."""

VERIFY_DRAFT = (
    "Here is a problem, and an answer to it.\n\nProblem:\n{prompt}\n\nAnswer:\n{attempt}\n\nCheck the answer step by step. Do "
    f'not write a new answer. End with one of two sentences: "{SAYS_CORRECT}." or "{SAYS_WRONG}."'
)
"""The whole message of a conversation in which the model verifies a draft; the wording is this package's."""

VERIFY_DRAFT_BY_DIGIT = "Any error? {prompt} {attempt}"
"""The same for a bundled model, as `VERIFY_BY_DIGIT`."""

SAID_WRONG = "You indicated that your previous answer was wrong. "
"""The head of the instruction after a verification that says so, as in PAG."""


MAX_TURNS = 10
"""Maximum attempts of an episode."""


@dataclass(frozen=True, slots=True)
class UserTurn:
    """The user's message before a model turn, and the role of that model turn.

    With ``when``, the conversation only continues to this turn if the last verification says so. ``says_correct`` and
    ``says_wrong`` are the phrases of a verification; unset = `SAYS_CORRECT` and `SAYS_WRONG`.
    """

    text: str
    role: Role = Role.ATTEMPT
    when: Judgement | None = None
    says_correct: str | None = None
    says_wrong: str | None = None

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (read by the settings, which hold such turns)

    def __post_init__(self) -> None:
        if self.role not in tuple(Role):
            raise ConfigError(f"a user turn has role = {self.role!r}: choose one of {', '.join(Role)}.")
        object.__setattr__(self, "role", Role(self.role))
        if self.when is not None:
            if self.when not in tuple(Judgement):
                raise ConfigError(f"a user turn has when = {self.when!r}: choose one of {', '.join(Judgement)}.")
            object.__setattr__(self, "when", Judgement(self.when))
        self._check_phrases()

    def _check_phrases(self) -> None:
        given = [phrase for phrase in (self.says_correct, self.says_wrong) if phrase is not None]
        if given and self.role is not Role.VERIFICATION:
            raise ConfigError(
                f"a user turn of role {self.role} has the phrase {given[0]!r}: says_correct and says_wrong are for "
                'role = "verification".'
            )
        correct, wrong = self.phrases
        if not correct.strip() or not wrong.strip() or correct.casefold() == wrong.casefold():
            raise ConfigError(
                f"a verification has the phrases {correct!r} and {wrong!r}: they must differ, and have text."
            )

    @property
    def phrases(self) -> tuple[str, str]:
        """Return the phrases of a verification: the one that says correct, the one that says wrong."""
        correct = SAYS_CORRECT if self.says_correct is None else self.says_correct
        return correct, SAYS_WRONG if self.says_wrong is None else self.says_wrong

    @model_serializer
    def to_json(self) -> dict[str, str]:
        """Return the turn's table without what is unset, as versions without these settings wrote it."""
        return {name: str(value) for name, value in asdict(self).items() if value is not None}


DRAFT_REQUEST = UserTurn(VERIFY_DRAFT, Role.VERIFICATION)
DRAFT_REQUEST_BY_DIGIT = UserTurn(VERIFY_DRAFT_BY_DIGIT, Role.VERIFICATION, says_correct="0", says_wrong="1")
"""The requests to verify a draft on a prompt of its own; ``{attempt}`` stands for the draft."""


def draft_request_table(item: Any) -> Any:
    """Return the table of a request to verify a draft, given as its text or without its role; return anything else as it is.

    >>> draft_request_table("{prompt} {attempt}: 0 or 1?")
    {'role': 'verification', 'text': '{prompt} {attempt}: 0 or 1?'}
    """
    table = {"text": item} if isinstance(item, str) else item
    return {"role": Role.VERIFICATION.value, **table} if isinstance(table, Mapping) else table


def checked_draft_request(turn: UserTurn) -> UserTurn:
    """Return a request to verify a draft.

    Raises:
        ConfigError: it does not show the problem and, once, the draft; or it is another kind of turn.
    """
    if turn.role is not Role.VERIFICATION or turn.when is not None:
        raise ConfigError(
            f'a request to verify a draft has role = "{turn.role}" and when = {turn.when}: it asks for a verification, '
            "in a conversation of its own; leave both out."
        )
    if "{prompt}" not in turn.text or turn.text.count("{attempt}") != 1:
        raise ConfigError(
            f"a request to verify a draft says {turn.text[:60]!r}: it must hold {{prompt}}, which stands for the problem, and "
            "{attempt}, which stands for the draft, once."
        )
    return turn


def judgement(text: str, correct: str = SAYS_CORRECT, wrong: str = SAYS_WRONG) -> Judgement | None:
    """Return what a verification says: the phrase that occurs last, in any case; None if neither occurs.

    Reasoning does not count, and a text whose reasoning has no end says nothing. Where both phrases end at one place, because
    one contains the other, the longer one counts.

    >>> judgement("The answer is wrong? No: the answer is correct.").value
    'correct'
    >>> judgement("I cannot tell."), judgement("incorrect", "correct", "incorrect").value
    (None, 'wrong')
    """
    said = (final_part(text) or "").casefold()
    phrases = {Judgement.CORRECT: correct.casefold(), Judgement.WRONG: wrong.casefold()}
    ends = {
        verdict: (said.rfind(phrase) + len(phrase), len(phrase))
        for verdict, phrase in phrases.items()
        if phrase in said
    }
    return max(ends, key=lambda verdict: ends[verdict]) if ends else None


def current_user_turn(item: Any) -> Any:
    """Return a user turn's table with ``role`` in place of the older ``attempt``; return anything else as it is.

    >>> current_user_turn({"text": "Any error?", "attempt": False})
    {'text': 'Any error?', 'role': 'feedback'}
    """
    if isinstance(item, Mapping) and "role" not in item and isinstance(item.get("attempt"), bool):
        role = Role.ATTEMPT if item["attempt"] else Role.FEEDBACK
        return {**{name: value for name, value in item.items() if name != "attempt"}, "role": role.value}
    return item


Instructions = str | Sequence[str | Annotated[UserTurn, BeforeValidator(current_user_turn)]]
"""The user's messages before later turns: one text for all of them, or several in rotation."""


@dataclass(frozen=True, slots=True)
class Script:
    """The user's side of a conversation.

    ``first`` is a template in which ``{prompt}`` stands for the problem. ``revise`` precedes every later attempt and may
    hold ``{prompt}`` too. ``system`` is an optional system message. ``turns`` counts attempts.

    Where ``revise`` lists several user turns, they rotate in order until there are ``turns`` attempts.

    Examples:
        >>> script = Script(first="Q: {prompt}", revise="Try again.")
        >>> [turn.text for turn in script.user_turns("1+1")]
        ['Q: 1+1', 'Try again.']
        >>> refine = Script(revise=(UserTurn("Any error?", Role.FEEDBACK), "Try again."), turns=3)
        >>> [turn.text for turn in refine.user_turns("1+1")]
        ['1+1', 'Any error?', 'Try again.', 'Any error?', 'Try again.']
    """

    first: str = "{prompt}"
    revise: Instructions = GENERAL_INSTRUCTION
    system: str | None = None
    turns: int = 2

    def __post_init__(self) -> None:
        if "{prompt}" not in self.first:
            raise ConfigError(f"script.first = {self.first!r} lacks {{prompt}}: the model would not see the problem.")
        if type(self.turns) is not int or not 1 <= self.turns <= MAX_TURNS:
            raise ConfigError(f"script.turns = {self.turns!r}: an episode has 1 to {MAX_TURNS} turns.")
        if not isinstance(self.revise, str):
            object.__setattr__(self, "revise", tuple(_user_turn(item) for item in self.revise))
        if not any(turn.role is Role.ATTEMPT for turn in self.later):
            raise ConfigError(f"script.revise = {self.revise!r} asks for no attempt: at least one of its turns must.")
        roles = [turn.role for turn in self.later]
        for k, turn in enumerate(self.later):
            if turn.when is not None and Role.VERIFICATION not in roles[:k]:
                raise ConfigError(
                    f'script.revise: the turn {turn.text[:60]!r} has when = "{turn.when}", but no turn before it has '
                    'role = "verification": put one there, or leave out when.'
                )

    @property
    def later(self) -> tuple[UserTurn, ...]:
        """Return the user turns of ``revise``, once."""
        return tuple(_user_turn(item) for item in ([self.revise] if isinstance(self.revise, str) else self.revise))

    def user_turns(self, prompt: str = "{prompt}") -> tuple[UserTurn, ...]:
        """Return the user's turns for a problem, up to the last attempt."""
        said, later = [UserTurn(self.first)], cycle(self.later)
        while sum(turn.role is Role.ATTEMPT for turn in said) < self.turns:
            said.append(next(later))
        return tuple(replace(turn, text=turn.text.replace("{prompt}", prompt)) for turn in said)

    def with_turns(self, turns: int) -> Script:
        return replace(self, turns=turns)

    @property
    def conditional(self) -> bool:
        """Return whether some turn depends on what a verification says."""
        return any(turn.when is not None for turn in self.later)

    def with_verification(self, asked: UserTurn | None = None, head: str = SAID_WRONG) -> Script:
        """Return a script in which the model verifies every attempt, and makes another only if it says wrong (PAG).

        ``asked`` is the request for the verification; ``head`` precedes the instruction of every later attempt.
        """
        first = asked or UserTurn(VERIFY, Role.VERIFICATION)
        later = [
            replace(turn, text=head + turn.text, when=Judgement.WRONG)
            for turn in self.later
            if turn.role is Role.ATTEMPT
        ]
        return replace(self, revise=tuple(turn for attempt in later for turn in (first, attempt)))

    def with_verification_by_digit(self) -> Script:
        """Return `with_verification` for a model that writes digits; later attempts keep their instruction."""
        asked = UserTurn(VERIFY_BY_DIGIT, Role.VERIFICATION, says_correct="0", says_wrong="1")
        return self.with_verification(asked, head="")

    def to_json(self) -> dict[str, Any]:
        """Return the script's fields as plain values, user turns without what is unset."""
        revise = self.revise if isinstance(self.revise, str) else tuple(turn.to_json() for turn in self.later)
        return {**asdict(self), "revise": revise}

    def with_feedback(self, text: str = FEEDBACK) -> Script:
        """Return a Self-Refine script (Madaan et al., arXiv 2303.17651): feedback precedes every later attempt."""
        asked = UserTurn(text, Role.FEEDBACK)
        later = ((asked, turn) if turn.role is Role.ATTEMPT else (turn,) for turn in self.later)
        return replace(self, revise=tuple(turn for turns in later for turn in turns))


def current_revise(revise: Any) -> Any:
    """Return the ``revise`` of stored settings with each user turn in the form of `current_user_turn`."""
    return [current_user_turn(item) for item in revise] if isinstance(revise, list) else revise


def _user_turn(item: object) -> UserTurn:
    """Return the user turn that is given as itself, as a text, or (from TOML) as a table of its fields."""
    if isinstance(item, UserTurn):
        return item
    if isinstance(item, str):
        return UserTurn(item)
    table = current_user_turn(item)
    if isinstance(table, dict) and "text" in table and set(table) <= {field.name for field in fields(UserTurn)}:
        return UserTurn(**table)
    raise ConfigError(
        f'script.revise: {item!r} is not a user turn. Give a text, or {{ text = ..., role = "feedback" }}.'
    )
