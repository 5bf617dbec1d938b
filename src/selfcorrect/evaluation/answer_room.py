"""The tokens that an answer needs, as far as a task's data tell: the rule behind a suggested ``rollout.max_tokens``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selfcorrect.script import Script

STEPS = re.compile(
    r"step[ -]by[ -]step|think(?:ing)? (?:first|carefully|aloud)|show your (?:work|reasoning)|explain|reasoning", re.I
)
"""Words of an instruction that ask for more than the final answer."""
HALF_MORE, ROUND = 1.5, 32
"""A model's solution is seldom as short as the data's, so the longest gets half as much again, in whole multiples of 32."""
TWICE, ROUND_SHORT = 2.0, 8
"""The same for a final answer alone, which a model may write with a few words around it."""
STEPS_ROOM = 512
"""Where a first evaluation begins if steps are asked for and no solution is known: a beginning, no bound."""


@dataclass(frozen=True, slots=True)
class AnswerRoom:
    """A suggested ``rollout.max_tokens``, None where the data give no bound, and the sentences that say why."""

    max_tokens: int | None
    notes: tuple[str, ...]


def answer_room(
    script: Script,
    solutions: Sequence[str],
    answers: Sequence[str],
    length: Callable[[str], int] | None,
    configured: int | None = None,
) -> AnswerRoom:
    """Return how much room an answer needs.

    Args:
        solutions: whole correct responses, where the task has some; ``answers`` hold the final answers alone.
        length: the tokens of a text; None without a tokenizer.
        configured: ``rollout.max_tokens`` of the configuration, if there is one.
    """
    asks = STEPS.search(f"{script.system or ''}\n{script.first}") is not None
    if not solutions and asks:
        small = configured is not None and configured < STEPS_ROOM
        return AnswerRoom(
            None,
            (
                "The data hold final answers alone and the first message asks for steps, so no bound for rollout.max_tokens "
                "follows: the steps need most of the room.",
                *([f"rollout.max_tokens = {configured:,} may be too little for steps."] if small else []),
                f"Begin with `selfcorrect eval --limit 20 --max-tokens {STEPS_ROOM}`. The line below its table says how many "
                "attempts were truncated: raise the limit until hardly any is, or ask for less (the option first).",
            ),
        )
    if length is None:
        return AnswerRoom(None, ("Give --model for lengths in tokens and a suggested rollout.max_tokens.",))
    factor, step = (HALF_MORE, ROUND) if solutions else (TWICE, ROUND_SHORT)
    texts = [*solutions, *answers]  # the form of a final answer may be longer than a short solution
    longest = max(map(length, texts), default=0)
    suggested = -(-round(factor * (longest + 1)) // step) * step  # and one token that ends the turn
    what = "whole solution" if solutions else "final answer"
    notes = [
        f"Suggested: rollout.max_tokens = {suggested:,}, which is {factor:g} times the longest {what} of {longest:,} tokens "
        f"and its end, in multiples of {step}."
    ]
    if not solutions:
        notes.append(
            "This holds only if the model writes the answer alone; steps or an explanation need hundreds more."
        )
    if configured is not None and configured <= longest:
        notes.append(f"rollout.max_tokens = {configured:,} truncates the longest {what} of the data.")
    notes.append(
        "Evaluate a few problems first (`selfcorrect eval --limit 20`): the line below the table says how many attempts were "
        "truncated."
    )
    return AnswerRoom(suggested, tuple(notes))
