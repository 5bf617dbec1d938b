"""Incorrect answers that resemble correct ones, for checking verifiers."""

from __future__ import annotations

import string

_NEXT = str.maketrans(
    string.digits + string.ascii_lowercase + string.ascii_uppercase,
    "1234567890" + string.ascii_lowercase[1:] + "a" + string.ascii_uppercase[1:] + "A",
)


def corrupt_text(reference: str) -> str:
    """Return the reference with every digit and ASCII letter replaced by the next one; ``x`` if it has none.

    Length and layout stay, so a verifier cannot reject the result for its form alone. The result is incorrect under
    exact, numeric and symbolic comparison; a task whose answers allow free renaming needs its own corruption.

    >>> corrupt_text("x = 19"), corrupt_text("True"), corrupt_text("←→")
    ('y = 20', 'Usvf', 'x')
    """
    changed = reference.translate(_NEXT)
    return changed if changed != reference else "x"
