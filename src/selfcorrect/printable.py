"""Text for a terminal: whatever a model, a server or a received file wrote, it cannot steer the terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with every character escaped that a terminal does not simply show; line ends and tabs stay.

    That is control characters (``ESC`` begins a command), and characters that hide or reorder text.

    >>> print(printable("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def printable_json(text: str) -> str:
    r"""Return JSON text with such characters escaped as JSON escapes them: the same value, safe to print.

    >>> print(printable_json('{"a": "\x9b2J"}'))
    {"a": "\u009b2J"}
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _json_escaped(c) for c in text)


def printable_toml(text: str) -> str:
    r"""Return TOML with such characters escaped as TOML escapes them in strings: the same value, safe to print.

    >>> print(printable_toml('a = "\x9b2J"'))
    a = "\u009b2J"
    """
    return (
        text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else _toml_escaped(c) for c in text)
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _toml_escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 2**16 else f"\\U{ord(character):08x}"


def _json_escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
