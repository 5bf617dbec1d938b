"""Wrong answers that look like right ones, for checking verifiers."""

from __future__ import annotations

import string

_NEXT = str.maketrans(
    string.digits + string.ascii_lowercase + string.ascii_uppercase,
    "1234567890" + string.ascii_lowercase[1:] + "a" + string.ascii_uppercase[1:] + "A",
)


def corrupt_text(reference: str) -> str:
    """The reference with every digit and ASCII letter replaced by the next one; ``x`` if it has none.

    Length and layout stay, so that a verifier cannot turn it down for its form alone. It is wrong for
    exact, numeric and symbolic comparisons; a task whose answers may be renamed freely needs its own.

    >>> corrupt_text("x = 19"), corrupt_text("True"), corrupt_text("←→")
    ('y = 20', 'Usvf', 'x')
    """
    changed = reference.translate(_NEXT)
    return changed if changed != reference else "x"
