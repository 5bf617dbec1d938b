"""Templates that make a problem's text from the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.rows import text_field


class Template:
    """A text with columns in braces, such as ``{question}``; ``{{`` and ``}}`` stand for braces.

    >>> Template("{a} + {b} in {{ }}").filled({"a": 1, "b": "2"})
    '1 + 2 in { }'

    Raises:
        ConfigError: the braces do not match, there is no column, or one of them is ``answers``.
    """

    def __init__(self, text: str, answers: str | None = None) -> None:
        try:
            parts = list(Formatter().parse(text))
            if any(how or conversion for _, _, how, conversion in parts):
                raise ValueError("a column stands in its braces alone, without ':' or '!'")
        except ValueError as error:
            raise ConfigError(f"template = {text!r:.200}: {error}. Write {{{{ and }}}} for braces that stay.") from None
        self._parts = [(literal, name) for literal, name, _, _ in parts]
        self.columns = [name for _, name in self._parts if name is not None]
        if not self.columns:
            raise ConfigError(f"template = {text!r:.200} shows no column: the model would not see the problem.")
        if answers in self.columns:
            raise ConfigError(f"template = {text!r:.200} shows {answers!r}, the column of the answers, to the model.")

    def filled(self, row: Mapping[str, Any]) -> str:
        """Return the text for a row.

        Raises:
            ValueError: a column is missing, or is neither text nor a number.
        """
        return "".join(
            literal + ("" if name is None else text_field(row, name, "prompt_field or template", numbers=True))
            for literal, name in self._parts
        )
