"""Relations and intervals: whether chains such as 2x = 6 and x = 3 are the same, and the interval that 1 < x <= 3 means."""

from __future__ import annotations

from collections.abc import Callable

from selfcorrect.tasks.math import exact
from selfcorrect.tasks.math.expressions import Apply, Chain, Collection, Expression, Symbol, Tree, Unreadable, negated

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
INFINITY = Symbol("oo")
MINUS_INFINITY = negated(INFINITY)


def decided(decide: Callable[[], bool]) -> bool:
    """Return a decision; what has no value, or too many digits to decide, is different."""
    try:
        return decide()
    except (exact.Undefined, exact.TooLarge):
        return False


def term_of(tree: Tree) -> Expression:
    """Return a side of a relation.

    Raises:
        Unreadable: it is several values.
    """
    if isinstance(tree, Collection | Chain):
        raise Unreadable("a collection inside an expression")
    return tree


def same_relations(a: Chain, b: Chain) -> bool:
    """Compare chains as sets of relations: each of one must be a multiple of one of the other."""
    rest = _relations(b)
    for relation in _relations(a):
        match = next((i for i, other in enumerate(rest) if decided(lambda: _is_multiple(relation, other))), None)  # noqa: B023
        if match is None:
            return False
        del rest[match]
    return not rest


Relation = tuple[str, Expression]
"""A relation between an expression and 0."""


def _relations(chain: Chain) -> list[Relation]:
    found: list[Relation] = []
    for relation, left, right in zip(chain.relations, chain.terms, chain.terms[1:], strict=False):
        if relation not in _FLIPPED:
            raise Unreadable(f"the relation {relation!r}")
        found.append((relation, Apply("add", (term_of(left), negated(term_of(right))))))
    return found


def _is_multiple(a: Relation, b: Relation) -> bool:
    """Return whether two relations differ by a constant factor, which is positive or turns the sign of the relation."""
    (sign_a, left), (sign_b, right) = a, b
    if sign_b not in (sign_a, _FLIPPED[sign_a]):
        return False
    if INFINITY in (left, right):
        return left == right
    points = list(exact.folded_at_points(left, right))
    usable = [(x, y) for x, y in points if not exact.is_zero(x)]
    if len(usable) < 2 or any(not exact.is_zero(y) for x, y in points if exact.is_zero(x)):
        return False
    first_x, first_y = usable[0]
    if exact.is_zero(first_y):
        return False
    if not all(exact.equal_expressions(Apply("mul", (x, first_y)), Apply("mul", (y, first_x))) for x, y in usable):
        return False
    turned = exact.is_negative(exact.fold(Apply("div", (first_x, first_y)), {}))
    return sign_b == (_FLIPPED[sign_a] if turned else sign_a)


def is_interval(tree: Tree) -> bool:
    """Return whether a tree is written as two values in brackets, such as (1, 3]."""
    return isinstance(tree, Collection) and len(tree.items) == 2 and tree.kind in ("()", "(]", "[)", "[]")


def is_intervals(tree: Tree) -> bool:
    """Return whether a tree is an interval or a union of some."""
    return is_interval(tree) or (
        isinstance(tree, Collection) and tree.kind == "union" and all(map(is_interval, tree.items))
    )


def union(items: tuple[Tree, ...]) -> Tree:
    """Return the union of intervals; a single one is itself."""
    return items[0] if len(items) == 1 else Collection("union", items)


def interval_of(chain: Chain) -> Tree | None:
    """Return the interval of a chain such as 1 < x <= 3 or x > 2, or None."""
    terms, relations = chain.terms, chain.relations
    if any(relation in (">", ">=") for relation in relations):
        terms, relations = terms[::-1], tuple(_FLIPPED.get(r, r) for r in relations[::-1])
    if any(relation not in ("<", "<=") for relation in relations):
        return None
    where = [i for i, term in enumerate(terms) if isinstance(term, Symbol) and exact.variables(term)]
    if len(where) != 1 or len(terms) > 3 or (len(terms) == 3 and where != [1]):
        return None
    (at,) = where
    low = (MINUS_INFINITY, "(") if at == 0 else (terms[at - 1], "(" if relations[at - 1] == "<" else "[")
    high = (INFINITY, ")") if at == len(terms) - 1 else (terms[at + 1], ")" if relations[at] == "<" else "]")
    return Collection(low[1] + high[1], (low[0], high[0]))
