"""The child that holds the program: it runs the program, then answers calls until the judge is gone.

The judge trusts nothing here, because the program may rewrite all of it. The child knows no expected value.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import Any

from selfcorrect.tasks.sandbox.guest.wire import MAX_MESSAGE, MAX_NAME, decode, encode, receive, send, storable

MAX_REQUEST = 1 << 30


def answer_calls(job: Mapping[str, Any], fd: int) -> None:
    """Run ``job["source"]`` as a module, then serve calls, attributes and iterations of its objects."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    kept: list[Any] = []

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    def respond(action: Any) -> None:
        try:
            reply = {"value": encode(action(), keep)}
        except BaseException as error:  # including the program's SystemExit and KeyboardInterrupt
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
    """Return the nearest builtin type of an exception, its own type, and its message, all of them short.

    The program chooses all three: a type may be named by megabytes, and claim to be a builtin one.
    """
    builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        message = storable(str(error), MAX_MESSAGE)
    except BaseException:  # the program wrote its __str__
        message = ""
    return [storable(builtin.__name__, MAX_NAME), storable(type(error).__name__, MAX_NAME), message]
