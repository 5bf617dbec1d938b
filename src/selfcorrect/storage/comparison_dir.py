"""The directory of a comparison: runs of several methods, with a card for each method and the trials of settings.

trials.json        the settings that were tried, the result of each trial, and the settings chosen for each row
ROW/method.json    the card next to the runs of one method (one per seed), with its name in the report
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.errors import DataError
from selfcorrect.storage.files import refusals, write_atomically

TRIALS = "trials.json"
METHOD_CARD = "method.json"


def write_card(method: Path, card: Mapping[str, Any]) -> None:
    """Write a method's card, and make its directory where it is missing.

    Raises:
        RunDirectoryError: the card cannot be written.
    """
    with refusals(method):
        method.mkdir(parents=True, exist_ok=True)
        write_atomically(method / METHOD_CARD, _pretty(card))


def read_card(method: Path) -> dict[str, Any]:
    """Return a method's card, or an empty one where the file is missing.

    Raises:
        DataError: the card is damaged.
    """
    return _read(method / METHOD_CARD)


def write_trials(comparison: Path, trials: Mapping[str, Any]) -> None:
    """Write the trials of a comparison.

    Raises:
        RunDirectoryError: the trials cannot be written.
    """
    with refusals(comparison):
        write_atomically(comparison / TRIALS, _pretty(trials))


def read_trials(comparison: Path) -> dict[str, Any]:
    """Return the trials of a comparison, or an empty mapping where the file is missing.

    Raises:
        DataError: the trials are damaged.
    """
    return _read(comparison / TRIALS)


def copy_card(method: Path, out: Path) -> list[Path]:
    """Copy a method's card, if it has one, into the directory ``out``; return the files written."""
    return _copied(method / METHOD_CARD, out)


def copy_trials(comparison: Path, out: Path) -> list[Path]:
    """Copy the trials of a comparison, if there are any, into the directory ``out``; return the files written."""
    return _copied(comparison / TRIALS, out)


def _copied(file: Path, out: Path) -> list[Path]:
    return [Path(shutil.copyfile(file, out / file.name))] if file.is_file() else []


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, but must hold a JSON object: restore or remove it.")
    return content


def _pretty(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
