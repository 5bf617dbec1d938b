r"""Whether an answer has the value of a reference.

Both are taken apart: what stands around the value (`quantities`), its structure (here) and its numbers (`exact`). What
the grammar of `expressions` does not know goes to math-verify, unless it has words, or leaves to compute (a sum, an
integral) what the reference does not.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from selfcorrect.tasks.math import exact
from selfcorrect.tasks.math.expressions import (
    Apply,
    Chain,
    Collection,
    Expression,
    Number,
    Symbol,
    Tree,
    Unknown,
    Unreadable,
    negated,
    parse,
)
from selfcorrect.tasks.math.quantities import quantity
from selfcorrect.tasks.math.relations import (
    INFINITY,
    MINUS_INFINITY,
    decided,
    interval_of,
    is_interval,
    is_intervals,
    same_relations,
    term_of,
    union,
)
from selfcorrect.tasks.math.spelling import goes_on, has_words, is_left_to_compute, label, squeezed, words
from selfcorrect.tasks.math.wrapping import bare
from selfcorrect.tasks.math.written import is_written_out

LENGTH_LIMIT = 400
"""Candidates longer than this, and than four times the reference, are incorrect unread: loops, not answers."""


def equal(reference: str, answer: str) -> bool:
    """Return whether an answer has the value of the reference. The cost is bounded, except for what goes to math-verify.

    >>> equal("1000", "1,000"), equal("18", "18 dollars"), equal("2", "2 dozen"), equal("0.5", "1/2")
    (True, True, False, True)
    """
    reference, answer = bare(reference), bare(answer)
    if not reference or not answer or len(answer) > max(LENGTH_LIMIT, 4 * len(reference)):
        return False
    if squeezed(reference) == squeezed(answer) or words(reference) == words(answer) != "":
        return True
    if label(reference) and label(reference) == label(answer, named=True):
        return True
    gold, found = quantity(reference, of_reference=True), quantity(answer)
    return not (gold.unit and found.unit and gold.unit != found.unit) and _same_formulas(gold.value, found.value)


@lru_cache(4096)  # one reference is compared with many answers
def rational(text: str, *, of_reference: bool = False) -> Fraction | None:
    r"""Return the rational number that an answer states, without its unit, per cent or degree sign; None if there is none.

    An answer states a number that it writes out. What is left to compute (`6*11`, `12/4`) states none: it would be correct where
    it only repeats the problem. A reference may be left to compute.

    >>> [str(rational(text)) for text in ("1,000", "$x = -3.50$", "\\frac{7}{2} cm", "12 red apples", "2 dozen", "pi")]
    ['1000', '-7/2', '7/2', '12', 'None', 'None']
    """
    if len(text) > LENGTH_LIMIT:
        return None
    try:
        formula = quantity(bare(text), of_reference=of_reference).value
        tree = _resolved(_sets(parse(formula)), Number(Fraction(0)))
        if not isinstance(tree, Number | Symbol | Apply) or exact.variables(tree):
            return None
        tree = _without_sign(_without_sign(tree, "percent"), "degree")
        if not of_reference and not is_written_out(tree, mixed="+" not in formula.lstrip(" +$")):
            return None
        value = exact.fold(tree, {})
    except (Unreadable, RecursionError, exact.Undefined, exact.TooLarge):
        return None
    return value.value if isinstance(value, Number) else None


def compared_part(reference: str, answer: str) -> tuple[str, str]:
    r"""Return the part of an answer that `equal` compares with the reference, and why there is none, if that is so.

    A chain of equations before a value names it (``x = 5``) or computes it (``2 + 8 = 10``), and is not compared. A chain whose
    sides differ states no value; it is kept as it stands.

    >>> compared_part("10", "2 + 8 = 10"), compared_part("y = 2x", "y = 2x"), compared_part("10", "2 + 10 = 10")
    (('10', ''), ('y = 2x', ''), ('2 + 10 = 10', 'an equation whose sides differ states no value'))
    """
    if "=" not in answer or len(answer) > max(LENGTH_LIMIT, 4 * len(reference)):
        return answer, ""
    try:
        formula = quantity(bare(answer)).value
        chain, gold = _sets(parse(formula)), _sets(parse(quantity(bare(reference), of_reference=True).value))
    except (Unreadable, RecursionError):
        return answer, ""
    if not isinstance(chain, Chain) or set(chain.relations) != {"="} or _is_equation(gold):
        return answer, ""
    if _names(chain.terms):
        return bare(formula.rpartition("=")[2]) or answer, ""
    numbers = all(isinstance(term, Apply | Number) and not exact.variables(term) for term in chain.terms)
    return answer, "an equation whose sides differ states no value" if numbers else ""


def _same_formulas(reference: str, answer: str) -> bool:
    try:
        return same(parse(reference), parse(answer))
    except Unknown:
        if (
            any(map(goes_on, (reference, answer)))
            or has_words(reference)
            or has_words(answer)
            or is_left_to_compute(reference, answer)
        ):
            return False
    except (Unreadable, RecursionError):
        return False
    from selfcorrect.tasks.math.sympy_fallback import same_by_math_verify

    return same_by_math_verify(reference, answer)


def same(reference: Tree, answer: Tree) -> bool:
    """Return whether two trees have the same value."""
    reference, answer = _sets(reference), _with_i(_sets(answer), reference)
    return _same(_resolved(reference, answer), _resolved(answer, reference))


def _sets(tree: Tree) -> Tree:
    """Return the set of a membership, and the real numbers as an interval."""
    if isinstance(tree, Chain) and tree.relations == ("in",):
        tree = tree.terms[1]
    if isinstance(tree, Collection) and tree.kind == "[]" and len({_width(item) for item in tree.items} - {0}) == 1:
        rows = [item.items for item in tree.items if isinstance(item, Collection)]
        if len(rows) == len(tree.items):  # [[1, 2], [3, 4]]
            return Collection("matrix", tuple(Collection("row", row) for row in rows))
    return Collection("()", (MINUS_INFINITY, INFINITY)) if tree == Symbol("mathbb R") else tree


def _width(tree: Tree) -> int:
    return len(tree.items) if isinstance(tree, Collection) and tree.kind == "[]" else 0


def _with_i(tree: Tree, reference: Tree) -> Tree:
    """Return an answer with i in place of I, as programs write it, for a reference that has an i and no I."""
    if not isinstance(tree, Apply | Symbol) or not isinstance(reference, Apply | Symbol):
        return tree
    named = _has_symbol(tree, "I") and not _has_symbol(tree, "i")
    return (
        _renamed(tree, "I", "i") if named and _has_symbol(reference, "i") and not _has_symbol(reference, "I") else tree
    )


def _has_symbol(x: Expression, name: str) -> bool:
    return any(_has_symbol(part, name) for part in x.arguments) if isinstance(x, Apply) else x == Symbol(name)


def _renamed(x: Expression, old: str, new: str) -> Expression:
    if isinstance(x, Apply):
        return Apply(x.function, tuple(_renamed(part, old, new) for part in x.arguments))
    return Symbol(new) if x == Symbol(old) else x


# --- structure --------------------------------------------------------------------------------------


def _resolved(tree: Tree, other: Tree) -> Tree:
    """Return a tree without the names that the other does not have, as intervals where the other has intervals."""
    if isinstance(tree, Apply | Number | Symbol):
        return _both_signs(tree)
    if isinstance(tree, Chain):
        return _resolved_chain(tree, other)
    if tree.kind == "list":
        if not _are_in_order(tree.items):
            return tree
        items = tuple(
            _resolved(item, other.items[0] if isinstance(other, Collection) and other.items else other)
            for item in tree.items
        )
        if is_intervals(other) and all(map(is_interval, items)):
            return union(items)
        return Collection("list", _flat(items))
    return tree


def _are_in_order(items: tuple[Tree, ...]) -> bool:
    """Return whether no two items name their values in another than the usual order, as y = 3, x = 4 would."""
    names = [item.terms[0] for item in items if isinstance(item, Chain) and item.relations[0] == "="]
    spelt = [name.name for name in names if isinstance(name, Symbol)]
    return spelt == sorted(spelt)


def _resolved_chain(chain: Chain, other: Tree) -> Tree:
    if "~" in chain.relations:  # x = sqrt(2) ~ 1.41 is sqrt(2), x ~ 1.41 is 1.41
        at = chain.relations.index("~")
        first = Chain(chain.relations[:at], chain.terms[: at + 1]) if at else chain.terms[0]
        if not isinstance(first, Symbol):
            return _resolved(first, other)
        chain = Chain(tuple("=" if r == "~" else r for r in chain.relations), chain.terms)
    if set(chain.relations) == {"="}:
        if not _is_equation(other):
            return _resolved(chain.terms[-1], other) if _names(chain.terms) else chain
        return Chain(("=",), (chain.terms[0], chain.terms[-1])) if len(chain.terms) > 2 else chain
    if is_intervals(other) and (interval := interval_of(chain)) is not None:
        return interval
    return chain


def _is_equation(tree: Tree) -> bool:
    if isinstance(tree, Collection):
        return tree.kind == "list" and any(map(_is_equation, tree.items))
    return isinstance(tree, Chain) and "=" in tree.relations


def _names(terms: tuple[Tree, ...]) -> bool:
    """Return whether all terms before the last only name the value (y, f(x), a + b), or have it (3 + 4 = 7)."""
    last = terms[-1]
    return all(_is_name(term) or _has_value(term, last) for term in terms[:-1])


def _is_name(tree: Tree) -> bool:
    if isinstance(tree, Apply):
        if tree.function == "pow":
            return _is_name(tree.arguments[0])
        return all(_is_name(argument) or argument == Number(Fraction(-1)) for argument in tree.arguments)
    if isinstance(tree, Collection):
        return bool(tree.items) and all(map(_is_name, tree.items))
    return isinstance(tree, Symbol)


def _has_value(term: Tree, value: Tree) -> bool:
    """Return whether a term of working is formula or number with the value of the last one."""
    if not isinstance(term, Apply | Number | Symbol) or not isinstance(value, Apply | Number | Symbol):
        return False
    return bool(decided(lambda: exact.equal_expressions(term, value)))


def _both_signs(tree: Expression) -> Tree:
    """Return a list of two values for one with plus-minus."""
    if isinstance(tree, Apply) and tree.function == "pm":
        a, b = tree.arguments
        return Collection("list", (Apply("add", (a, b)), Apply("add", (a, negated(b)))))
    if isinstance(tree, Apply):
        for i, argument in enumerate(tree.arguments):
            inner = _both_signs(argument)
            if isinstance(inner, Collection):
                before, after = tree.arguments[:i], tree.arguments[i + 1 :]
                return Collection(
                    "list", tuple(Apply(tree.function, (*before, term_of(x), *after)) for x in inner.items)
                )
    return tree


def _flat(items: tuple[Tree, ...]) -> tuple[Tree, ...]:
    """Return items, with those of lists among them in their place."""
    return tuple(
        inner
        for item in items
        for inner in (item.items if isinstance(item, Collection) and item.kind == "list" else (item,))
    )


def _same(a: Tree, b: Tree) -> bool:
    if a == b:
        return True
    if isinstance(a, Collection) or isinstance(b, Collection):
        return _same_collections(a, b)
    if isinstance(a, Chain) or isinstance(b, Chain):
        return isinstance(a, Chain) and isinstance(b, Chain) and same_relations(a, b)
    if INFINITY in (a, b) or MINUS_INFINITY in (a, b):
        return a == b
    return _same_values(a, b)


def _same_values(a: Expression, b: Expression) -> bool:
    """Compare two values; one per cent sign may be missing, and a number in a base equals only one in a base."""
    if _is_based(a) != _is_based(b):
        return False
    for sign in ("percent", "degree"):
        if _has_sign(a, sign) != _has_sign(b, sign):
            bare_a, bare_b = _without_sign(a, sign), _without_sign(b, sign)
            if decided(lambda: exact.equal_expressions(bare_a, bare_b)):  # noqa: B023
                return True
    return decided(lambda: exact.equal_expressions(a, b))


def _has_sign(x: Expression, sign: str) -> bool:
    return isinstance(x, Apply) and (x.function == sign or any(_has_sign(argument, sign) for argument in x.arguments))


def _is_based(x: Expression) -> bool:
    return isinstance(x, Apply) and (x.function == "based" or any(map(_is_based, x.arguments)))


def _without_sign(x: Expression, sign: str) -> Expression:
    """Return what stands before a sign at the end, also after a minus or a mixed number's whole part."""
    if not isinstance(x, Apply):
        return x
    if x.function == sign:
        return x.arguments[0]
    if x.function in ("add", "mul"):
        last = _without_sign(x.arguments[-1], sign)
        first_is_plain = all(isinstance(argument, Number) for argument in x.arguments[:-1])
        if last is not x.arguments[-1] and first_is_plain:
            return Apply(x.function, (*x.arguments[:-1], last))
    return x


# --- several values ---------------------------------------------------------------------------------

_UNORDERED = frozenset({"list", "set", "union"})


def _same_collections(a: Tree, b: Tree) -> bool:
    a, b = _unwrapped(a), _unwrapped(b)
    if not isinstance(a, Collection) or not isinstance(b, Collection):
        return not isinstance(a, Collection) and not isinstance(b, Collection) and _same(a, b)
    if "matrix" in {a.kind, b.kind} and a.kind != b.kind:
        a, b = _vector(a), _vector(b)
    if len(a.items) != len(b.items):
        return False
    kinds = {a.kind, b.kind}
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _same_in_any_order(a.items, b.items)
    if len(kinds) == 1 or _are_both_vectors(a, b):
        return all(same(x, y) for x, y in zip(a.items, b.items, strict=True))
    return False


def _vector(tree: Collection) -> Collection:
    """Return a list in square brackets, and the entries of a matrix of one column or row, as a point (1, 2, 3)."""
    if tree.kind != "matrix":
        return Collection("()", tree.items) if tree.kind == "[]" else tree
    rows = [row.items for row in tree.items if isinstance(row, Collection)]
    if len(rows) == 1:
        return Collection("()", rows[0])
    return Collection("()", tuple(row[0] for row in rows)) if all(len(row) == 1 for row in rows) else tree


def _are_both_vectors(a: Collection, b: Collection) -> bool:
    """Return whether two kinds of brackets mean the same: (3, 4) and a bare 3, 4; with three items also [1, 2, 3]."""
    if not all(_are_in_order(collection.items) for collection in (a, b)):
        return False
    bracketed = {"()", "list"} if len(a.items) == 2 else {"()", "[]", "list"}
    return {a.kind, b.kind} <= bracketed


def _unwrapped(tree: Tree) -> Tree:
    if isinstance(tree, Collection) and tree.kind in _UNORDERED and len(tree.items) == 1:
        return tree.items[0] if tree.kind != "set" else tree
    return tree


def _same_in_any_order(left: tuple[Tree, ...], right: tuple[Tree, ...]) -> bool:
    rest = list(right)
    for item in left:
        match = next((i for i, other in enumerate(rest) if same(item, other)), None)
        if match is None:
            return False
        del rest[match]
    return True
