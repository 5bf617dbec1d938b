"""What the model is told, as data: a `Script` holds the user's words of every turn.

The first turn's template gets the problem; every later one is a fixed instruction that does not say whether the
attempt before it was right (intrinsic self-correction). It may repeat the problem.

Not every turn of the model is an attempt: a script may ask for feedback first (Self-Refine). Such a turn is sampled
like an attempt and read by the attempts after it, but is context only: it is not verified, earns nothing and is not
trained. Whatever is set or reported per turn, as reward weights, anchors and Acc@t2 are, counts attempts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.types import Role

GENERAL_INSTRUCTION = (
    "There might be an error in the answer above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the answer. Only output the final answer!"
)
"""The second-turn instruction of the paper (docs/method.md, section 9), in words for any task with an answer."""

FEEDBACK = (
    "Review the answer above step by step. Say what is right and what, if anything, is wrong, and how to repair it. "
    "Give this feedback only; do not write a new answer yet."
)
"""What `Script.with_feedback` asks for; the wording is ours."""


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the user says before a turn of the model, and the role of that turn."""

    text: str
    role: Role = Role.ATTEMPT

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (read by the settings, which hold such turns)

    def __post_init__(self) -> None:
        if self.role not in tuple(Role):
            raise ConfigError(f"a user turn has role = {self.role!r}: there are {', '.join(Role)}.")
        object.__setattr__(self, "role", Role(self.role))


Instructions = str | Sequence[str | UserTurn]
"""What may be said before later turns: one text for all of them, or several that take turns."""


@dataclass(frozen=True, slots=True)
class Script:
    """The user's side of a conversation.

    ``first`` is a template in which ``{prompt}`` stands for the problem; ``revise``, said before every later
    attempt, may hold ``{prompt}`` too; ``system`` is an optional system message. ``turns`` counts attempts.

    Where ``revise`` lists several user turns, they are said one after the other and again from the first, until
    there are as many attempts as asked for.

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
            raise ConfigError(f"script.first = {self.first!r} has no {{prompt}}: the model would not see the problem.")
        if self.turns < 1:
            raise ConfigError(f"script.turns = {self.turns}: an episode needs at least 1 turn.")
        if not isinstance(self.revise, str):
            object.__setattr__(self, "revise", tuple(_user_turn(item) for item in self.revise))
        if not any(turn.role is Role.ATTEMPT for turn in self.later):
            raise ConfigError(f"script.revise = {self.revise!r} asks for no attempt: let one of its turns be one.")

    @property
    def later(self) -> tuple[UserTurn, ...]:
        """The user turns of ``revise``, once."""
        return tuple(_user_turn(item) for item in ([self.revise] if isinstance(self.revise, str) else self.revise))

    def user_turns(self, prompt: str = "{prompt}") -> tuple[UserTurn, ...]:
        """All that the user says about a problem, up to the last attempt."""
        said, later = [UserTurn(self.first)], cycle(self.later)
        while sum(turn.role is Role.ATTEMPT for turn in said) < self.turns:
            said.append(next(later))
        return tuple(replace(turn, text=turn.text.replace("{prompt}", prompt)) for turn in said)

    def with_turns(self, turns: int) -> Script:
        return replace(self, turns=turns)

    def with_feedback(self, text: str = FEEDBACK) -> Script:
        """Self-Refine (Madaan et al., arXiv 2303.17651): before every later attempt the model gives itself feedback."""
        asked = UserTurn(text, Role.FEEDBACK)
        later = ((asked, turn) if turn.role is Role.ATTEMPT else (turn,) for turn in self.later)
        return replace(self, revise=tuple(turn for turns in later for turn in turns))


def current_user_turn(item: Any) -> Any:
    """Return a user turn's table with ``role`` in place of ``attempt``, which older settings have; else what was given.

    >>> current_user_turn({"text": "Any error?", "attempt": False})
    {'text': 'Any error?', 'role': 'feedback'}
    """
    if isinstance(item, Mapping) and "role" not in item and isinstance(item.get("attempt"), bool):
        role = Role.ATTEMPT if item["attempt"] else Role.FEEDBACK
        return {**{name: value for name, value in item.items() if name != "attempt"}, "role": role.value}
    return item


def current_revise(revise: Any) -> Any:
    """Return ``revise`` as stored in settings, each of its user turns in the form of `current_user_turn`."""
    return [current_user_turn(item) for item in revise] if isinstance(revise, list) else revise


def _user_turn(item: object) -> UserTurn:
    """Return a user turn as given: itself, a text, or (from TOML) a table of its fields."""
    if isinstance(item, UserTurn):
        return item
    if isinstance(item, str):
        return UserTurn(item)
    table = current_user_turn(item)
    if isinstance(table, dict) and "text" in table and set(table) <= {"text", "role"}:
        return UserTurn(**table)
    raise ConfigError(f'script.revise: {item!r} is no user turn: give a text, or {{ text = ..., role = "feedback" }}.')
