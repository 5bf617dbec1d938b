"""The verifier ``choice``: the options of a row, and the one that is the key. `dataset.choice` reads the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.tasks.dataset.answer_verifier import AnswerVerifier, Row, judged
from selfcorrect.tasks.dataset.choice import LETTERS, chosen, options_in
from selfcorrect.tasks.dataset.hidden_options import advice, hidden_options, shows_options
from selfcorrect.types import Problem, Verdict


@dataclass(frozen=True)
class Choice(AnswerVerifier):
    """The answer chooses the reference's option: ``(B)``, ``**B**``, ``The answer is B.``, ``B) Paris`` (`dataset.choice`).

    ``options_field`` is the column of the options (a list, or ARC's ``{text, label}``), or a list of columns that hold one
    each. Without it, the problem's own lines ``A) ...`` list them, and without those any letter from A to J may be the key;
    columns that look like options and are not shown are then rejected (`dataset.hidden_options`).

    The reference is a letter, a label, or the text of one option. ``count_from`` is the number of the first option where
    references are numbers.
    """

    name = "choice"
    trusted = True
    first = "{prompt}\n\nThink step by step, and end with a line of this form:\nThe answer is (X)."

    options_field: str | list[str] | None = None
    count_from: int | None = None

    def shown(self, row: Row) -> Mapping[str, str]:
        if self.options_field is None:
            return {}
        return {"options": "\n".join(f"{letter}) {text}" for letter, (_, text) in self._options(row).items())}

    def checked(self, reference: str, prompt: str, row: Row) -> tuple[str, dict[str, Any]]:
        if self.options_field is None:
            listed = options_in(prompt)
            if not listed and (names := hidden_options(row, prompt)):
                raise ConfigError(f"{advice(names)}.")
            options = {letter: (letter, listed.get(letter, "")) for letter in listed or LETTERS}
        else:
            options = self._options(row)
        key = self._key(reference.strip(), options)
        return key, {"options": {letter: text for letter, (_, text) in options.items()}}

    def remarks(self, problems: Sequence[Problem]) -> list[str]:
        blind = [p for p in problems if not any(p.data["options"].values()) and not shows_options(p.prompt)]
        if not blind:
            return []
        return [
            f"{len(blind):,} of {len(problems):,} problems show no options, the first is {blind[0].id}: the model can only guess "
            "a letter, unless their texts name the options in another way. Set options_field to the column, or the list of "
            "columns, that holds them, or show them in template"
        ]

    def __call__(self, text: str, reference: str, row: Row) -> Verdict:
        answer = chosen(text, row["options"])
        return judged(answer, answer == reference, "the text chooses no option, or several")

    def written(self, problem: Problem) -> str:
        return f"The answer is ({problem.reference})."

    def corrupted(self, problem: Problem) -> str:
        letters = list(problem.data["options"])
        return f"The answer is ({letters[(letters.index(problem.reference) + 1) % len(letters)]})."

    def _options(self, row: Row) -> dict[str, tuple[str, str]]:
        """Return each option's own label and text by its letter."""
        labels, texts = self._columns(row)
        if not isinstance(texts, list) or not all(isinstance(text, str | int | float) for text in texts):
            raise ValueError(
                f"the options {texts!r:.80} are no list of texts; options_field may also be a list of columns"
            )
        if not 2 <= len(texts) <= len(LETTERS):
            raise ValueError(f"{len(texts)} options: a question needs 2 to {len(LETTERS)}")
        written = [str(text).strip() for text in texts]
        if not all(written) or len({text.casefold() for text in written}) < len(written):
            raise ValueError(f"the options {written!r:.80} must differ, and none may be empty")
        own = labels if isinstance(labels, list) and len(labels) == len(texts) else list(LETTERS)
        return {letter: (str(label), text) for letter, label, text in zip(LETTERS, own, written, strict=False)}

    def _columns(self, row: Row) -> tuple[Any, Any]:
        """Return the labels and the texts as the row has them."""
        names = [self.options_field] if isinstance(self.options_field, str) else self.options_field or []
        if absent := [name for name in names if name not in row]:
            columns = ", ".join(map(repr, row))
            raise ValueError(
                f"no column {', '.join(map(repr, absent))} among {columns}; set options_field to the right one"
            )
        if isinstance(self.options_field, list):
            return names, [row[name] for name in names]
        value = row[names[0]]
        return (value.get("label"), value.get("text")) if isinstance(value, Mapping) else (LETTERS, value)

    def _key(self, reference: str, options: Mapping[str, tuple[str, str]]) -> str:
        named = [letter for letter, (label, _) in options.items() if reference == label]
        same = [letter for letter, (_, text) in options.items() if text and reference.casefold() == text.casefold()]
        letter = re.fullmatch(r"[(\[]?\s*([A-Ja-j])\s*[)\].:]*", reference)
        if self.count_from is not None and re.fullmatch(r"\d{1,3}", reference):
            place = int(reference) - self.count_from
            found = list(options)[place : place + 1] if place >= 0 else []
        elif named:
            found = named
        elif letter and letter[1].upper() in options:
            found = [letter[1].upper()]
        else:
            found = same
        if not found:
            hint = " (count_from = 0 or 1 reads numbers)" if reference.isdigit() and self.count_from is None else ""
            raise ValueError(f"the key {reference!r:.40} is not among the options {', '.join(options)}{hint}")
        return found[0]
