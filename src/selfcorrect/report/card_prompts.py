"""The part of a model's card that says which messages it was trained with, so that others can ask it in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from selfcorrect.config.schema import Config
from selfcorrect.errors import SelfCorrectError
from selfcorrect.script import Script, UserTurn
from selfcorrect.storage.consent import code_of_task
from selfcorrect.tasks.base import script_of, scripted
from selfcorrect.types import Role

WHEN = {Role.ATTEMPT: "Before every later attempt", Role.FEEDBACK: "For feedback", Role.VERIFICATION: "For a verdict"}


def prompts(config: Config, turns: int, recorded: Any) -> Iterator[str]:
    """Yield the system message, the template of the first message, and the instructions before later attempts.

    Args:
        turns: the attempts of the episodes that the model was trained on; 0 = it was not trained.
        recorded: the script in the run's summary; None in a run of an earlier version, whose settings then tell, unless its
            task names code of somebody else.
    """
    script = _script(config, recorded)
    if script is None:
        yield "Not recorded: the settings of this run do not tell the messages without code that they name."
        return
    yield "`{prompt}` stands for the problem. The model answers best when it is asked with the messages of its training."
    if script.system is not None:
        yield f"\nThe system message:\n\n{fenced(script.system)}"
    yield f"\nThe first message of the user:\n\n{fenced(script.first)}"
    if turns == 1:
        yield "\nThe model was trained on first attempts alone. In the evaluation, these messages followed:"
    for turn in script.later:
        yield f"\n{_when(turn)}:\n\n{fenced(turn.text)}"
    rollout = config.rollout
    stops = f", and one of {json.dumps(rollout.stop, ensure_ascii=False)} ended it" if rollout.stop else ""
    yield f"\nA turn had at most {rollout.max_tokens:,} tokens{stops}."
    if options := config.model.chat_template_kwargs:
        yield f"\nOptions of the chat template: `{json.dumps(options, ensure_ascii=False)}`."


def _when(turn: UserTurn) -> str:
    """Return when a user turn follows, in words."""
    condition = "" if turn.when is None else f", if the verdict says {turn.when}"
    said = ""
    if turn.role is Role.VERIFICATION:
        correct, wrong = (json.dumps(phrase, ensure_ascii=False) for phrase in turn.phrases)
        said = f" ({correct} or {wrong} is what counts)"
    return WHEN[turn.role] + condition + said


def _script(config: Config, recorded: Any) -> Script | None:
    if isinstance(recorded, Mapping):
        with suppress(SelfCorrectError, TypeError):
            return Script(**recorded)
    if code_of_task(config.task.name, config.task.options):
        return None
    with suppress(SelfCorrectError):
        return script_of(config, scripted(config.task.name, config.task.options))
    return None


def fenced(text: str) -> str:
    """Return a text as a block of Markdown that nothing in the text can end.

    >>> print(fenced("Write it in a ```python block."))
    ````text
    Write it in a ```python block.
    ````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
