"""Optional packages: an extra of this package installs each, and one message names it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from selfcorrect.errors import ConfigError


def require(package: str, *, extra: str, why: str, instead: str = "") -> Any:
    """Import an optional package, or one of its modules.

    Args:
        package: the name to import, as in ``import``.
        extra: the extra of this package that installs it.
        why: what needs it; the subject of the message.
        instead: an alternative, which ends the message.

    Raises:
        ConfigError: the package cannot be imported; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a shared library below it is missing
        raise missing(package, extra=extra, why=why, instead=instead, reason=str(error)) from error


def check_installed(package: str, *, extra: str, why: str, instead: str = "") -> None:
    """Make sure that an optional package is installed, without spending the time to import it.

    Raises:
        ConfigError: it is not installed; see `require`.
    """
    if importlib.util.find_spec(package) is None:
        raise missing(package, extra=extra, why=why, instead=instead, reason="it is not installed")


def missing(package: str, *, extra: str, why: str, reason: str, instead: str = "") -> ConfigError:
    """Return the error for an optional package that cannot be imported.

    >>> print(missing("peft", extra="lora", why="LoRA", reason="No module named 'peft'"))
    LoRA needs peft, which cannot be imported (No module named 'peft'). Install it: pip install "selfcorrect[lora]".
    """
    name = package.partition(".")[0]
    hint = f"; {instead}" if instead else ""
    return ConfigError(
        f'{why} needs {name}, which cannot be imported ({reason}). Install it: pip install "selfcorrect[{extra}]"{hint}.'
    )
