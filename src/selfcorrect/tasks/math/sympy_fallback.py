"""Comparison by math-verify of what the grammar does not know, without its chopped comparison of numbers.

math-verify compares two numbers by evaluating their difference and cutting off what is small. Here, values without
variables are compared to many digits relative to their size, formulas by simplification, and only relations, sets and
matrices by math-verify. sympy can take forever: call it in a process that may be killed.
"""

from __future__ import annotations

from typing import Any

DIGITS = 60


def same_by_math_verify(reference: str, answer: str) -> bool:
    """Return whether math-verify reads two formulas as the same value; what it fails on is different."""
    try:
        return _compared(reference, answer)
    except Exception:  # the boundary to sympy, which raises what it likes on odd formulas
        return False


def _compared(reference: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Expr

    # Without its own time limits, which set an alarm: this process has one already (`tasks.verifier_pool`).
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    gold, found = (parse(f"${text}$", how, parsing_timeout=None) for text in (reference, answer))
    if not gold or not found:
        return False
    if isinstance(gold[0], Expr) and isinstance(found[0], Expr):
        return _same_expressions(gold[0], found[0])
    return bool(verify(gold, found, timeout_seconds=None))


def _same_expressions(gold: Any, found: Any) -> bool:
    from sympy import simplify

    gold, found = gold.doit(), found.doit()
    difference = gold - found
    if difference == 0:
        return True
    if gold.free_symbols or found.free_symbols:
        return bool(simplify(difference) == 0)
    size = max(abs(gold.evalf(DIGITS)), abs(found.evalf(DIGITS)))
    return bool(abs(difference.evalf(DIGITS)) <= size * 10 ** (5 - DIGITS))
