"""JSON and TOML from files that others may have written or damaged: bounded, finite, and one error that says what is wrong.

Only regular files are read. A pipe would block for ever, and a device such as ``/dev/zero`` never ends.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import IO, Any

from selfcorrect.errors import DataError

MAX_DOCUMENT = 64 * 2**20
"""Maximum bytes of a document that is read as a whole, and of one line of a log."""
MAX_DEPTH = 64
"""Maximum depth of nested lists and objects; what the package writes has less than ten levels."""
MAX_INTEGER = 2**63 - 1
"""Maximum integer, and its negative the minimum: everything that computes with one expects 64 bits."""

_LONG_INTEGER = re.compile(r"\d{19}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading if it is a regular one, or a link to one.

    Raises:
        DataError: it is a directory, a pipe, a device or a socket.
        OSError: it is missing, or may not be read.
    """
    try:  # without O_NONBLOCK, a pipe would block before it is rejected
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise DataError(f"{path} is {kind_of(path.stat().st_mode)}: give a regular file.") from None  # a socket
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise DataError(f"{path} is {kind_of(mode)}: give a regular file.")
    return os.fdopen(handle, "rb")


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        DataError: it is no regular file, or has more than ``limit`` bytes.
        OSError: it is missing, or may not be read.
    """
    with open_regular(path) as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise DataError(f"{path} has more than {limit:,} bytes, which no file of its kind has: it is damaged.")
    return content


def is_there(path: Path) -> bool:
    """Return whether a path leads to something that is no directory, even if it cannot be read as a regular file."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def kind_of(mode: int) -> str:
    """Return what a file's mode says that it is, in words."""
    kinds = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link"}
    kinds |= {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def is_unicode(text: str) -> bool:
    r"""Return whether UTF-8 can hold a text.

    It cannot hold half of a character. Python also reads a byte that is not UTF-8, in a file's name or on the command line, as
    such a half.

    >>> is_unicode("runs/é"), is_unicode("runs/\udcff")
    (True, False)
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Return the content of a JSON document.

    Raises:
        DataError: the file is no regular file, too large or not such JSON as `parsed_json` accepts; the message names it.
        OSError: it is missing, or may not be read.
    """
    content = read_regular(path, MAX_DOCUMENT)
    try:
        return parsed_json(content)
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}.") from None


def parsed_json(content: bytes | str) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: it is not JSON; or a number is not finite or beyond 64 bits, a text is not Unicode, or values are nested
            too deeply for the programs that read them.
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, line {error.lineno}, column {error.colno})") from None
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("an integer has thousands of digits") from None
        raise
    if _is_suspicious(text):
        _check(value)
    return value


def parsed_toml(text: str) -> dict[str, Any]:
    """Return the value of a TOML document.

    Raises:
        ValueError: it is not TOML; or an integer is beyond 64 bits, or values are nested too deeply.
    """
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python does not convert integers of thousands of digits
        raise ValueError("an integer has thousands of digits") from None
    _check(value)
    return value


def _is_suspicious(text: str) -> bool:
    """Return whether JSON text can violate what `_check` checks; ordinary lines of a log cannot, so nothing walks over them."""
    brackets = text.count("[") + text.count("{")
    return brackets > MAX_DEPTH or bool(_LONG_INTEGER.search(text) or _SURROGATE.search(text))


def _check(value: Any) -> None:
    """Raise a ValueError for an integer beyond 64 bits, a text that is not Unicode, or values nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError(f"an integer of {item.bit_length()} bits is out of range")
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8")  # a lone surrogate raises a ValueError
        if not below:
            return
        level = below
    raise ValueError(f"values are nested more than {MAX_DEPTH} levels deep")


def _not_finite(constant: str) -> Any:
    raise ValueError(f"not JSON ({constant} is not a number)")


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {number[:30]} is out of range")
    return value
