r"""What stands around a value: units, currencies, ordinals, "approximately", a justification in brackets.

English has endlessly many nouns, so words after a number are counted things ("12 red apples") unless one of them belongs
to a closed class that changes the number: number words, fractions, multipliers, powers, signs, operations, comparisons,
bases. Words of one to three letters are dropped only if they are known units or nouns, because abbreviations of
multipliers (bn, mn, k, cr) look the same. `Quantity.value` keeps all words that are not dropped, and a value with words
cannot be read, so a doubtful word makes an answer incorrect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfcorrect.tasks.math.notation import signs
from selfcorrect.tasks.math.vocabulary import (
    ALONE,
    CHANGING,
    CHANGING_FORM,
    IN_COMPOUNDS,
    NOT_ORDINAL,
    ORDINAL_FORM,
    SHORT,
    known_units,
    number_words,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value without what may be dropped, and its unit by one name if it is a known one."""

    value: str
    unit: str = ""


_UNITS = known_units()
_CURRENCY = r"(?:(?:US|CA|AU|HK|NZ|[CASR])?\s*\\?[$€£¥₹₩₽₺¢]|\\(?:euro|pounds|yen|texteuro)(?![A-Za-z]))"
_CODES = r"(?:USD|EUR|GBP|INR|JPY|CNY|RMB|CAD|AUD|CHF|Rs\.?)"
_BEFORE = re.compile(rf"^([-+]?)\s*(?:{_CURRENCY}|{_CODES}(?=[\s\d-]))\s*(?=[-+]?[\d.\\(])")
_SIGN_WORD = re.compile(r"^(?:negative|minus)\s+(?=[\d.\\])", re.IGNORECASE)
_AFTER = re.compile(rf"(?<=[\d}})])\s*{_CURRENCY}$")
_ABOUT = re.compile(
    r"^(?:(?:is|equals?|approximately|approx\.?|about|roughly|around|exactly|circa|precisely|only|just|total(?:\s+of)?)(?![A-Za-z])"
    r"|\\(?:approx|sim|simeq|cong|therefore|implies|Rightarrow)(?![A-Za-z])|~)\s*",
    re.IGNORECASE,
)
_WHY = re.compile(
    r"\s*(?:[,;–—-]|:)?\s*\(?\s*(?<![A-Za-z\\])(?:since|because|given that|as (?=\d|\\|\$|[a-z] ?=)|i\.e\.|"
    r"that is,|by the|rounded|approximately|approx|to the nearest|"
    r"correct to|using|from (?=the|above|part)|where (?=\w+ is))(?![A-Za-z]).*$",
    re.IGNORECASE | re.DOTALL,
)
_ASIDE = re.compile(r"(?<=[\d}%])\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)$")
_NTH = re.compile(
    r"^([-+]?[\d,]*\d)\s*(?:\^\s*)?\{?\s*(?:\\(?:text|mathrm|textrm|rm|mbox|textsuperscript)\s*\{?)?\s*(?:st|nd|rd|th)\s*\}*"
    r"(?:\s+(?:place|term|day|position|person|power)s?)?$"
)
_DEGREES = re.compile(r"(?<=[\d})])\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*([CFK])\s*\}?$")
_TEXT = re.compile(
    r"\\(?:text|mathrm|textrm|mbox|textit|mathit|textbf|operatorname|rm|textsf)\s*\{\s*~?((?:[^{}]|\{[^{}]*\})*)\}"
)
_WORD = r"[A-Za-zµΩ][A-Za-zµΩ'’]*\.?(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_TAIL = re.compile(
    rf"(?P<value>.*?(?:[\d)}}\]!%]|\\pi|\\infty))(?P<gap>(?:[\s~-]|\\[,;:! ])*)"
    rf"(?P<unit>{_WORD}(?:\s*(?:/\s*\(?|\*|\\cdot|-|\s|\\[,;: ])\s*{_WORD})*\)?)\.?",
    re.DOTALL,
)
_BASE = re.compile(r"^([0-9A-Za-z]+)\s*\(?\s*(?:in\s+)?base\s+(\d+|[a-z]+)\s*\)?$")
_BASES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORDS = number_words()


def quantity(text: str, *, of_reference: bool = False) -> Quantity:
    r"""Return the value of an answer without the unit and the remarks that do not change it.

    In a reference, one or two letters right after a number are variables (2mg); in an answer they are a unit (5kg).

    >>> quantity("9.8\\text{ m/s}^2"), quantity("US$5").value, quantity("5 thousands").value
    (Quantity(value='9.8', unit='m/s^2'), '5', '5 thousands')
    """
    text = re.sub(
        r"\s*(?<![A-Za-z])(?:percent|per\s+cent|pct\.?|p\.c\.)(?![A-Za-z])", r"\\%", signs(text).strip(), flags=re.I
    )
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$|\\[()]", "", text)
    text = re.sub(r"_\s*\{?\s*\\text\s*\{\s*(?:base\s+)?(\w+)\s*\}\s*\}?", _subscript, text)
    for pattern in (_ABOUT, _ABOUT):
        text = pattern.sub("", text, count=1)
    text = str(_NUMBER_WORDS.get(text.casefold(), text))
    text = _SIGN_WORD.sub("-", _without_reason(text))
    if match := _NTH.match(text):
        return Quantity(match[1])
    text = _AFTER.sub("", _BEFORE.sub(r"\1", text))
    text = _ABOUT.sub("", text, count=1)
    if match := _DEGREES.search(text):
        return Quantity(text[: match.start()], "degree" + match[1])
    text = re.sub(
        r"\\[dt]?frac\s*\{(\\(?:text|mathrm)\{[^{}]*\})\}\s*\{(\\(?:text|mathrm)\{[^{}]*\})\}", r" \1/\2", text
    )
    words = _TEXT.sub(lambda match: f" {match[1]} ", text).strip()
    if match := _BASE.match(words):
        base = str(_BASES.index(match[2])) if match[2] in _BASES else match[2]
        return Quantity(f"{match[1]}_{{{base}}}" if base.isdigit() else text)
    match = _TAIL.fullmatch(words)
    if match is None:
        return Quantity(text)
    attached = not match["gap"] and "\\" not in text[len(match["value"]) :]
    if attached and of_reference and len(re.split(r"[^A-Za-z]", match["unit"])[0]) < 3:
        return Quantity(text)
    unit = _unit(match["unit"], attached=attached)
    return Quantity(text) if unit is None else Quantity(match["value"], unit)


def _subscript(match: re.Match[str]) -> str:
    base = match[1].casefold()
    return f"_{{{_BASES.index(base) if base in _BASES else base}}}"


def _without_reason(text: str) -> str:
    """Return a text without a justification at its end, and without words in brackets that are only a unit or a reason."""
    shorter = _WHY.sub("", text)
    if shorter.strip() and (re.search(r"\d|\\pi|[a-z]", shorter)):
        text = shorter.strip()
    if (match := _ASIDE.search(text)) and re.search(r"[A-Za-z]{2}", match[1]) and "\\" not in match[1]:
        inside = match[1].strip()
        if re.fullmatch(rf"{_WORD}(?:[\s/]+{_WORD})*", inside) and _unit(inside, attached=False) is not None:
            text = text[: match.start()].rstrip()
    return text


def _unit(text: str, *, attached: bool) -> str | None:
    """Return the name of a unit, "" for a counted thing, or None if a word could change the number before it."""
    text = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1", text.strip().rstrip("."))
    text = re.sub(r"\\(?:[,;: ]|cdot(?![a-z]))", " ", text)
    text = re.sub(r"/\s*\(([^()/]*)\)", lambda match: "/" + "/".join(re.split(r"[\s*]+", match[1].strip())), text)
    if "(" in text or ")" in text:
        return None
    words = [word for word in re.split(r"(?:[\s/*]|(?<!\^)-)+|\\cdot", text) if word]
    bare_words = [re.sub(r"\^-?\d$", "", word).strip(".'’") for word in words]
    if any(
        len(word) == 1
        and word not in ALONE
        and not _is_in_compound(i, bare_words)
        and (word != "a" or i + 1 == len(words))
        for i, word in enumerate(bare_words)
    ):
        return None
    if attached and len(bare_words[0]) == 1:
        return None
    if not all(_may_follow(word, bare_words, index) for index, word in enumerate(bare_words)):
        return None
    return _name(text, bare_words)


def _is_in_compound(index: int, words: list[str]) -> bool:
    """Return whether a letter that would change a number (5 K) is a unit, because it follows one (J/K)."""
    return words[index] in IN_COMPOUNDS and index > 0 and words[index - 1] in (*_UNITS, *IN_COMPOUNDS)


def _may_follow(word: str, words: list[str], index: int) -> bool:
    lower = word.casefold()
    if _is_in_compound(index, words) or word in _UNITS or (lower in _UNITS and len(lower) > 2):
        return True
    if lower in ("square", "cubic", "sq", "cu"):
        return index + 1 < len(words)
    if lower == "more":
        return index + 1 == len(words) or words[index + 1].casefold() != "than"
    if lower in CHANGING or CHANGING_FORM.fullmatch(lower):
        return False
    if ORDINAL_FORM.fullmatch(lower) and lower not in NOT_ORDINAL:
        return False
    return len(lower) > 3 or lower in SHORT or lower.removesuffix("s") in SHORT


def _name(text: str, words: list[str]) -> str:
    """Return one name for the spellings of a known unit, "" for other words."""
    text = re.sub(r"\s+per\s+|\s*/\s*", "/", text.replace("\\cdot", " "))
    text = re.sub(r"\b(square|sq\.?|cubic|cu\.?)\s+([A-Za-z]+)", lambda m: f"{m[2]}^{2 if m[1][0] == 's' else 3}", text)
    powers: dict[str, int] = {}
    sign = 1
    for part in filter(None, re.split(r"([/*\s])", text)):
        word, _, power = part.partition("^")
        unit = _UNITS.get(word) or _UNITS.get(word.casefold().strip("."))
        if word in IN_COMPOUNDS and len(words) > 1:
            unit = word
        if part in ("/", "*") or part.isspace():
            sign = -1 if part == "/" else sign
        elif unit is None or unit in ("unit", "square"):
            return ""
        else:
            powers[unit] = powers.get(unit, 0) + sign * int(power or 1)
            sign = 1
    return _product_of(powers)


def _product_of(powers: dict[str, int]) -> str:
    """Return a product of units in one order: those above, and those below after a slash each."""
    spelt = {unit: unit if abs(power) == 1 else f"{unit}^{abs(power)}" for unit, power in powers.items()}
    above = sorted(spelt[unit] for unit, power in powers.items() if power > 0)
    return " ".join(above) + "".join(f"/{spelt[unit]}" for unit in sorted(powers) if powers[unit] < 0)
