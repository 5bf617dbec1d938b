"""The names of engines: built in, offered by installed packages, or ``module:attribute``.

Checking a name imports nothing; `selfcorrect.engines.factory` opens the engine.
"""

from __future__ import annotations

import difflib
import re
from importlib.metadata import EntryPoint, entry_points

HF, VLLM = "hf", "vllm"
BUILTIN = {
    HF: "selfcorrect.engines.hf:HF_KIND",
    VLLM: "selfcorrect.engines.vllm:VLLM_KIND",
}
"""The built-in engines and their locations. A new one takes its file and a line here."""

GROUP = "selfcorrect.engines"
"""The entry-point group under which installed packages offer engines."""

PLACE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""An engine given by its location, ``module:attribute``."""


def offered_engines() -> dict[str, EntryPoint]:
    """Return the engines that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILTIN}


def check_engine_name(name: str) -> str:
    """Return an engine's name unchanged if it is valid. A ``module:attribute`` is looked up only when the engine is opened.

    Raises:
        ValueError: no engine has this name; the message suggests a close one.
    """
    if name in BUILTIN or PLACE.fullmatch(name):
        return name
    known = [*BUILTIN, *sorted(offered_engines())]
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"there is no engine {name!r}; there are {', '.join(known)}, or your own as 'module:attribute'.{hint}"
    )
