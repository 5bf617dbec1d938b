"""What the model is told, as data: a `Script` holds the user's words of every turn.

The first turn's template gets the problem; every later one is a fixed instruction that does not say whether the
attempt before it was right (intrinsic self-correction, METHOD 1). It may repeat the problem.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from selfcorrect.errors import ConfigError

GENERAL_INSTRUCTION = (
    "There might be an error in the answer above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the answer. Only output the final answer!"
)
"""The second-turn instruction of the paper (METHOD 4), in words for any task with an answer."""


@dataclass(frozen=True, slots=True)
class Script:
    """The user's side of a conversation.

    ``first`` is a template in which ``{prompt}`` stands for the problem; ``revise``, said before every later
    attempt, may hold ``{prompt}`` too; ``system`` is an optional system message.

    >>> script = Script(first="Q: {prompt}", revise="Try again.")
    >>> script.user_turn(0, "1+1"), script.user_turn(1, "1+1")
    ('Q: 1+1', 'Try again.')
    """

    first: str = "{prompt}"
    revise: str = GENERAL_INSTRUCTION
    system: str | None = None
    turns: int = 2

    def __post_init__(self) -> None:
        if "{prompt}" not in self.first:
            raise ConfigError(f"script.first = {self.first!r} has no {{prompt}}: the model would not see the problem.")
        if self.turns < 1:
            raise ConfigError(f"script.turns = {self.turns}: an episode needs at least 1 turn.")

    def user_turn(self, turn: int, prompt: str) -> str:
        """The user's message before attempt ``turn`` (0-based)."""
        return (self.first if turn == 0 else self.revise).replace("{prompt}", prompt)

    def with_turns(self, turns: int) -> Script:
        return replace(self, turns=turns)
