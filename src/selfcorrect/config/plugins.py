"""Names that settings give to code: built in, offered by installed packages, or ``module:attribute``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from selfcorrect.errors import ConfigError
from selfcorrect.extras import imported

PLACE = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
"""Code given by its location, ``module:attribute``."""


@dataclass(frozen=True)
class Plugins:
    """One kind of code that settings name.

    Attributes:
        what: what it is, such as "engine", for messages.
        group: the entry-point group under which installed packages offer it.
        builtin: the locations of the package's own. Nobody can take their names.
    """

    what: str
    group: str
    builtin: Mapping[str, str]

    def offered(self) -> dict[str, EntryPoint]:
        """Return what installed packages offer, by name."""
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self.builtin}

    def checked(self, name: str) -> str:
        """Return a name unchanged if it is valid; nothing is imported, and a ``module:attribute`` is not looked up.

        Raises:
            ValueError: nothing has this name; the message suggests a close one.
        """
        if name in self.builtin or PLACE.fullmatch(name):
            return name
        known = [*self.builtin, *sorted(self.offered())]
        if name in known:
            return name
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"there is no {self.what} {name!r}; there are {', '.join(known)}, or your own as 'module:attribute'.{hint}"
        )

    def load(self, name: str) -> Any:
        """Import what a name leads to.

        Raises:
            ConfigError: the name is unknown, or it leads to what cannot be imported.
        """
        try:
            self.checked(name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        place = self.builtin.get(name) or (name if ":" in name else self.offered()[name].value)
        return imported(self.what, name, place)

    def with_members(self, name: str, made: Any, members: tuple[str, ...], protocol: str) -> Any:
        """Return what a name's code made, if it has the methods ``members`` of the ``protocol``.

        Raises:
            ConfigError: it lacks some.
        """
        lacking = [member for member in members if not callable(getattr(made, member, None))]
        if lacking:
            raise ConfigError(
                f"{self.what} {name!r} made a {type(made).__name__}, which has no {', '.join(lacking)}: it needs "
                f"{', '.join(members)} (see {protocol})."
            )
        return made
