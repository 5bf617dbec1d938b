r"""Extraction of the answer from a mathematical text, and its comparison with the reference.

Two rules extract the answer. Both outcomes are kept (`Verdict.by_rule`), because a model that solves the problem but
ignores the form differs from one that cannot solve it:

* *strict*: the last ``Final Answer: The final answer is $answer$. I hope it is correct.``, the form that the prompt
  asks for.
* *flexible*: the strict answer, or else the last of ``\boxed{...}``, ``the answer is ...`` and ``#### ...``, or else a
  short text that is nothing but an expression, or else the last formula or number of the text.

Exactly one candidate is judged, so naming several answers earns nothing. `math-verify` decides equality with sympy;
what it does not know (units in words, spaces in numbers) is handled before it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

LENGTH_LIMIT = 400
"""Candidates longer than this, and than four times the reference, are incorrect unread: loops, not answers."""

# Possessive and bounded, so that matching takes linear time at most.
FINAL = re.compile(
    r"Final Answer:\s*+The final answer is((?:(?!Final Answer:).){0,2000}?)I hope it is correct", re.DOTALL
)
PHRASE = re.compile(r"answer(?:\s++is|\s*+[:=])\s*+:?\s*+(?=([^\n]{1,2000}))", re.IGNORECASE)
HASHES = re.compile(r"####\s*+([^\n]{1,2000})")
BOXED = re.compile(r"\\f?boxed(?:\s*+(\{)|\s++([^\s$.{]+))")
FORMULA = re.compile(r"\$\$(.{1,500}?)\$\$|\$([^$\n]{1,500}?)\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?\s?\\?%?|(?<![\w.])[-−]?\.\d+")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z])|\s(?i:I hope it is correct)")

PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:(?:,|\s|\\,|\{,\}|,\\!)\d{3})+|\d+)?(?:\.\d*)?")
QUANTITY = re.compile(r"(?P<number>[-+]?[\d.,]*\d)\s*(?P<words>(?:[A-Za-z]{2,}\.?\s*)+)")
_NUMBER_WORDS = (
    "hundred thousand million billion trillion dozen half halves third thirds quarter quarters percent percentage "
    "pi sqrt log ln exp sin cos tan mod or and plus minus times over"
)
NOT_UNITS = frozenset(re.findall(r"\w+", _NUMBER_WORDS))
"""Words after a number that change its value, so they cannot be dropped like a unit."""


def strict_answer(text: str) -> str | None:
    """Return the bare answer in the form that the prompt asks for, or None.

    >>> strict_answer("So. Final Answer: The final answer is $\\\\frac{1}{2}$. I hope it is correct.")
    '\\\\frac{1}{2}'
    >>> strict_answer("The answer is 7.") is None
    True
    """
    found = FINAL.findall(text)
    return bare(found[-1]) or None if found else None


def flexible_answer(text: str) -> str | None:
    """Return the bare answer by the flexible rule of this module, or None.

    >>> flexible_answer("It is 3, so the answer is 12 apples."), flexible_answer("so \\\\boxed{x^2}."), flexible_answer("?")
    ('12 apples', 'x^2', None)
    """
    if strict := strict_answer(text):
        return strict
    marked = [*_boxed(text), *_after(PHRASE, text), *_after(HASHES, text)]
    if marked and (answer := bare(max(marked)[1])):
        return answer
    if _is_expression(text):
        return bare(text) or None
    free = [(match.end(), next(filter(None, match.groups()))) for match in FORMULA.finditer(text)]
    free += [(match.end(), match.group()) for match in NUMBER.finditer(text)]
    return bare(max(free)[1]) or None if free else None


def _is_expression(text: str) -> bool:
    """Return whether a text is one short line without words."""
    short = len(text) <= 100 and "\n" not in text.strip() and _balanced(text)
    return short and len(WORD.findall(text)) < 2 and re.search(r"\w", text) is not None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed ``\boxed{...}`` in a worked solution.

    >>> last_boxed(r"so \boxed{\frac{1}{2}}. Not \boxed{")
    '\\frac{1}{2}'
    """
    found = list(_boxed(text))
    return found[-1][1] if found else None


def _boxed(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield start and content of every closed ``\boxed{...}``; the innermost of nested boxes comes last."""
    for match in BOXED.finditer(text):
        if match.group(2):  # \boxed 5
            yield match.start(), match.group(2)
            continue
        depth = 0
        for end in range(match.end() - 1, min(len(text), match.end() + 2 * LENGTH_LIMIT)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                yield match.start(), text[match.end() : end]
                break


def _after(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """Yield start and content of every match, cut at the end of its sentence."""
    for match in pattern.finditer(text):
        yield match.start(), SENTENCE_END.split(match.group(1))[0]


def bare(answer: str) -> str:
    r"""Return the answer without its wrapping: dollar signs, boxes, emphasis, a full stop, currency signs.

    >>> bare("**$\\boxed{ 1{,}000 }$.**"), bare(" $5. "), bare("\\$18"), bare("\\(x\\)")
    ('1{,}000', '5', '18', 'x')
    """
    before = None
    answer = answer.replace("−", "-").replace("\u00a0", " ")
    while answer != before:
        before = answer
        answer = answer.strip().strip("*`").rstrip(".,;:").strip()
        for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}")):
            inner = answer[len(left) : len(answer) - len(right)]
            if answer == left + inner + right and left not in inner and (left != "\\boxed{" or _balanced(inner)):
                answer = inner
        answer = re.sub(r"^(?:\\?[$€£¥]\s*|=\s*|\\displaystyle\b|\\[,;! ])|(?:\\[,;! ])$", "", answer)
        if answer.count("$") == 1:
            answer = answer.rstrip("$")
    return answer


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


# --- equality ---------------------------------------------------------------------------------------


def equal(reference: str, answer: str) -> bool:
    """Return whether a bare answer has the value of the reference.

    Call it in a process that may be killed, because sympy can take forever.

    >>> equal("1000", "1,000"), equal("18", "18 dollars"), equal("2", "2 dozen"), equal("0.5", "1/2")
    (True, True, False, True)
    """
    reference, answer = bare(reference), bare(answer)
    if not answer or len(answer) > max(LENGTH_LIMIT, 4 * len(reference)):
        return False
    if _squeezed(reference) == _squeezed(answer) or _words(reference) == _words(answer) != "":
        return True
    quantity = _without_unit(answer)
    gold, found = values(reference), values(quantity)
    if gold and found:
        return bool(gold & found)
    return _same_by_math_verify(reference, quantity if gold else answer)


def values(text: str) -> set[Fraction]:
    r"""Return the possible values of a number in digits; with a percent sign, also the number before the sign.

    >>> sorted(values("50\\%")), values("12.5"), values("x")
    ([Fraction(1, 2), Fraction(50, 1)], {Fraction(25, 2)}, set())
    """
    before, sign, after = re.sub(r"\\?%|\bpercent\b", "%", text).partition("%")
    number = plain_number(before)
    if number is None or after.strip():
        return set()
    return {number, number / 100} if sign else {number}


def plain_number(text: str) -> Fraction | None:
    r"""Return the exact value of a number in digits, with or without thousands separators; None for anything else.

    >>> plain_number("12,345.50"), plain_number("1 000"), plain_number("1,00"), plain_number("1/2")
    (Fraction(24691, 2), Fraction(1000, 1), None, None)
    """
    text = text.strip()
    if not PLAIN.fullmatch(text) or not any(c.isdigit() for c in text):
        return None
    return Fraction(re.sub(r"[^\d.+-]", "", text))


def _without_unit(answer: str) -> str:
    """Return a number without the words after it, unless one of them is part of the number ("2 million")."""
    match = QUANTITY.fullmatch(answer)
    if match is None or NOT_UNITS & set(re.findall("[a-z]+", match["words"].casefold())):
        return answer
    return match["number"]


def _words(text: str) -> str:
    r"""Return the words of an answer such as ``\text{an ellipse}``, casefolded, without an article; "" for others.

    >>> _words("\\text{An ellipse}"), _words("ellipse"), _words("\\text{June 20}"), _words("x"), _words("20")
    ('ellipse', 'ellipse', 'june 20', '', '')
    """
    text = re.sub(r"\\(?:text|textbf|textit|textrm|mathrm)\s*\{([^{}]*)\}", r"\1", text).casefold().strip()
    text = re.sub(r"^(?:an?|the)\s+", "", text)
    return " ".join(text.split()) if re.fullmatch(r"[^\W\d]{2,}(?:[\s-]+\w+)*", text) else ""


def _squeezed(text: str) -> str:
    return "".join(text.split()).replace("\\left", "").replace("\\right", "").replace("\\!", "")


def _same_by_math_verify(reference: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify

    # Without its own time limits, which set an alarm: this process has one already (`tasks.verifier_pool`).
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    gold, found = (parse(f"${text}$", how, parsing_timeout=None) for text in (reference, answer))
    return bool(gold and found and verify(gold, found, timeout_seconds=None))
