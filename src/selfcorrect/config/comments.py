"""The comments of a configuration file, carried over to the same configuration with every setting resolved.

Comments above a table or a setting, and behind a setting, belong to it. The lines at the head of the file belong to the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

TABLE = re.compile(r"\[([^\[\]]+)\]\s*(#.*)?$")
SETTING = re.compile(r"([A-Za-z0-9_-]+)\s*=\s*(.*)$")
COMMENT = re.compile(r"""(?:[^"'#]|"(?:[^"\\]|\\.)*"|'[^']*')*(#.*)$""")
"""A comment behind a value; a ``#`` in a text is none."""


@dataclass
class Comments:
    """The comments of a file: at its head, and by the dotted name of a table or setting."""

    head: list[str] = field(default_factory=list)
    of: dict[str, list[str]] = field(default_factory=dict)


def read_comments(text: str) -> Comments:
    """Return the comments of a TOML text, whose settings are each on a line of their own."""
    found, table, above, begun = Comments(), "", list[str](), False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            above.append(line)
            continue
        if not line and not begun and above:  # a blank line ends the head
            found.head, above = above, []
        begun = True
        name, behind = _named(line, table)
        if name is None:
            continue
        table = name if line.startswith("[") else table
        comments = [*above, *behind]
        above = []
        if comments:
            found.of[name] = comments
    return found


def with_comments(resolved: str, comments: Comments, changed: Collection[str] = ()) -> str:
    """Return a resolved TOML text with the comments above what they belong to.

    What stands in the file as one table may be several here: its comment goes above the first. A setting in ``changed`` has
    another value than the comment speaks of, so it goes without.
    """
    left = {name: lines for name, lines in comments.of.items() if name not in changed}
    lines, table = [*comments.head, *([""] if comments.head else [])], ""
    for line in resolved.splitlines():
        name, _ = _named(line, table)
        if name is not None:
            table = name if line.startswith("[") else table
            for owner in [owner for owner in left if f"{name}.".startswith(f"{owner}.")]:
                lines += left.pop(owner)
        lines.append(line)
    return "\n".join(lines)


def _named(line: str, table: str) -> tuple[str | None, list[str]]:
    """Return the dotted name of the table or setting that a line begins, if any, and the comment behind it."""
    header = TABLE.match(line)
    if header:
        return header[1].strip(), [header[2]] if header[2] else []
    setting = SETTING.match(line)
    if not setting:
        return None, []
    behind = COMMENT.match(setting[2])
    return f"{table}.{setting[1]}".removeprefix("."), [behind[1]] if behind else []
