"""The variables of a launcher such as torchrun, read without importing torch."""

from __future__ import annotations

import os

from selfcorrect.errors import ConfigError


def launched() -> int:
    """Return the number of processes that a launcher started, if this is one of several; 0 otherwise.

    A cluster may set WORLD_SIZE for its machines; only a launcher tells a process its place on its own machine.
    """
    size = number("WORLD_SIZE", 1)
    return size if size > 1 and "RANK" in os.environ and "LOCAL_RANK" in os.environ else 0


def speaks() -> bool:
    """Return whether this process is the one that speaks for all that a launcher started."""
    return not launched() or number("RANK", 0) == 0


def number(name: str, default: int) -> int:
    """Return a variable of the launcher.

    Raises:
        ConfigError: it is not a number.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigError(f"{name} = {text!r} is not a number: start the processes with torchrun, or unset it.")
    return int(text)
