r"""One notation for what is written in several: Unicode signs, spaces, delimiters, environments of one formula."""

from __future__ import annotations

import re

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‒": "-", "‐": "-", "‑": "-", "﹣": "-", "－": "-", "＋": "+",
    "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "∕": "/", "⁄": "/",
    "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "≅": "\\approx ", "≃": "\\approx ",
    "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ",
    "π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "λ": "\\lambda ",
    "φ": "\\phi ", "ω": "\\omega ", "σ": "\\sigma ", "τ": "\\tau ", "ρ": "\\rho ",
    "√": "\\sqrt ", "∛": "\\sqrt[3]", "°": "^\\circ ", "º": "^\\circ ", "％": "%",
    "’": "'", "′": "'", "⟨": "\\langle ", "⟩": "\\rangle ",
    "½": "\\frac{1}{2}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
    "⅕": "\\frac{1}{5}", "⅖": "\\frac{2}{5}", "⅗": "\\frac{3}{5}", "⅘": "\\frac{4}{5}", "⅙": "\\frac{1}{6}",
    "⅚": "\\frac{5}{6}", "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}",
    "，": ",", "；": ";", "：": ":", "（": "(", "）": ")", "＝": "=", "＜": "<", "＞": ">",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_RAISED_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOWERED_DIGITS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SPACES = re.compile(
    r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]|\\(?:quad|qquad|thinspace|enspace|space)(?![A-Za-z])|(?<!\\)~"
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff]")
_LOOKS = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr|middle|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\.?"
)
_COLOURS = re.compile(
    r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|therefore)(?![A-Za-z])"
)
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\s*\{\s*(?:align|aligned|equation|gather|gathered|displaymath|split|multline|math|center)\*?\s*\}"
)
_ONE_WAY = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.{3,}|…|\\(?:dots[bcimo]?|cdots)(?![A-Za-z])", r"\\ldots "),
        (r"\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r".\1\\overline{\2\3\4}"),
        (r"(?<=\d\.)\((\d+)\)", r"\\overline{\1}"),  # 0.(3); 0.1(6) may be a product
        (r"(?<![\w.])(\d{1,3}(?:_\d{3})+)(?!\w)", lambda match: match[1].replace("_", "")),  # no base has three digits
        (r"\(([0-9A-F]+)\)(?=_\s*\{?\d)", r"\1"),  # (101)_2
        (r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))", "*"),
        (r"<=|=<", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<=\s)!=", r"\\ne "),  # 5!=120 is a factorial
        (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
        (r"(?<![A-Za-z\\])log_?(2|10)\s*(?=\()", r"\\log_{\1}"),
        (r"(?<![A-Za-z\\])Matrix\s*(?=\()", ""),
    )
)
"""Spellings of plain text and of programs, and the LaTeX that they mean."""


def plain(text: str) -> str:
    r"""Return a text in one notation: ASCII and LaTeX commands, without delimiters of formulas and without looks.

    >>> plain("–3×π"), plain("$\\left(1, 2\\right)$"), plain("2**3"), plain("x² ≤ 4")
    ('-3*\\pi', '(1, 2)', '2**3', 'x^{2} \\le  4')
    """
    text = signs(text)
    text = _LOOKS.sub("", text)
    text = re.sub(r"\\[()]|(?<!\\)\\\[|(?<!\\)\\\]|(?<!\\)\$", " ", text)
    if _ENVIRONMENT.search(text):
        text = _one_line(_ENVIRONMENT.sub(" ", text))
    text = _COLOURS.sub("", text)
    for pattern, replacement in _ONE_WAY:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\mod\b|\\pmod\b", r"\\bmod", text)
    return text.strip()


def signs(text: str) -> str:
    r"""Return a text with ASCII or LaTeX in place of Unicode's signs, and plain spaces.

    >>> signs("½"), signs("1\u202f000"), signs("5₂")
    ('\\frac{1}{2}', '1 000', '5_{2}')
    """
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    text = re.sub("\u03bc(?=[A-Za-z])", "\u00b5", text)  # the Greek letter before a unit is the micro sign
    text = _RAISED.sub(lambda match: "^{" + match.group().translate(_RAISED_DIGITS) + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + match.group().translate(_LOWERED_DIGITS) + "}", text)
    return _SIGN.sub(lambda match: _SIGNS[match.group()], text)


def _one_line(text: str) -> str:
    r"""Return the lines of an aligned formula as one: lines that begin with = go on, others are further values."""
    lines = [line.replace("&", " ").strip() for line in re.split(r"\\\\(?:\[[^\]]*\])?", text)]
    joined = ""
    for line in filter(None, lines):
        joined += line if not joined else f" {line}" if line.startswith("=") else f", {line}"
    return joined
