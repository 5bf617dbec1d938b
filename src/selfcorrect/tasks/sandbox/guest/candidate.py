"""The child that holds the program: it runs it, then answers calls until the judge is gone.

Nothing here is trusted by the judge: the program may rewrite all of it. It knows no expected value.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any

from selfcorrect.tasks.sandbox.guest.wire import decode, encode, receive, send

MAX_REQUEST = 1 << 30


def answer_calls(job: Mapping[str, Any], fd: int) -> None:
    """Run ``job["source"]`` as a module; then serve calls, attributes and iterations of what it made."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    kept: list[Any] = []

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    def respond(action: Any) -> None:
        try:
            reply = {"value": encode(action(), keep)}
        except BaseException as error:  # SystemExit and KeyboardInterrupt of the program too
            reply = {"raised": _described(error)}
        send(fd, reply, job["limits"]["answer_bytes"])

    respond(lambda: exec(compile(job["source"], "<program>", "exec"), module.__dict__))
    while True:
        try:
            request = receive(fd, MAX_REQUEST)
        except EOFError:
            return
        respond(lambda request=request: _perform(request, module, kept))


def _perform(request: Mapping[str, Any], module: types.ModuleType, kept: list[Any]) -> Any:
    target = request["on"]
    if isinstance(target, int):
        subject = kept[target]
    elif target in module.__dict__:
        subject = module.__dict__[target]
    else:
        raise NameError(f"name {target!r} is not defined")
    arguments = decode(request["arguments"], kept.__getitem__)
    match request["do"]:
        case "call":
            return subject(*arguments, **decode(request["keywords"], kept.__getitem__))
        case "get":
            return getattr(subject, *arguments)
        case "set":
            return setattr(subject, *arguments)
        case "iterate":
            return iter(subject)
    raise ValueError(request["do"])


def _described(error: BaseException) -> list[str]:
    """Name of the builtin type that the exception is, or is derived from, its own name, and its message."""
    builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        message = str(error)[:500]
    except BaseException:  # its __str__ is the program's
        message = ""
    return [builtin.__name__, type(error).__name__, message]
