"""Export a run's model: a plain Hugging Face directory with a card."""

from __future__ import annotations

import shutil
from pathlib import Path

from selfcorrect.config.toml import load_config
from selfcorrect.documents import open_regular
from selfcorrect.errors import ModelError
from selfcorrect.models.lora import is_adapter
from selfcorrect.report.model_card import CARD, model_card
from selfcorrect.storage.new_directory import new_directory
from selfcorrect.storage.run_dir import MANIFEST
from selfcorrect.zoo.resolve import model_path, named_run, save_merged


def export_model(source: str, out: Path, *, dtype: str | None = None, trust_remote_code: bool = False) -> Path:
    """Write the model of ``RUN`` or ``RUN:STAGE`` with its card to the new directory ``out``.

    An adapter is merged into its base, in float32, and rounded once. A whole model keeps its dtype unless ``dtype`` is given.

    Raises:
        ModelError: ``source`` is no run, or has no such model.
        RunDirectoryError: ``out`` is not empty.
    """
    if named_run(source)[0] is None:
        raise ModelError(f"{source} is not a run (RUN or RUN:STAGE), so nothing is known for a card.")
    path = Path(model_path(source))
    with new_directory(out) as folder:
        if is_adapter(path) or dtype is not None:
            save_merged(path, folder, dtype=dtype or "float32", trust_remote_code=trust_remote_code)
        else:
            _copy(path, folder)
        add_card(source, folder)
    return out


def add_card(source: str, folder: Path) -> None:
    """Write the card of the model of ``RUN`` or ``RUN:STAGE`` into its directory; there is none for another model."""
    run, stage = named_run(source)
    if run is not None:
        stage = stage or ["base", *load_config(run / "config.toml").stages][-1]
        (folder / CARD).write_text(model_card(run, stage), encoding="utf-8")


def _copy(model: Path, folder: Path) -> None:
    for file in sorted(model.iterdir()):
        if file.name != MANIFEST:
            with open_regular(file) as source, (folder / file.name).open("wb") as target:
                shutil.copyfileobj(source, target)
