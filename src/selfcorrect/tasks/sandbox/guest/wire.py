"""Messages between the processes of a sandbox: length-prefixed JSON, and values as plain data.

Only plain data cross the wire: None, booleans, numbers, text, bytes, and lists, tuples, sets, dicts and ranges of these.
Any other object that a program returns stays with the program; the judge gets a `Ref`, which equals only itself. No
method that a program wrote is therefore ever called in the process with the expected values. A subclass (a namedtuple,
a Counter) arrives as its plain parent; an iterator arrives as one over a list.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

MAX_ITEMS = 100_000
"""The number of items after which an iterator is truncated."""

MAX_NAME, MAX_MESSAGE = 100, 500
"""The number of characters of an exception's type and of its message that are reported."""

_LENGTH = struct.Struct("<I")
_LONGEST = 2**32 - 1
_EXACT_INT = 2**53


class WireError(Exception):
    """A message violates the protocol: it is too long, truncated or malformed."""


class Ref:
    """A reference to an object that the program keeps under ``number``."""

    def __init__(self, number: int) -> None:
        self.number = number


# --- messages ---------------------------------------------------------------------------------------


def send(fd: int, message: Any, limit: int | None = None) -> None:
    """Write one whole message, even where the pipe takes it in parts.

    For an answer whose text alone exceeds ``limit``, only the length is sent: the reader then rejects it, and no CPU
    time goes into encoding it.
    """
    if limit is not None and isinstance(text := message.get("value"), str) and len(text) > limit:
        os.write(fd, _LENGTH.pack(min(len(text), _LONGEST)))
        return
    body = json.dumps(message, separators=(",", ":")).encode()
    for part in (_LENGTH.pack(len(body)), body):  # separately, so that a long body is not copied
        left = memoryview(part)
        while left:
            left = left[os.write(fd, left) :]


def receive(fd: int, limit: int) -> Any:
    """Read one message of at most ``limit`` bytes.

    Raises:
        EOFError: the other side is gone.
        WireError: the message is too long or is not JSON.
    """
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size))
    if length > limit:
        raise WireError(f"an answer of {length:,} bytes; the limit is {limit:,}")
    body = _read(fd, length)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"an answer that is not of the protocol ({type(error).__name__})") from None


def _read(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def storable(text: str, limit: int) -> str:
    """Return at most ``limit`` characters of a text, with lone surrogates, which no file can store, as ``\\udXXX``."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()[:limit]


# --- values -----------------------------------------------------------------------------------------


def encode(value: Any, keep: Callable[[Any], int]) -> Any:
    """Return a value as JSON: text and booleans as they are, anything else as ``[tag, content]``.

    ``keep`` stores an object that has no plain form and returns its number.

    >>> encode((1, {"a": {2.5}}), keep=lambda value: 0)
    ['t', [['i', 1], ['d', [['a', ['s', [['f', 2.5]]]]]]]]
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, Ref):
        return ["r", value.number]
    tag = _TAGS.get(type(value))
    if tag is None:  # a subclass takes its parent's tag
        tag = next((tag for kind, tag in _TAGS.items() if isinstance(value, kind)), None)
    if tag is not None:
        return [tag, _CONTENT[tag](value, keep)] if tag else str.__str__(value)
    if hasattr(value, "__next__"):
        return ["n", [encode(item, keep) for item, _ in zip(value, range(MAX_ITEMS), strict=False)]]
    return ["r", keep(value)]


def _items(value: Any, keep: Callable[[Any], int]) -> list[Any]:
    return [encode(item, keep) for item in value]


def _int(value: int, keep: Callable[[Any], int]) -> Any:
    plain = int(value)
    return plain if -_EXACT_INT < plain < _EXACT_INT else hex(plain)


_TAGS: dict[type, str] = {
    str: "",
    int: "i",
    float: "f",
    list: "l",
    tuple: "t",
    dict: "d",
    set: "s",
    frozenset: "z",
    complex: "c",
    bytes: "b",
    range: "g",
}
_CONTENT: dict[str, Callable[[Any, Callable[[Any], int]], Any]] = {
    "i": _int,
    "f": lambda value, keep: float(value),
    "l": _items,
    "t": _items,
    "s": _items,
    "z": _items,
    "d": lambda value, keep: [[encode(k, keep), encode(v, keep)] for k, v in value.items()],
    "c": lambda value, keep: [value.real, value.imag],
    "b": lambda value, keep: value.hex(),
    "g": lambda value, keep: [str(value.start), str(value.stop), str(value.step)],
}


def decode(code: Any, find: Callable[[int], Any] = Ref) -> Any:
    """Return the value of a code; ``find`` returns the object with a number.

    Raises:
        WireError: the code is malformed. Messages from a program are never trusted.
    """
    try:
        return _decode(code, find)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise WireError(f"an answer that is not of the protocol ({type(error).__name__})") from None


def _decode(code: Any, find: Callable[[int], Any]) -> Any:
    if code is None or isinstance(code, (bool, str)):
        return code
    tag, content = code
    if tag in ("l", "t", "s", "z", "n"):
        return _CONTAINERS[tag](_decode(item, find) for item in content)
    if tag == "d":
        return {_decode(k, find): _decode(v, find) for k, v in content}
    if tag == "r":
        return find(int(content))
    return _SCALARS[tag](content)


def _iterator(items: Iterator[Any]) -> Iterator[Any]:
    return iter(list(items))


_CONTAINERS: dict[str, Callable[[Iterator[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
    "n": _iterator,
}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "i": lambda content: int(content, 16) if isinstance(content, str) else int(content),
    "f": float,
    "c": lambda content: complex(*content),
    "b": bytes.fromhex,
    "g": lambda content: range(*map(int, content)),
}
