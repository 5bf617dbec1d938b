"""Code from outside: optional packages, each installed by an extra, and what settings name as ``module:attribute``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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


def missing_apart(package: str, *, extra: str, why: str, reason: str, instead: str = "") -> ConfigError:
    """Return the error for an optional package that pins others, and so belongs into an environment of its own.

    There this package is not installed yet, so the message has where it came from: no index has it by its name.
    """
    hint = f"; {instead}" if instead else ""
    source = requirement(f"lora,math,{extra}")
    return ConfigError(
        f"{why} needs {package}, which cannot be imported ({reason}). It pins other packages, so install it in an environment "
        f'of its own (python -m venv .venv-{extra}), with the extras of your run: pip install "{source}"{hint}.'
    )


def requirement(extras: str) -> str:
    """Return what pip takes to install this package again, with extras, from where it was installed or is being run."""
    name = f"selfcorrect[{extras}]"
    url, vcs, commit = installed_from()
    if vcs:
        return f"{name} @ {vcs}+{url}@{commit}" if commit else f"{name} @ {vcs}+{url}"
    folder = directory_of(url) or Path(__file__).resolve().parents[2]
    if (folder / "pyproject.toml").is_file():
        return f"{folder}[{extras}]"
    return f"{name} @ {url}" if url else name


def installed_from() -> tuple[str, str, str]:
    """Return the address, the version control and the commit that pip recorded (PEP 610); empty where it recorded none."""
    try:
        found = json.loads(distribution("selfcorrect").read_text("direct_url.json") or "{}")
        control = found.get("vcs_info", {})
        recorded = found.get("url"), control.get("vcs"), control.get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):  # nothing recorded, or nothing readable
        return "", "", ""
    url, vcs, commit = (value if isinstance(value, str) else "" for value in recorded)
    return url, vcs, commit


def directory_of(url: str) -> Path | None:
    """Return the directory that a ``file:`` address names; None for any other address."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    path = Path(unquote(parts.path))
    return path if path.is_dir() else None


def imported(what: str, name: str, place: str, *, directory: str | None = None) -> Any:
    """Import the object at ``place`` (``module:attribute``), to which a setting's ``name`` leads.

    Args:
        what: what it is, such as "engine"; the subject of the message.
        directory: where the module is looked for first; unset = the working directory.

    Raises:
        ConfigError: it cannot be imported; the message says why, and where it was looked for.
    """
    module, _, attribute = place.partition(":")
    directory = directory or str(Path.cwd())
    try:
        # Only what is named by its place may lie in the directory: a file there must not take the place of what this
        # package or an installed one imports.
        with importable(directory) if name == place else contextlib.nullcontext():
            importlib.invalidate_caches()  # the module may have been written a moment ago
            found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs other people's code
        raise ConfigError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {error}). The module is looked for in "
            f"{directory} and among the installed packages, {attribute!r} in the module."
        ) from error
    return found


@contextlib.contextmanager
def importable(directory: str) -> Iterator[None]:
    """Put a directory first on the import path within the block."""
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(directory)
