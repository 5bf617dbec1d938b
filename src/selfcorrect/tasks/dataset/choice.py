r"""The letter that a completion chooses among the options of a multiple-choice question.

Reasoning is left out, and so is what a base model writes after its answer (`tasks.math.reading.own_solution`). Then the
first of these that is there decides:

1. the last ``\boxed{...}``;
2. the last phrase that names an answer: ``the answer is (B)``, ``Answer: B``, ``option B is correct``, ``I choose B``;
3. the only option that a line begins with, ``B) Paris``, or consists of, ``**B**``;
4. a text that is an option word for word;
5. the only option that the last line names: ``So it must be (B).``

A text that leaves the choice open (``B or C``, a list of all options) chooses nothing. In prose, a letter without brackets
counts only if it cannot be a word: not in ``the answer is A train``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from selfcorrect.tasks.math.reading import boxed_answer, own_solution

LETTERS = "ABCDEFGHIJ"
"""The letters of options, in order."""

CONTENT_LIMIT = 300
"""The longest text after a phrase that is read, in characters."""

_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\s?\{([^{}]*)\}")
_MARKS = re.compile(r"[*`$]|\\[()]|__")
_PHRASE = re.compile(
    r"\b(?:answers?|options?|choices?|letter|alternative)\b(?:[ \t]+(?!not\b)[\w'’-]++){0,6}?[ \t]*"
    r"(?:\b(?:is|are|be)\b(?![ \t]+(?:not|in)\b)[ \t]*[:=]?|[:=](?:[ \t]*is\b)?)|答案[ \t]*(?:是|为|：|:)?|####"
    r"|\b(?:choose|chose|pick|select|selected|go(?:ing)? with)\b",
    re.IGNORECASE,
)
_KIND = r"(?:(?i:the|option|choice|letter|answer|alternative)[ \t]+){0,2}"
_LABEL = re.compile(
    rf"\s*{_KIND}(?:[(\[{{][ \t]*(?P<bracketed>[A-Ja-j])[ \t]*[)\]}}]|(?P<closed>[A-Ja-j])[ \t]*[)\]]"
    r"|(?P<bare>[A-Ja-j])(?![\w'’-]))"
)
_AFTER_LETTER = re.compile(
    r"[ \t]*(?:$|[\n.,;:!)\]—–(-]|(?i:because|since|as|is|which|due|given|with|and|or|but|not|here|for)\b)"
)
_HEDGE = re.compile(r"[ \t]*[)\]}]?[ \t]*(?:,[ \t]*(?:and|or)|and(?:/or)?|or|/|&|,)[ \t]*", re.IGNORECASE)
_IS_RIGHT = re.compile(
    r"(?<![\w'’-])(?:[(\[][ \t]*([A-Ja-j])[ \t]*[)\]]|([A-J]))[ \t]+(?:is|seems|must be)[ \t]+(?:the[ \t]+)?"
    r"(?:only[ \t]+|most[ \t]+)?(?:correct|right|answer|best|true)\b",
)
_LINE = re.compile(
    r"[ \t>#-]*(?:[(\[][ \t]*([A-Ja-j])[ \t]*[)\]]|([A-J])[ \t]*(?:[).:\]](?!\w)|$)|([a-j])[ \t]*(?:\)|\.?$))"
)
_NAMED = re.compile(
    r"[(\[][ \t]*([A-Ja-j])[ \t]*[)\]]|(?<![\w'’.-])([B-HJ])(?![\w'’-])|(?<![\w'’.-])([AI])(?=[ \t]*[.!]*$)"
)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")


def chosen(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that a completion chooses, or None.

    Args:
        text: the completion.
        options: the text of each option by its letter; texts may be empty.

    >>> options = {"A": "Lyon", "B": "Paris", "C": "Nice"}
    >>> [chosen(text, options) for text in ("(B)", "**B**", "The answer is B.", "B) Paris", "It is Paris. Answer: paris")]
    ['B', 'B', 'B', 'B', 'B']
    >>> [chosen(text, options) for text in ("B or C", "Nobody knows.", "The answer is not B.", "The answer is a city.")]
    [None, None, None, None]
    """
    own = own_solution(text)
    if own is None:
        return None
    box = boxed_answer(own)
    if box is not None:
        return _only_label(_plain(box), options)
    plain = _plain(own)
    found = _of_phrases(plain, options)
    if found is not None:
        return found or None
    lines = [line for line in plain.split("\n") if line.strip()]
    return _of_lines(lines, options) or _by_text(plain, options) or _of_last_line(lines, options)


def _plain(text: str) -> str:
    r"""Return a text without emphasis and dollar signs, and with the content of ``\text{...}`` alone."""
    return _MARKS.sub("", _TEXT.sub(r"\1", text)).strip()


def _only_label(text: str, options: Mapping[str, str]) -> str | None:
    """Return the option that a short text is: its letter, its letter and text, or its text."""
    if (match := re.fullmatch(rf"{_KIND}[(\[]?[ \t]*([A-Ja-j])[ \t]*[)\].:]*", text)) is not None:
        return _known(match[1], options)
    return _by_text(text, options) or _of_lines([text], options)


def _known(letter: str, options: Mapping[str, str]) -> str | None:
    return letter.upper() if letter.upper() in options else None


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """Return the option with this text, if there is exactly one."""
    wanted = _compared(text)
    same = [letter for letter, option in options.items() if wanted and _compared(option) == wanted]
    return same[0] if len(same) == 1 else None


def _compared(text: str) -> str:
    return " ".join(_plain(text).casefold().split()).strip(" .!\"'“”")


def _of_phrases(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice of the last phrase that makes one, "" if that leaves it open; None if there is no such phrase."""
    marks = sorted([*_PHRASE.finditer(text), *_IS_RIGHT.finditer(text)], key=re.Match.end)
    for mark in reversed(marks):
        if mark.re is _IS_RIGHT:
            choice = _known(mark[1] or mark[2], options)
        else:
            choice = _after(text[mark.end() : mark.end() + CONTENT_LIMIT], options)
        if choice is not None:
            return choice
    return None


def _after(content: str, options: Mapping[str, str]) -> str | None:
    """Return the choice that follows a phrase, "" if several follow, None if none does."""
    match = _LABEL.match(content)
    letter = _known(next(filter(None, match.groups())), options) if match else None
    if match and letter:
        rest = content[match.end() :]
        if match["bare"] and not _may_be_a_letter(match["bare"], rest, options[letter]):
            letter = None
    if match is None or letter is None:
        return _by_text(_SENTENCE.split(content.lstrip(" \t:\n"), maxsplit=1)[0], options)
    hedge = _HEDGE.match(rest)
    other = _LABEL.match(rest, hedge.end()) if hedge else None
    if other is not None:
        second = _known(next(filter(None, other.groups())), options)
        is_bare_word = other["bare"] is not None and not _AFTER_LETTER.match(rest, other.end())
        if second not in (None, letter) and not is_bare_word:
            return ""
    return letter


def _may_be_a_letter(letter: str, rest: str, option: str) -> bool:
    """Return whether a letter without brackets means an option: nothing follows, or nothing that makes it a word."""
    follows = _compared(rest).startswith(_compared(option)) if option else False
    if letter.islower():
        return follows or not rest.strip(" .\n")
    return follows or _AFTER_LETTER.match(rest) is not None


def _of_lines(lines: list[str], options: Mapping[str, str]) -> str | None:
    """Return the option that lines begin with, if it is the same in all of them."""
    letters = {match.group(match.lastindex or 0).upper() for line in lines if (match := _LINE.match(line))}
    return _known(letters.pop(), options) if len(letters) == 1 else None


def _of_last_line(lines: list[str], options: Mapping[str, str]) -> str | None:
    if not lines or (len(lines) > 1 and _LINE.match(lines[-1])):  # the end of a list of options
        return None
    letters = {match.group(match.lastindex or 0).upper() for match in _NAMED.finditer(lines[-1])} & set(options)
    return letters.pop() if len(letters) == 1 and not re.search(r"\bnot\b|n['’]t\b", lines[-1]) else None


def options_in(prompt: str) -> dict[str, str]:
    """Return the options that a problem lists itself, one a line, or nothing.

    >>> options_in("The capital of France?\\n(A) Lyon\\n(B) Paris"), options_in("No options.")
    ({'A': 'Lyon', 'B': 'Paris'}, {})
    """
    found: dict[str, str] = {}
    for match in re.finditer(r"^[ \t]*[(\[]?([A-J])[)\].:][ \t]*(.*)$", prompt, re.MULTILINE):
        if match[1] == "A":
            found = {}  # an example before the problem may list others
        if match[1] == LETTERS[len(found)]:
            found[match[1]] = match[2].strip()
    return found if len(found) > 1 else {}
