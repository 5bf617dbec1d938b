"""What a tokenizer's chat template renders, and the facts that follow: where a turn ends, and which options there are.

The end of a turn is what the template writes after the assistant's text. Tokenizers and generation settings name end
tokens too, but not always this one: a ChatML template may come with a tokenizer whose only end token is ``<|endoftext|>``.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, meta

from selfcorrect.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)
"""The template of a base model without one: each message on its own line."""

STAND_IN = "@@ATTEMPT@@"
"""A text in place of an attempt, to find what the template writes around it."""

TALK = ({"role": "user", "content": "problem"}, {"role": "assistant", "content": STAND_IN})
AGAIN = {"role": "user", "content": "again"}

Messages = Sequence[Mapping[str, str]]


def render(
    tokenizer: Any, messages: Messages, options: Mapping[str, Any] | None = None, *, open_turn: bool = True
) -> str:
    """Return a conversation as the tokenizer's chat template renders it, or `PLAIN_TEMPLATE` if it has none.

    ``options`` are variables of the template, such as ``enable_thinking``. ``open_turn`` adds the head of the assistant's
    next turn.

    Raises:
        ModelError: the template is malformed, or does not accept this conversation.
    """
    try:
        rendered = str(
            tokenizer.apply_chat_template(
                list(messages),
                chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
                tokenize=False,
                add_generation_prompt=open_turn,
                **(options or {}),
            )
        )
        rendered.encode()  # half of a character is no text for a tokenizer
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of the model's publisher
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the tokenizer's chat template cannot render a conversation of the roles {roles} ({type(error).__name__}: "
            f"{error}). Repair chat_template.jinja (or chat_template in tokenizer_config.json), or use another tokenizer."
        ) from error
    return rendered


def check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Reject options of which the chat template knows nothing; it would ignore them in silence.

    Raises:
        ConfigError: an option is not a variable of the template, or is an argument that the package sets itself.
    """
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) | {"messages"}
    taken |= set(tokenizer.special_tokens_map)
    template = str(tokenizer.get_chat_template()) if options and tokenizer.chat_template else ""
    known = _variables(template) - taken
    for name in options:
        if name not in known:
            why = "which is not an option" if name in taken else "which the model's chat template does not use"
            raise ConfigError(
                f"chat_template_kwargs sets {name!r}, {why}"
                + ("." if template else ": the tokenizer has no chat template.")
            )


def _variables(template: str) -> set[str]:
    """Return the names that a template looks up outside itself."""
    plain = re.sub(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}", "", template)  # a tag of transformers' own
    try:
        return meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    except (TemplateError, RecursionError):  # some other extension: any name will do
        return set(re.findall(r"[A-Za-z_]\w*", template))


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the id with which the chat template closes the assistant's turn; None if that is ordinary text.

    The end of a whole conversation decides where the template closes it: some templates separate the parts of one turn
    with another token than the one that ends it.
    """
    for text in _after_attempt(tokenizer):
        token = _first_special(tokenizer, text.lstrip())
        if token is not None:
            return token
    return None


def note_unknown_end(tokenizer: Any) -> None:
    """Warn once if the chat template closes a turn with text that is no token, at which no engine ends."""
    if end_of_turn(tokenizer) is not None:
        return
    texts = [text.strip() for text in _after_attempt(tokenizer)]
    closing = next((text for text in texts if text), "")
    if closing:
        _warn(closing.splitlines()[0][:40], str(tokenizer.eos_token))


@lru_cache
def _warn(closing: str, end: str) -> None:
    log.warning(
        "the chat template follows the assistant's turn with the text %r, which is no end token of the tokenizer; a turn "
        "ends with %s alone. If turns run on, set a stop text (rollout.stop, --stop).",
        closing,
        end,
    )


def _after_attempt(tokenizer: Any) -> list[str]:
    """Return what follows an attempt at the end of a conversation, and before the user's next turn."""
    found = []
    for messages in (TALK, (*TALK, AGAIN)):
        try:
            rendered = render(tokenizer, messages, open_turn=False)
        except ModelError:  # some templates refuse a conversation that ends like this
            continue
        if STAND_IN in rendered:
            found.append(rendered.rpartition(STAND_IN)[2])
    return found


def _first_special(tokenizer: Any, text: str) -> int | None:
    """Return the first id of a text if it is an added token or the end token, which ordinary text cannot produce."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    # An unknown character has a special id too, but not the text of one.
    known = ids and ids[0] in added and text.startswith(str(tokenizer.convert_ids_to_tokens(ids[0])))
    return int(ids[0]) if known else None


def start_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that the tokenizer's own post-processor puts before a text: ``<s>`` in Llama, none in many others."""
    plain = tokenizer("1", add_special_tokens=False)["input_ids"]
    whole = tokenizer("1")["input_ids"]
    starts = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
    return tuple(whole[: starts[0]]) if starts else ()
