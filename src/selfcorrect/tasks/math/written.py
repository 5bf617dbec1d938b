"""Numbers that are written out, in contrast to numbers that are left to compute."""

from __future__ import annotations

from fractions import Fraction

from selfcorrect.tasks.math.expressions import Apply, Number, Tree

LONG = 14_000
"""Bits from which a number is written in hexadecimal digits: Python writes at most 4,300 decimal ones."""


def is_written_out(tree: Tree, *, mixed: bool) -> bool:
    """Return whether a tree is an integer or a decimal, a fraction that is no integer, or a number with a power of ten.

    ``mixed``: a sum is a mixed number, such as 3 1/2.

    >>> from selfcorrect.tasks.math.expressions import parse
    >>> [is_written_out(parse(text), mixed=True) for text in ("-3.5", "4/6", "3 1/2", "2*10^3", "6*11", "12/4", "2^3")]
    [True, True, True, True, False, False, False]
    """
    match tree:
        case Number():
            return True
        case Apply("mul", (Number(value=sign), Apply("div" | "add") as size)):
            return sign == -1 and is_written_out(size, mixed=mixed)
        case Apply("div", (Number(a), Number(b))):
            return a.denominator == b.denominator == 1 and b != 0 and (a / b).denominator > 1
        case Apply("add", (Number(whole), Apply("div") as part)):
            return mixed and whole.denominator == 1 and is_written_out(part, mixed=False)
        case Apply("mul", (Number(), power)):
            return _is_power_of_ten(power)
        case _:
            return _is_power_of_ten(tree)


def _is_power_of_ten(tree: Tree) -> bool:
    match tree:
        case Apply("pow", (Number(value=base), Number())):
            return base == 10
        case _:
            return False


def number_text(value: Fraction) -> str:
    """Return a number in one form: an integer, a decimal where a short one is exact, else a fraction.

    >>> [number_text(Fraction(*parts)) for parts in ((1000, 1), (-7, 2), (1, 3), (1, 10**9))]
    ['1000', '-3.5', '1/3', '1/1000000000']
    >>> number_text(Fraction(10**400)) == "1" + 400 * "0", number_text(Fraction(2**14000)) == hex(2**14000)
    (True, True)
    """
    if max(value.numerator.bit_length(), value.denominator.bit_length()) >= LONG:
        return f"{value.numerator:#x}" + (f"/{value.denominator:#x}" if value.denominator > 1 else "")
    if value.denominator == 1 or abs(value) >= 10**15:  # an integer, or nothing that 15 digits can show
        return str(value)
    decimal = f"{float(value):.15g}"
    return decimal if "e" not in decimal and Fraction(decimal) == value else str(value)
