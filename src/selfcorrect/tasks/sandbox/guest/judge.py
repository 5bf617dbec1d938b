"""The child that holds the tests: it runs them against proxies, and it alone reports whether they passed.

It never imports, compiles or executes the program. Every ``assert`` of the tests is one check; after a failed check the
next one still runs. Each event is reported at once as a JSON line, so results from before a timeout are known too.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from selfcorrect.tasks.sandbox.guest.wire import (
    MAX_MESSAGE,
    MAX_NAME,
    Ref,
    WireError,
    decode,
    encode,
    receive,
    send,
    storable,
)

MAX_LABEL = 200
_LOOP_ENDERS = ("StopIteration", "StopAsyncIteration")
"""Exceptions that would end a test's loop early and skip its checks."""


class ProgramGone(BaseException):
    """The program's process ended or broke the protocol, so no more calls are possible. Tests cannot catch it."""


class ProgramRaised(Exception):
    """An exception of the program without a builtin type that a test could catch."""


class Program:
    """The judge's view of the program: a pipe for requests."""

    def __init__(self, fd: int, answer_bytes: int) -> None:
        self._fd = fd
        self._limit = answer_bytes

    def load(self) -> Any:
        """Wait until the program's module has been run."""
        return self._reply()

    def ask(self, do: str, on: str | int, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        code = {"do": do, "on": on, "arguments": encode(arguments, _refuse), "keywords": encode(keywords, _refuse)}
        try:
            send(self._fd, code)
        except OSError:
            raise ProgramGone("") from None
        return self._reply()

    def _reply(self) -> Any:
        try:
            reply = receive(self._fd, self._limit)
            raised = reply.get("raised")
            error = _exception(*map(str, raised)) if raised else None
            value = None if raised else decode(reply["value"], lambda number: Kept(self, number))
        except (EOFError, OSError):
            raise ProgramGone("") from None
        except WireError as broken:
            raise ProgramGone(str(broken)) from None
        except (TypeError, KeyError, AttributeError):
            raise ProgramGone("an answer that is not of the protocol") from None
        if error is not None:
            raise error
        return value


class Function:
    """A proxy for a function of the program; arguments and results travel as plain data."""

    def __init__(self, program: Program, name: str) -> None:
        self._ask = program.ask
        self.__name__ = name

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", self.__name__, arguments, keywords)


class Kept(Ref):
    """A proxy for an object that stays with the program. It forwards attributes and calls, and equals only itself."""

    def __init__(self, program: Program, number: int) -> None:
        self.__dict__.update(program=program, number=number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.program.ask("call", self.number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.program.ask("get", self.number, (name,), {})

    def __setattr__(self, name: str, value: object) -> None:
        self.program.ask("set", self.number, (name, value), {})

    def __iter__(self) -> Iterator[Any]:
        items: Iterator[Any] = self.program.ask("iterate", self.number, (), {})
        return items


def _refuse(value: object) -> int:
    raise TypeError(f"a test passes {type(value).__name__} to the program, which is not plain data")


def _exception(builtin: str, name: str, message: str) -> Exception:
    """Rebuild the program's exception, as a builtin one where a test may expect that."""
    kind = getattr(builtins, builtin, None)
    usable = isinstance(kind, type) and issubclass(kind, Exception) and builtin not in _LOOP_ENDERS
    try:
        error: Exception = kind(message) if usable and kind else ProgramRaised(message)
    except TypeError:  # UnicodeDecodeError and the like take more than a message
        error = ProgramRaised(message)
    error.of_program = name  # type: ignore[attr-defined]
    return error


# --- checks -----------------------------------------------------------------------------------------


class _Report:
    """A report of events as JSON lines: the labels, then each check when it first passes and when it first fails."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen: set[tuple[int, bool]] = set()

    def line(self, **event: Any) -> None:
        left = memoryview(json.dumps(event).encode() + b"\n")
        while left:
            left = left[os.write(self._fd, left) :]

    def check(self, index: int, error: BaseException | None) -> None:
        if (index, error is None) not in self._seen:
            self._seen.add((index, error is None))
            self.line(check=index, **({} if error is None else described(error)))

    @property
    def reached(self) -> bool:
        return bool(self._seen)


def described(error: BaseException) -> dict[str, Any]:
    """Return an exception as a report entry; ``program`` says whether the program itself raised it.

    This is the boundary for text that a program made up: what leaves here is short and can be stored.
    """
    name = getattr(error, "of_program", None)
    try:
        message = storable(str(error), MAX_MESSAGE)
    except Exception:  # a ValueError for an int of more than 4300 digits
        message = ""
    return {
        "error": storable(name or type(error).__name__, MAX_NAME),
        "message": message,
        "program": name is not None,
    }


class _Check:
    """A context manager around one ``assert``."""

    def __init__(self, report: _Report, index: int) -> None:
        self._report, self._index = report, index

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        self._report.check(self._index, error)
        return True


class _Marked(ast.NodeTransformer):
    """A transformer that wraps every assert in ``with __check__(i):`` and collects the labels."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def visit_Assert(self, node: ast.Assert) -> ast.With:
        self.labels.append(ast.unparse(node.test)[:MAX_LABEL])
        call = ast.Call(ast.Name("__check__", ast.Load()), [ast.Constant(len(self.labels) - 1)], [])
        return ast.copy_location(ast.With([ast.withitem(call)], [node]), node)


def undefined_names(tree: ast.Module) -> set[str]:
    """Return the names that the tests use but never assign and that are not builtins: the program must define them."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return {name for name in used - bound if not hasattr(builtins, name)}


def run_tests(job: Mapping[str, Any], fd: int, report_fd: int) -> None:
    """Run ``job["tests"]`` after the trusted ``job["preamble"]``; ``job["names"]`` always belong to the program."""
    report = _Report(report_fd)
    program = Program(fd, job["limits"]["answer_bytes"])
    space: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(job["preamble"], "<preamble>", "exec"), space)
        tree = ast.parse(job["tests"])
        marked = _Marked()
        code = compile(ast.fix_missing_locations(marked.visit(tree)), "<tests>", "exec")
    except Exception as error:
        report.line(end="tests", **described(error))
        return
    names = {*job["names"], *(undefined_names(tree) - space.keys() - {"__check__"})}
    space |= {name: Function(program, name) for name in names}
    space["__check__"] = lambda index: _Check(report, index)
    report.line(labels=marked.labels)
    try:
        program.load()
        exec(code, space)
    except ProgramGone as gone:
        report.line(end="gone", message=str(gone))
    except ImportError as error:
        report.line(end="raised" if hasattr(error, "of_program") else "tests", **described(error))
    except BaseException as error:  # including a test's SystemExit, which does not mean success
        report.line(end="raised", **described(error))
    else:
        report.line(end="complete" if report.reached or not marked.labels else "unreached")
