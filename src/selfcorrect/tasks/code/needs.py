"""What a program needs from elsewhere in an answer: names that it uses and never binds, and statements that bind them.

Models spread a program over several blocks: imports or a helper in one, the function in another. Only the statements that
the program needs are taken, so an example of its use, which may print or fail, is left behind.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from selfcorrect.tasks.sandbox.guest.judge import undefined_names

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_NO_VALUES = (*_SCOPES, ast.Import, ast.ImportFrom)
_MAX_BLOCKS = 50
"""The number of blocks before and after a program in which its names are looked for."""
_MAX_STATEMENTS = 10_000


class _Source:
    """The statements of one block, by the names that they bind."""

    def __init__(self, tree: ast.Module) -> None:
        self.statements = [node for node in tree.body[:_MAX_STATEMENTS] if not _guards_main(node) and not _future(node)]
        self.defines = {node.name for node in self.statements if isinstance(node, _SCOPES)}
        self.binds: dict[str, list[int]] = {}
        values = {name for node in self.statements if not isinstance(node, _NO_VALUES) for name in _bound(node)}
        for place, node in enumerate(self.statements):
            for name in {*_bound(node), *(values & set(_changed(node)))}:  # `sys.exit()` changes nothing
                self.binds.setdefault(name, []).append(place)


def with_needs(
    program: ast.Module, code: str, before: Sequence[ast.Module], after: Sequence[ast.Module], names: Sequence[str]
) -> str:
    """Return ``code``, whose tree is ``program``, below the statements of other blocks that it or ``names`` need."""
    lines = needs(program, before, after, names)
    if not lines:
        return code
    own = code.split("\n")
    top = max((node.end_lineno or 0 for node in program.body if _future(node)), default=0)  # these must stay first
    return "\n".join([*own[:top], *lines, "", "", *own[top:]])


def needs(
    program: ast.Module,
    before: Sequence[ast.Module],
    after: Sequence[ast.Module],
    names: Sequence[str] = (),
    own: str | None = None,
) -> list[str]:
    """Return the statements of other blocks that bind what a program lacks, in their order.

    It lacks the names that it uses without binding them, and those of ``names`` that it does not bind, but never ``own``.

    A name comes from a definition that stands in a later block (a correction), else from the nearest earlier block, else
    from the nearest later one, else perhaps from an ``import *``. What no block binds stays unbound.
    """
    sources = [_Source(tree) for tree in (*before[-_MAX_BLOCKS:], *after[:_MAX_BLOCKS])]
    taken: set[tuple[int, int]] = set()
    seen = {own, *(name for node in program.body for name in _bound(node))}
    wanted = sorted({*names, *undefined_names(program)})
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        number = _supplier(name, sources, len(before[-_MAX_BLOCKS:]))
        if number is None:
            wanted.append("*")  # it may come from a `from module import *`
        for place in sources[number].binds[name] if number is not None else ():
            taken.add((number or 0, place))
            node = sources[number or 0].statements[place]
            wanted += {*undefined_names(ast.Module([node], [])), *_bound(node)} - seen
    try:
        return [ast.unparse(sources[number].statements[place]) for number, place in sorted(taken)]
    except RecursionError:
        return []


def _supplier(name: str, sources: Sequence[_Source], here: int) -> int | None:
    """Return the number of the block from which a name comes; the program stands between ``here - 1`` and ``here``."""
    order = [n for n in reversed(range(here, len(sources))) if name in sources[n].defines]
    order += [n for n in (*reversed(range(here)), *range(here, len(sources))) if name in sources[n].binds]
    return order[0] if order else None


def _guards_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))


def _future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _bound(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds in its own scope."""
    for part in _within(node):
        if isinstance(part, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in part.names)
        elif isinstance(part, _SCOPES):
            yield part.name
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def _changed(node: ast.stmt) -> Iterator[str]:
    """Yield the names whose objects a statement changes: by an item, an attribute or a method of theirs."""
    for part in _within(node):
        if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield from _base(part)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        yield from _base(node.value.func)
    if isinstance(node, ast.For | ast.While | ast.If | ast.With | ast.Try):
        for inner in _blocks_of(node):
            yield from _changed(inner)


def _base(part: ast.expr) -> Iterable[str]:
    while isinstance(part, ast.Subscript | ast.Attribute):
        part = part.value
    return (part.id,) if isinstance(part, ast.Name) else ()


def _blocks_of(node: ast.stmt) -> Iterator[ast.stmt]:
    for field in ("body", "orelse", "finalbody"):
        yield from getattr(node, field, ())


def _within(node: ast.stmt) -> Iterator[ast.AST]:
    """Yield a statement and its parts, without the insides of functions and classes."""
    waiting: list[ast.AST] = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, (*_SCOPES, ast.Lambda)):
            waiting += ast.iter_child_nodes(part)
