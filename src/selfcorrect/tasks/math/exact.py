r"""Equality of numbers and formulas, exactly or to far more digits than any two of them share by chance.

Rational numbers are compared as fractions. For roots there is a bound: a difference that is not zero is at least so
large (C. Burnikel and others, "A separation bound for real algebraic expressions", Algorithmica 55, 2009), so that
enough digits decide. With pi, e, logarithms and other functions, two values are equal that agree to 500 bits and to four
times as many as their operands suggest. Formulas with variables are compared at several points in the same way.

Every step has a bounded cost, whatever the numbers: what exceeds `SIZE_LIMIT` bits is never computed. Such numbers
(9^9^9^9) equal only what is written like them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import reduce
from itertools import islice

import mpmath

from selfcorrect.tasks.math.expressions import CONSTANTS, Apply, Expression, Number, Symbol, negated

SIZE_LIMIT = 2**18
"""The bits of the largest rational number that is computed."""
PRECISION_LIMIT = 2**16
"""The bits of the longest difference that is computed."""
DEGREE_LIMIT = 64
"""The algebraic degree up to which the bound of roots is kept to; beyond it the digits are enough in practice."""
APPROXIMATION_DIGITS = 6
"""The significant digits that a decimal needs to stand for a number without an exact decimal, such as 1/3 or pi."""
POINTS = 8
"""The points at which formulas are compared; at half of them, every variable is positive."""

Values = Mapping[str, Fraction]
Sizes = tuple[float, float]


class Undefined(Exception):
    """An expression has no value, such as 1/0."""


class TooLarge(Exception):
    """A number is too large to compute, or a difference too small to decide."""


def equal_expressions(a: Expression, b: Expression) -> bool:
    """Return whether two expressions have the same value, for all values of their variables.

    >>> from selfcorrect.tasks.math.expressions import parse
    >>> equal_expressions(parse("sqrt(8)"), parse("2*sqrt(2)")), equal_expressions(parse("10^20"), parse("sqrt(10^40+1)"))
    (True, False)
    >>> equal_expressions(parse("(x+1)^2"), parse("x^2+2x+1")), equal_expressions(parse("x+2^-60"), parse("x+2^-61"))
    (True, False)
    """
    if a == b:
        return True
    if any(isinstance(x, Apply) and x.function == "endless" for x in (a, b)):
        return _continues(a, b) or _continues(b, a)
    if not variables(a) | variables(b):
        return _equal_constants(a, b)
    return agree_at_points(a, b, _same)


def agree_at_points(a: Expression, b: Expression, same: Callable[[Expression, Expression], bool]) -> bool:
    """Return whether ``same`` holds for two formulas at all of at least two points where the first is defined and real."""
    points = list(islice(_points(a, b), POINTS))
    tried = 0
    try:
        for at in points:
            try:
                reference, answer = _real(a, at), _real(b, at)
            except Undefined:
                continue
            if reference is None:
                continue
            if answer is None or not same(reference, answer):
                return False
            tried += 1
    except TooLarge:
        return _structure(a) == _structure(b)
    return tried >= 2


def folded_at_points(*expressions: Expression) -> Iterator[tuple[Expression, ...]]:
    """Yield the values of expressions at points where all of them are defined."""
    for at in islice(_points(*expressions), POINTS):
        try:
            yield tuple(fold(expression, at) for expression in expressions)
        except Undefined:
            continue


def variables(expression: Expression) -> frozenset[str]:
    """Return the names of an expression's variables."""
    if isinstance(expression, Symbol):
        return frozenset() if expression.name in CONSTANTS else frozenset({expression.name})
    if isinstance(expression, Number):
        return frozenset()
    return frozenset().union(*map(variables, expression.arguments))


def _equal_constants(a: Expression, b: Expression) -> bool:
    try:
        x, y = fold(a, {}), fold(b, {})
        return _same(x, y) or _approximates(a, y) or _approximates(b, x)
    except TooLarge:
        return _structure(a) == _structure(b)
    except Undefined:
        return False


def _same(x: Expression, y: Expression) -> bool:
    if isinstance(x, Number) and isinstance(y, Number):
        return x.value == y.value
    return is_zero(Apply("add", (x, negated(y))))


def _continues(endless: Expression, exact: Expression) -> bool:
    r"""Return whether 3.141592\ldots begins like a number without an exact decimal, by the rule of decimals."""
    if not isinstance(endless, Apply) or endless.function != "endless" or variables(exact):
        return False
    try:
        return _approximates(endless.arguments[0], fold(exact, {}))
    except (TooLarge, Undefined):
        return False


def _approximates(decimal: Expression, exact: Expression) -> bool:
    """Return whether a decimal is a number without an exact decimal, rounded or cut off to at least 6 digits."""
    if not isinstance(decimal, Number) or decimal.places is None:
        return False
    significant = len(str(abs(decimal.value.numerator * 10**decimal.places // decimal.value.denominator)))
    if significant < APPROXIMATION_DIGITS or (isinstance(exact, Number) and _terminates(exact.value)):
        return False
    with mpmath.workprec(4 * significant + 64):
        beyond = abs(_numeric(exact)) - abs(_numeric(decimal))
        last = mpmath.mpf(10) ** -decimal.places
        same_side = not mpmath.im(_numeric(exact)) and _numeric(exact) * _numeric(decimal) > 0
        return bool(same_side and -last / 2 <= beyond < last)


def _terminates(value: Fraction) -> bool:
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


# --- exact values -----------------------------------------------------------------------------------


def fold(expression: Expression, at: Values) -> Expression:
    """Return an expression with its variables' values put in and every rational part computed.

    Raises:
        Undefined: it has no value.
        TooLarge: a number exceeds `SIZE_LIMIT`.
    """
    if isinstance(expression, Number):
        return Number(expression.value)
    if isinstance(expression, Symbol):
        if expression.name == "oo":
            raise Undefined("infinity")
        return expression if expression.name in CONSTANTS else Number(at[expression.name])
    arguments = tuple(fold(argument, at) for argument in expression.arguments)
    rule = _RULES.get(expression.function)
    return rule(arguments) if rule else Apply(expression.function, arguments)


def _checked(value: Fraction) -> Number:
    if value.numerator.bit_length() + value.denominator.bit_length() > SIZE_LIMIT:
        raise TooLarge("a number of too many digits")
    return Number(value)


def _add(arguments: tuple[Expression, ...]) -> Expression:
    numbers = [a.value for a in arguments if isinstance(a, Number)]
    others = tuple(a for a in arguments if not isinstance(a, Number))
    total = reduce(lambda x, y: _checked(x + y).value, numbers, Fraction(0))
    return Apply("add", (Number(total), *others)) if others else Number(total)


def _mul(arguments: tuple[Expression, ...]) -> Expression:
    numbers = [a.value for a in arguments if isinstance(a, Number)]
    others = tuple(a for a in arguments if not isinstance(a, Number))
    product = reduce(lambda x, y: _checked(x * y).value, numbers, Fraction(1))
    return Apply("mul", (Number(product), *others)) if others and product else Number(product)


def _div(arguments: tuple[Expression, ...]) -> Expression:
    above, below = arguments
    if is_zero(below):
        raise Undefined("division by 0")
    if isinstance(below, Number):
        return _mul((above, Number(1 / below.value)))
    return Apply("div", (above, below))


def _pow(arguments: tuple[Expression, ...]) -> Expression:
    base, exponent = arguments
    if isinstance(exponent, Number):
        if exponent.value == 1:
            return base
        if exponent.value <= 0 and is_zero(base):
            raise Undefined("0 to a power that is not positive")
        if isinstance(base, Number):
            return _rational_power(base.value, exponent.value)
        if exponent.value.denominator > 1 and exponent.value.denominator <= DEGREE_LIMIT:
            root = _root((Number(Fraction(exponent.value.denominator)), base))
            return _pow((root, Number(Fraction(exponent.value.numerator))))
    elif isinstance(base, Number) and base.value in (0, 1):
        return base
    return Apply("pow", (base, exponent))


def _rational_power(base: Fraction, exponent: Fraction) -> Expression:
    above, index = exponent.numerator, exponent.denominator
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base and abs(above) * size > SIZE_LIMIT:
        raise TooLarge("a power of too many digits")
    if index == 1:
        return Number(base ** (above % 2 if abs(base) == 1 else above))
    if index > DEGREE_LIMIT:
        raise TooLarge("a root of too high an index")
    root = _root((Number(Fraction(index)), Number(base)))
    if isinstance(root, Number):
        return _rational_power(root.value, Fraction(above))
    if base > 0:
        return _root((Number(Fraction(index)), Number(base**above)))
    return Apply("pow", (root, Number(Fraction(above))))


def _root(arguments: tuple[Expression, ...]) -> Expression:
    """Return a root: real for an odd index of a negative number, the principal one otherwise."""
    index, radicand = arguments
    if not isinstance(index, Number) or index.value.denominator > 1 or index.value < 1:
        return _pow((radicand, _div((Number(Fraction(1)), index))))
    degree = int(index.value)
    if degree > DEGREE_LIMIT:
        raise TooLarge("a root of too high an index")
    if not isinstance(radicand, Number):
        if degree % 2 and _is_negative(radicand):
            return _mul((Number(Fraction(-1)), Apply("root", (index, _mul((Number(Fraction(-1)), radicand))))))
        return Apply("root", (index, radicand))
    value = radicand.value
    if value < 0 and degree % 2:
        return _mul((Number(Fraction(-1)), _root((index, Number(-value)))))
    if value >= 0:
        above, below = _whole_root(value.numerator, degree), _whole_root(value.denominator, degree)
        if above is not None and below is not None:
            return Number(Fraction(above, below))
    return Apply("root", (index, radicand))


def _whole_root(n: int, degree: int) -> int | None:
    """Return the root of a whole number where it is whole, or None."""
    if n < 2:
        return n
    if degree == 2:
        found = math.isqrt(n)
        return found if found * found == n else None
    with mpmath.workprec(n.bit_length() // degree + 64):
        found = int(mpmath.nint(mpmath.root(n, degree)))
    return found if found**degree == n else None


def _factorial(arguments: tuple[Expression, ...]) -> Expression:
    n = _whole(arguments[0])
    if n < 0:
        raise Undefined("the factorial of a negative number")
    if n * n.bit_length() > SIZE_LIMIT:
        raise TooLarge("a factorial of too many digits")
    return Number(Fraction(math.factorial(n)))


def _binomial(arguments: tuple[Expression, ...]) -> Expression:
    n, k = map(_whole, arguments)
    if n < 0:
        raise Undefined("a binomial coefficient of a negative number")
    if 0 <= k <= n and min(k, n - k) * n.bit_length() > SIZE_LIMIT:
        raise TooLarge("a binomial coefficient of too many digits")
    return Number(Fraction(math.comb(n, k) if k >= 0 else 0))


def _whole(expression: Expression) -> int:
    if not isinstance(expression, Number) or expression.value.denominator != 1:
        raise Undefined("a factorial of a number that is not whole")
    return int(expression.value)


def _rounded(rounding: Callable[[Fraction], int], high: str) -> Callable[[tuple[Expression, ...]], Expression]:
    def rule(arguments: tuple[Expression, ...]) -> Expression:
        if isinstance(arguments[0], Number):
            return Number(Fraction(rounding(arguments[0].value)))
        with mpmath.workprec(256):
            value = _numeric(arguments[0])
            if mpmath.im(value) or mpmath.mag(value) > 200:
                raise TooLarge("a number that is not rounded")
            near = Fraction(int(mpmath.nint(value)))
            found = Fraction(int(getattr(mpmath, high)(value)))
        return Number(near if _same(arguments[0], Number(near)) else found)

    return rule


def _abs(arguments: tuple[Expression, ...]) -> Expression:
    (inner,) = arguments
    if isinstance(inner, Number):
        return Number(abs(inner.value))
    with mpmath.workprec(64):
        value = _numeric(inner)
        if mpmath.im(value) == 0:
            return inner if value >= 0 else _mul((Number(Fraction(-1)), inner))
    return Apply("abs", arguments)


def _log(arguments: tuple[Expression, ...]) -> Expression:
    base, argument = arguments
    return _div((_ln((argument,)), _ln((base,))))


def _ln(arguments: tuple[Expression, ...]) -> Expression:
    (argument,) = arguments
    if is_zero(argument):
        raise Undefined("the logarithm of 0")
    return Number(Fraction(0)) if argument == Number(Fraction(1)) else Apply("ln", (argument,))


def _exp(arguments: tuple[Expression, ...]) -> Expression:
    return _pow((Symbol("e"), arguments[0]))


def _degree(arguments: tuple[Expression, ...]) -> Expression:
    return _mul((Number(Fraction(1, 180)), arguments[0], Symbol("pi")))


_RULES: dict[str, Callable[[tuple[Expression, ...]], Expression]] = {
    "add": _add,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "floor": _rounded(math.floor, "floor"),
    "ceil": _rounded(math.ceil, "ceil"),
    "abs": _abs,
    "ln": _ln,
    "log": _log,
    "exp": _exp,
    "degree": _degree,
    "percent": lambda arguments: _mul((Number(Fraction(1, 100)), arguments[0])),
    "based": lambda arguments: arguments[0],
}


# --- zero -------------------------------------------------------------------------------------------


def is_zero(x: Expression) -> bool:
    """Return whether a folded expression is zero.

    Raises:
        TooLarge: the digits that would decide are too many.
    """
    if isinstance(x, Number):
        return x.value == 0
    if isinstance(x, Symbol):
        return False
    radicals: dict[Expression, int] = {}
    above, below = _sizes(x, radicals)
    transcendental = -1 in radicals.values()
    degree = 1
    for index in radicals.values():
        degree = min(degree * max(index, 1), DEGREE_LIMIT)
    needed = max(4, degree) * (above + below) + 512 if transcendental else (degree - 1) * above + below + 8
    if needed > PRECISION_LIMIT / (4 if transcendental else 1):
        raise TooLarge("a difference that takes too many digits")
    with mpmath.workprec(int(2 * needed + above + 128)):
        return bool(mpmath.mag(_numeric(x)) < -needed)


def _sizes(x: Expression, radicals: dict[Expression, int]) -> Sizes:
    """Return the binary logarithms of Burnikel's u and l of an expression, and add its roots with their indices."""
    if isinstance(x, Number):
        return float(x.value.numerator.bit_length()), float(x.value.denominator.bit_length() - 1)
    if isinstance(x, Symbol):
        radicals[x] = 2 if x.name == "i" else -1
        return (0.0, 0.0) if x.name == "i" else (2.0, 0.0)
    if (combine := _SIZES.get(x.function)) is not None:
        return reduce(combine, [_sizes(argument, radicals) for argument in x.arguments])
    if x.function == "root" and isinstance(x.arguments[0], Number):
        radicals[x] = int(x.arguments[0].value)
        return _sizes_of_root(radicals[x], *_sizes(x.arguments[1], radicals))
    exponent = x.arguments[-1]
    if x.function == "pow" and isinstance(exponent, Number) and exponent.value.denominator == 1:
        above, below = _sizes(x.arguments[0], radicals)
        times = float(min(abs(exponent.value), Fraction(2**60)))
        return (above * times, below * times) if exponent.value > 0 else (below * times, above * times)
    return _sizes_of_function(x, radicals)


def _sizes_of_root(degree: int, above: float, below: float) -> Sizes:
    if above >= below:
        return (above + (degree - 1) * below) / degree, below
    return above, ((degree - 1) * above + below) / degree


def _sizes_of_function(x: Apply, radicals: dict[Expression, int]) -> Sizes:
    inside = sum(sum(_sizes(argument, radicals)) for argument in x.arguments)
    radicals[x] = -1
    with mpmath.workprec(128):
        value = _numeric(x)
        size = float(mpmath.mag(value)) if value else 0.0
    return inside + max(0.0, size), inside + max(0.0, -size)


_SIZES: dict[str, Callable[[Sizes, Sizes], Sizes]] = {
    "add": lambda a, b: (max(a[0] + b[1], b[0] + a[1]) + 1, a[1] + b[1]),
    "mul": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "div": lambda a, b: (a[0] + b[1], a[1] + b[0]),
}


def _is_negative(x: Expression) -> bool:
    with mpmath.workprec(128):
        value = _numeric(x)
        return mpmath.im(value) == 0 and bool(value < 0)


def is_negative(x: Expression) -> bool:
    """Return whether a folded expression is a negative real number."""
    return x.value < 0 if isinstance(x, Number) else not is_zero(x) and _is_negative(x)


def _numeric(x: Expression) -> mpmath.mpf:
    """Return the value of a folded expression at the working precision."""
    if isinstance(x, Number):
        return mpmath.mpf(x.value.numerator) / x.value.denominator
    if isinstance(x, Symbol):
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[x.name]
    values = [_numeric(argument) for argument in x.arguments]
    if x.function not in _NUMERIC:
        raise Undefined(f"the function {x.function}")
    try:
        return _NUMERIC[x.function](*values)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Undefined(str(error)) from error


def _power(base: mpmath.mpf, exponent: mpmath.mpf) -> mpmath.mpf:
    if mpmath.mag(exponent) + max(0, mpmath.mag(mpmath.mag(base))) > 40:
        raise TooLarge("a power of too many digits")
    return mpmath.power(base, exponent)


def _bounded(function: Callable[[mpmath.mpf], mpmath.mpf], limit: int) -> Callable[[mpmath.mpf], mpmath.mpf]:
    def applied(x: mpmath.mpf) -> mpmath.mpf:
        if x and mpmath.mag(x) > limit:
            raise TooLarge("a function of too large a number")
        return function(x)

    return applied


_NUMERIC: dict[str, Callable[..., mpmath.mpf]] = {
    "add": lambda *terms: reduce(lambda x, y: x + y, terms),
    "mul": lambda *factors: reduce(lambda x, y: x * y, factors),
    "div": lambda above, below: above / below,
    "pow": _power,
    "root": lambda index, x: mpmath.root(x, int(index)),
    "abs": abs,
    "ln": mpmath.log,
    **{name: _bounded(getattr(mpmath, name), 4096) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: _bounded(getattr(mpmath, name), 30) for name in ("sinh", "cosh", "tanh")},
    **{f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
}


# --- points and structure ---------------------------------------------------------------------------


def _points(*expressions: Expression) -> Iterator[Values]:
    """Yield values of all variables: always the same, positive first; whole where a variable counts or is an exponent."""
    names = sorted(frozenset().union(*map(variables, expressions)))
    whole = frozenset().union(*(_whole_variables(expression, False) for expression in expressions))
    for index in range(POINTS):
        draw = random.Random(index)
        point = {}
        for name in names:
            sign = 1 if index < POINTS // 2 else draw.choice((-1, 1))
            below = draw.choice((7, 11, 13, 17))
            above = draw.randint(2, 60) * below + draw.randint(1, below - 1)
            point[name] = Fraction(draw.randint(2, 12)) if name in whole else Fraction(sign * above, 4 * below)
        yield point


def _whole_variables(x: Expression, inside: bool) -> frozenset[str]:
    if not isinstance(x, Apply):
        return variables(x) if inside else frozenset()
    if x.function in ("pow", "root"):
        base, exponent = x.arguments if x.function == "pow" else x.arguments[::-1]
        return _whole_variables(base, inside) | _whole_variables(exponent, not _is_e(base))
    counts = x.function in ("factorial", "binomial")
    return frozenset().union(*(_whole_variables(argument, inside or counts) for argument in x.arguments))


def _is_e(x: Expression) -> bool:
    return x == Symbol("e")


def _real(expression: Expression, at: Values) -> Expression | None:
    """Return the value at a point, or None where it is complex without an ``i`` in the formula."""
    value = fold(expression, at)
    if isinstance(value, Number) or _has_i(expression):
        return value
    with mpmath.workprec(128):
        number = _numeric(value)
        return value if abs(mpmath.im(number)) <= abs(number) * mpmath.mpf(2) ** -64 else None


def _has_i(x: Expression) -> bool:
    return any(map(_has_i, x.arguments)) if isinstance(x, Apply) else x == Symbol("i")


def _structure(x: Expression) -> object:
    """Return a key that is equal for expressions of the same form, whose parts are equal numbers in any order."""
    if not variables(x):
        try:
            if isinstance(value := fold(x, {}), Number):
                return value.value
        except (TooLarge, Undefined):
            pass
    if not isinstance(x, Apply):
        return x
    parts = [_structure(argument) for argument in x.arguments]
    return x.function, tuple(sorted(parts, key=repr) if x.function in ("add", "mul") else parts)
