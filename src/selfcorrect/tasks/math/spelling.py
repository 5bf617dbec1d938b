r"""How answers are written, where that alone decides: words, the letter of a choice, the same text but for spaces."""

from __future__ import annotations

import re

from selfcorrect.tasks.math.expressions import FUNCTIONS
from selfcorrect.tasks.math.notation import plain

_WORDS_OF_GRAMMAR = FUNCTIONS | {"lim", "max", "min", "det", "gcd", "lcm"}
_TO_COMPUTE = re.compile(
    r"\\(?:sum|prod|i*int|oint|lim|limsup|liminf|det|gcd|lcm|max|min|sup|inf|bigcup|bigcap)(?![a-z])"
)


def words(text: str) -> str:
    r"""Return the words of an answer such as ``\text{an ellipse}``, casefolded, without an article; "" for others.

    >>> words("\\text{An ellipse}"), words("ellipse"), words("\\text{June 20}"), words("x"), words("20")
    ('ellipse', 'ellipse', 'june 20', '', '')
    """
    text = re.sub(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text).casefold().strip()
    text = re.sub(r"^(?:an?|the)\s+", "", text)
    return " ".join(text.split()) if re.fullmatch(r"[^\W\d]{2,}(?:[\s-]+\w+)*", text) else ""


def label(text: str, *, named: bool = False) -> str:
    r"""Return the letter of a choice such as A, (A), ``\text{(A)}``; in an answer also of ``A)``, ``option A`` and ``(A) 12``.

    >>> label("A"), label("\\text{(A)}"), label("option (A)", named=True), label("A) 12", named=True), label("AB")
    ('A', 'A', 'A', 'A', '')
    """
    text = re.sub(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text).strip(" *")
    if named:
        text = re.sub(r"^(?:option|choice|answer)\s+", "", text, flags=re.IGNORECASE)
        text = re.sub(r"(?<=[A-J]\))\s*[:.]?\s+(?!.*(?<![A-Za-z])\(?[A-J]\)).{1,80}$", "", text)
    match = re.fullmatch(r"\(\s*([A-J])\s*\)|([A-J])\)?", text)
    return (match[1] or match[2]) if match else ""


def squeezed(text: str) -> str:
    """Return a text without its spaces, but for one between digits; a time of day ends in am or pm."""
    text = re.sub(
        r"(?<=\d)(?:\s|\\[ ,]|\\text\{)*([AaPp])\.?\s?[Mm]\.?\}?$", lambda m: m[1].lower() + "m", text.strip()
    )
    apart = re.sub(r"(?<=\d)\s+(?=\d)", "_", plain(text))  # 2 1/2 is not 21/2
    return "".join(apart.split()).replace("\\!", "").replace("\\,", "")


def has_words(text: str) -> bool:
    """Return whether a text has words, which math-verify could take for units, or a number in a base."""
    text = re.sub(r"\\(?:begin|end)\s*\{\w+\*?\}", "", plain(text))
    found = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return (
        any(word not in _WORDS_OF_GRAMMAR and len(word) > 2 for word in found)
        or re.search(r"\d\s*_|\\text|\\mathrm", text) is not None
    )


def goes_on(text: str) -> bool:
    """Return whether a text has dots, which stand for what only a reader can fill in."""
    return "\\ldots" in plain(text) or "\\vdots" in text or "\\ddots" in text


def is_left_to_compute(reference: str, answer: str) -> bool:
    """Return whether an answer is a sum, an integral or the like for a reference that is none: it repeats the problem."""
    return _TO_COMPUTE.search(answer) is not None and _TO_COMPUTE.search(reference) is None
