"""The directory of a comparison: runs of several methods, with a card for each method and the trials of settings.

trials.json        the settings that were tried, the result of each trial, and the settings chosen for each row
ROW/method.json    the card next to the runs of one method (one per seed), with its name in the report

Both are sealed when they are written. A card that somebody wrote by hand, or an earlier version, has no seal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfcorrect.documents import read_json
from selfcorrect.errors import DataError
from selfcorrect.storage.files import copy_file, json_page, plain_folder, refusals, write_atomically
from selfcorrect.storage.seal import sealed_document, unsealed_document
from selfcorrect.storage.shapes import CARD_SHAPE, TRIALS_SHAPE, Shape, check_shape

TRIALS = "trials.json"
METHOD_CARD = "method.json"


def write_card(method: Path, card: Mapping[str, Any]) -> None:
    """Write a method's card, and make its directory where it is missing.

    Raises:
        RunDirectoryError: the card cannot be written.
    """
    with refusals(method):
        plain_folder(method)
        write_atomically(method / METHOD_CARD, json_page(sealed_document(card)))


def read_card(method: Path) -> dict[str, Any]:
    """Return a method's card, or an empty one where the file is missing.

    Raises:
        DataError: the card is damaged.
    """
    return _read(method / METHOD_CARD, CARD_SHAPE)


def write_trials(comparison: Path, trials: Mapping[str, Any]) -> None:
    """Write the trials of a comparison.

    Raises:
        RunDirectoryError: the trials cannot be written.
    """
    with refusals(comparison):
        write_atomically(comparison / TRIALS, json_page(sealed_document(trials)))


def read_trials(comparison: Path) -> dict[str, Any]:
    """Return the trials of a comparison, or an empty mapping where the file is missing.

    Raises:
        DataError: the trials are damaged.
    """
    return _read(comparison / TRIALS, TRIALS_SHAPE)


def copy_card(method: Path, out: Path) -> list[Path]:
    """Copy a method's card, if it has one, into the directory ``out``; return the files written.

    Raises:
        DataError: the card is damaged.
    """
    read_card(method)
    return _copied(method / METHOD_CARD, out)


def copy_trials(comparison: Path, out: Path) -> list[Path]:
    """Copy the trials of a comparison, if there are any, into the directory ``out``; return the files written.

    Raises:
        DataError: the trials are damaged.
    """
    read_trials(comparison)
    return _copied(comparison / TRIALS, out)


def _copied(file: Path, out: Path) -> list[Path]:
    return [copy_file(file, out / file.name)] if file.is_file() else []


def _read(file: Path, shape: Shape) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, but must hold a JSON object: restore or remove it.")
    try:
        check_shape(content, shape)
        return unsealed_document(content)
    except ValueError as error:
        raise DataError(
            f"{file} is damaged: {error}. Restore or remove it; if you edited it on purpose, remove its line with the seal."
        ) from None
