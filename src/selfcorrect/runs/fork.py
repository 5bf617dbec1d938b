"""Going on from a finished run with further stages: runs that share their first stages need not train them twice."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import as_stored, load_config, make_config, to_toml
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runs.checkpoints import TRAINER_STATE, TrainingState, config_digest, is_training_state
from selfcorrect.runs.run import Summary, resume
from selfcorrect.storage.files import refusals, write_atomically
from selfcorrect.storage.run_dir import MANIFEST, RunDirectory, check_free
from selfcorrect.tasks import Task

COPIED = ("metrics.jsonl", "timings.jsonl")


def config_prefix(config: Config, stages: int) -> Config:
    """The same run with its first ``stages`` stages only, evaluated with as many attempts as the whole."""
    settings = config.model_dump()
    settings["eval"]["turns"] = config.turns
    return make_config({**settings, "stages": dict(list(settings["stages"].items())[:stages])})


def fork(
    source: Path, config: Config, out: Path, *, task: Task | None = None, callbacks: Callbacks | None = None
) -> Summary:
    """A new run in ``out`` whose first stages, and the evaluations of these, are those of the finished run ``source``.

    It ends with the bits of a run that `run.train` makes with ``config``. Checkpoints are linked, not copied, where the
    file system can: nobody ever writes into one.

    Raises:
        ConfigError: ``source`` is not finished, or not the beginning of ``config``.
        RunDirectoryError: ``out`` holds something already.
    """
    if not (source / "summary.json").is_file():
        raise ConfigError(f"{source} is not finished: let it finish with `selfcorrect train --resume {source}`.")
    begun, config = load_config(source / "config.toml"), as_stored(config)
    if config_prefix(begun, len(begun.stages)) != config_prefix(config, len(begun.stages)):
        raise ConfigError(
            f"{source} is not the beginning of this run: but for further stages, their settings have to be the same."
        )
    check_free(out)
    with refusals(out):
        writing = out.with_name(f".{out.name}.begun")
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        shutil.copytree(source / "checkpoints", writing / "checkpoints", copy_function=_linked)
        shutil.copytree(source / "episodes", writing / "episodes")
        for name in COPIED:
            if (source / name).exists():
                shutil.copy2(source / name, writing / name)
        write_atomically(writing / "config.toml", to_toml(config))
        _claim_states(writing, config)
        shutil.rmtree(out)  # empty: a directory takes the place of a missing one only
        writing.rename(out)
    return resume(out, task=task, callbacks=callbacks)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _claim_states(run: Path, config: Config) -> None:
    """Write into the training states that they belong to these settings."""
    directory = RunDirectory.open(run)
    try:
        for name in filter(is_training_state, directory.checkpoints()):
            place = directory.verify_checkpoint(name)
            state = replace(TrainingState.read(place / TRAINER_STATE), config=config_digest(config))

            def fill(folder: Path, place: Path = place, state: TrainingState = state) -> None:
                for file in place.iterdir():
                    if file.name not in (TRAINER_STATE, MANIFEST):
                        _linked(str(file), str(folder / file.name))
                state.write(folder / TRAINER_STATE)

            directory.save_checkpoint(name, fill)
    finally:
        directory.close()
        (run / ".lock").unlink()
