"""Columns that hold the options of a question which the problem's text does not show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from selfcorrect.tasks.dataset.choice import LETTERS

_LISTED = re.compile(r"(?:(?:answer|question)?[ _-]?(?:options?|choices?|alternatives?))(?:[ _-]?list)?", re.IGNORECASE)
_SINGLE = re.compile(
    r"(?:(options?|choices?|answers?|alternatives?)[ _-]?)?[(\[]?([A-Ja-j]|[0-9])[)\]]?", re.IGNORECASE
)
_MARK = re.compile(r"(?<![\w'’])[(\[]?([A-J])[)\].:](?!\w)")


def hidden_options(row: Mapping[str, Any], prompt: str) -> str | list[str] | None:
    """Return what `options_field` should be if columns named like options hold texts that a problem does not show.

    It is the column of a list, or the columns that hold one option each: at least two, A and B or consecutive numbers. A
    bare number is no name of an option.

    >>> hidden_options({"question": "6 * 7?", "A": "42", "B": "43"}, "6 * 7?")
    ['A', 'B']
    >>> hidden_options({"question": "6 * 7?", "A": "42", "B": "43"}, "6 * 7? (A) 42 (B) 43") is None
    True
    """
    for names, texts in _candidates(row):
        if len(texts) > 1 and not all(text in prompt for text in texts):
            return names
    return None


def _candidates(row: Mapping[str, Any]) -> list[tuple[str | list[str], list[str]]]:
    found: list[tuple[str | list[str], list[str]]] = []
    single: dict[str, dict[str, str]] = {}
    for name, value in row.items():
        texts = value.get("text") if isinstance(value, Mapping) else value
        if _LISTED.fullmatch(name) and isinstance(texts, list):
            found.append((name, [str(text).strip() for text in texts]))
        match = _SINGLE.fullmatch(name)
        if match and (match[1] or match[2].isalpha()):
            single.setdefault((match[1] or "").casefold(), {})[match[2].upper()] = name
    for labels in single.values():
        names = [labels[label] for label in sorted(labels)]
        if _begins_a_list(sorted(labels)):
            found.append((names, [str(row[name]).strip() for name in names]))
    return found


def _begins_a_list(labels: list[str]) -> bool:
    first = labels[0]
    return labels == [chr(ord(first) + i) for i in range(len(labels))] and first in ("A", "0", "1")


def shows_options(prompt: str) -> bool:
    """Return whether a problem marks an option A and an option B anywhere: ``(A) 42 (B) 43``, ``A. 42``."""
    return set(LETTERS[:2]) <= {match[1] for match in _MARK.finditer(prompt)}


def advice(names: str | list[str]) -> str:
    """Return how to show the options that `hidden_options` found."""
    columns = [names] if isinstance(names, str) else names
    written = f"'{names}'" if isinstance(names, str) else "[" + ", ".join(f'"{name}"' for name in names) + "]"
    which = f"column {columns[0]!r}" if len(columns) == 1 else f"the columns {', '.join(map(repr, columns))}"
    return (
        f"the model would not see the options: {which} may hold them, but the problem does not show them. Set "
        f"verifier = 'choice' and options_field = {written}, or show them in template"
    )
