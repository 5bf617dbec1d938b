"""What a server sends, made safe before anybody reads it: bodies of limited size, and text for messages.

A server is not trusted. Its body may be endless, or a few kilobytes that decompress to gigabytes; its messages may hold
escape sequences that act on a terminal, or repeat the key that was sent.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
import unicodedata
import zlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import unquote

BODY_LIMIT = 16 * 2**20
"""The largest body in bytes, compressed or not; an answer of 100,000 tokens has less than one megabyte."""
SHOWN = 300
"""The number of characters of a server's message that an error repeats."""
REPEATED = 12
"""A message that holds this many consecutive characters of the key, in any encoding, is withheld."""
LAYERS = 3
"""The number of encodings on top of each other that are looked through."""
READ = 4_000
"""The number of characters of a message that are looked at; `SHOWN` are shown."""

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, screen
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, ...: titles, clipboard
    r"|\x1b[ -/]*[0-~]?"
)
_ESCAPE = re.compile(r"\\(?:u\{?([0-9a-fA-F]{1,6})\}?|x([0-9a-fA-F]{2})|([0-7]{3})|(.))", re.DOTALL)
_JSON_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair: one character
    rb"|\\(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{11,}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[\s:]?){8,}")


class BodyError(Exception):
    """A body that cannot be read: too long, or in an encoding that was not asked for."""


async def read_body(chunks: AsyncIterator[bytes], encoding: str) -> bytes:
    """Return the raw ``chunks`` of a body, joined and decompressed, at most `BODY_LIMIT` bytes of either.

    Raises:
        BodyError: the body is longer, or its ``encoding`` is unknown.
    """
    found = bytearray()
    async for chunk in chunks:
        found += chunk
        if len(found) > BODY_LIMIT:
            raise _too_long()
    return decompressed(bytes(found), encoding)


def decompressed(body: bytes, encoding: str) -> bytes:
    """Return a body without its ``Content-Encoding``; plain is asked for, but some proxies compress anyway.

    Raises:
        BodyError: it would exceed `BODY_LIMIT`, or its encoding is not identity, gzip or deflate.
    """
    names = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    for name in reversed(names):
        if name == "identity":
            continue
        if name not in ("gzip", "x-gzip", "deflate"):
            raise BodyError(f"the answer is compressed as {clean(name)!r}, which was not asked for")
        body = _inflated(body)
    return body


def _inflated(body: bytes) -> bytes:
    """Return a gzip, zlib or bare deflate stream decompressed, which never takes more memory than the limit."""
    for window in (47, -15):  # 47: gzip or zlib, as its head says
        stream = zlib.decompressobj(window)
        try:
            found = stream.decompress(body, BODY_LIMIT + 1)
        except zlib.error:
            continue
        if len(found) > BODY_LIMIT:
            raise _too_long()
        if stream.eof:
            return found
    raise BodyError("the answer is said to be compressed, but is not")


def _too_long() -> BodyError:
    return BodyError(f"the answer is longer than {BODY_LIMIT // 2**20} MiB")


def visible_surrogates(body: bytes) -> bytes:
    r"""Return JSON with its lone surrogates as visible text: a model can say one, but no file and no request can hold it.

    >>> print(visible_surrogates(rb'"7 \ud800 \ud83d\ude00 \\ud800"').decode())
    "7 \\ud800 \ud83d\ude00 \\ud800"
    """
    return _JSON_ESCAPE.sub(lambda found: b"\\\\" + found["lone"] if found["lone"] else found[0], body)


def clean(text: str) -> str:
    r"""Return a text as one line without escape sequences and other characters that a terminal would act on.

    >>> clean("\x1b[31mno\x1b[0m\r\n\x1b]0;title\x07such  \u202emodel")
    'no such model'
    """
    text = _SEQUENCE.sub("", text)
    kept = (c if c.isprintable() else " " if unicodedata.category(c) in ("Cc", "Zs", "Zl", "Zp") else "" for c in text)
    return " ".join("".join(kept).split())


def shown(body: bytes | str, *secrets: str) -> str:
    """Return a server's message as one clean line of limited length, without the key and other secrets."""
    text = body if isinstance(body, str) else body.decode("utf-8", errors="replace")
    line = clean(_message_in(text)[:READ])
    for secret in secrets:
        line = line.replace(secret, "***")
    if any(repeats(line, secret) for secret in secrets):
        return "(withheld, because it repeats the key)"
    return f"{line[:SHOWN]}..." if len(line) > SHOWN else line or "(nothing)"


def repeats(text: str, key: str) -> bool:
    r"""Return whether a text holds the key, or `REPEATED` consecutive characters of it, as such or encoded.

    >>> [repeats(text, "sk-12345678") for text in ("Bearer sk-12345678", "c2stMTIzNDU2Nzg=", "sk-...78")]
    [True, True, False]
    """
    if len(key) < 8:  # a dummy such as "EMPTY", which ordinary messages contain
        return False
    length = min(REPEATED, len(key))
    parts = {key[i : i + length].casefold() for i in range(len(key) - length + 1)}
    seen, layer = {text}, {text}
    for _ in range(LAYERS):
        layer = {other for one in layer for other in _decodings(one)} - seen
        seen |= layer
    return any(part in one.casefold() for one in seen for part in parts)


def _decodings(text: str) -> Iterator[str]:
    """Yield what a text may stand for: HTML entities, percent signs, backslashes, spaces in between, base64, hex."""
    yield html.unescape(text)
    yield unquote(text, errors="replace")
    yield _ESCAPE.sub(_unescaped, text)
    yield "".join(text.split())
    yield text[::-1]
    for word in _BASE64.findall(text):
        for start in range(4):
            whole = word[start:].replace("-", "+").replace("_", "/")
            whole = whole[: len(whole) - (len(whole) % 4 == 1)]
            yield base64.b64decode(whole + "=" * (-len(whole) % 4)).decode("latin-1")
    for digits in _HEX.findall(text):
        pairs = re.sub(r"[\s:]", "", digits)
        yield binascii.unhexlify(pairs).decode("latin-1")


def _unescaped(found: re.Match[str]) -> str:
    point, byte, octal, other = found.groups()
    if other is not None:
        return other
    number = int(point or byte or octal, 8 if octal else 16)
    return chr(number) if number < 0x110000 else ""


def _message_in(text: str) -> str:
    """Return the readable message in an error body: ``{"error": {"message": ..}}``, ``{"detail": ..}``, or the whole body."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else text
