"""Fork a finished run and add stages to it, so that runs with the same first stages train them once."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from shlex import quote

from selfcorrect.config.digest import config_digest
from selfcorrect.config.schema import Config
from selfcorrect.config.toml import as_stored, load_config, make_config, to_toml
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.errors import ConfigError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.runs.checkpoints import TRAINER_STATE, TrainingState, is_training_state
from selfcorrect.runs.run import Summary, resume
from selfcorrect.storage.consent import names_of_config
from selfcorrect.storage.files import refusals, refuse_links, remove_tree, write_atomically
from selfcorrect.storage.run_dir import MANIFEST, RunDirectory, check_free
from selfcorrect.tasks import Task

COPIED = ("metrics.jsonl", "timings.jsonl")


def config_prefix(config: Config, stages: int) -> Config:
    """Return the run's config with its first ``stages`` stages only, evaluated with as many attempts as the whole."""
    settings = config.model_dump()
    settings["eval"]["turns"] = config.turns
    return make_config({**settings, "stages": dict(list(settings["stages"].items())[:stages])})


def fork(
    source: Path,
    config: Config,
    out: Path,
    *,
    task: Task | None = None,
    callbacks: Callbacks | None = None,
    world: World = ALONE,
) -> Summary:
    """Start a run in ``out`` from the stages and evaluations of the finished run ``source``, and finish it.

    It ends with the same bits as `run.train` with ``config``. Checkpoints are linked rather than copied where the file
    system allows it: nothing ever writes into one. Of several processes the first one starts it, and all finish it.

    Raises:
        ConfigError: ``source`` is not finished, or its config is not a prefix of ``config``.
        RunDirectoryError: ``out`` is not empty.
    """
    world.from_first(lambda: _start(source, config, out))
    return resume(out, task=task, callbacks=callbacks, allow_code=names_of_config(config), world=world)


def _start(source: Path, config: Config, out: Path) -> None:
    """Write the directory of a run that has the stages of ``source``."""
    if not (source / "summary.json").is_file():
        raise ConfigError(
            f"{source} is not finished: finish it with `selfcorrect train --resume {quote(str(source))}`."
        )
    begun, config = load_config(source / "config.toml"), as_stored(config)
    if config_prefix(begun, len(begun.stages)) != config_prefix(config, len(begun.stages)):
        raise ConfigError(
            f"{source} cannot be forked into this run: all their settings must be the same, except for added stages."
        )
    refuse_links(source)
    check_free(out)
    with refusals(out):
        writing = out.with_name(f".{out.name}.begun")
        remove_tree(writing)
        writing.mkdir(parents=True)
        shutil.copytree(source / "checkpoints", writing / "checkpoints", copy_function=_linked)
        shutil.copytree(source / "episodes", writing / "episodes")
        for name in COPIED:
            if (source / name).exists():
                shutil.copy2(source / name, writing / name)
        write_atomically(writing / "config.toml", to_toml(config))
        _claim_states(writing, config)
        shutil.rmtree(out)  # it is empty, and a rename needs a missing target
        writing.rename(out)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _claim_states(run: Path, config: Config) -> None:
    """Write the digest of these settings into the training states."""
    directory = RunDirectory.open(run)
    try:
        for name in filter(is_training_state, directory.checkpoints()):
            place = directory.verify_checkpoint(name)
            state = replace(TrainingState.read(place / TRAINER_STATE), config=config_digest(config))

            def fill(folder: Path, place: Path = place, state: TrainingState = state) -> None:
                rewritten = shutil.ignore_patterns(TRAINER_STATE, MANIFEST)
                shutil.copytree(place, folder, copy_function=_linked, ignore=rewritten, dirs_exist_ok=True)
                state.write(folder / TRAINER_STATE)

            directory.save_checkpoint(name, fill)
    finally:
        directory.close()
        (run / ".lock").unlink()
