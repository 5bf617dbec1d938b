"""Find a model: a directory, a run, a bundled model, or a hub id."""

from __future__ import annotations

import logging
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from selfcorrect.config.schema import Config, ModelConfig
from selfcorrect.config.toml import load_config, with_overrides
from selfcorrect.distributed.loading import load_placed
from selfcorrect.distributed.world import ALONE
from selfcorrect.documents import is_unicode
from selfcorrect.errors import CheckpointError, ConfigError, ModelError
from selfcorrect.models.card import ModelCard
from selfcorrect.models.dtypes import DTYPES, fast_dtype
from selfcorrect.models.families import context_limit
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.models.lora import base_of, is_adapter
from selfcorrect.models.reading import load_tokenizer, readable
from selfcorrect.storage.new_directory import new_directory
from selfcorrect.storage.run_dir import MANIFEST, verify_checkpoint
from selfcorrect.storage.seal import check_sealed_file
from selfcorrect.zoo.hub import cached_settings, hub_model
from selfcorrect.zoo.registry import MADE, RECIPES, Progress, cached_place, made_model, packaged, recipe_card

log = logging.getLogger("selfcorrect")
LIVE = "(live object)"
"""The recorded source of a model that was passed as a live object."""


def device_of(settings: ModelConfig) -> str:
    """Return ``model.device`` with `auto` resolved.

    Raises:
        ConfigError: this machine has no such device.
    """
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if settings.device not in known:
        raise ConfigError(f"model.device = {settings.device!r}: choose from auto, {', '.join(known)}.")
    return settings.device


def dtype_of(settings: ModelConfig) -> str:
    """Return ``model.dtype`` with `auto` resolved."""
    return fast_dtype(device_of(settings)).value if settings.dtype == "auto" else settings.dtype


def settled(config: Config) -> Config:
    """Return the configuration with the dtype that `auto` means on this machine, and say which."""
    if config.model.dtype != "auto":
        return config
    found = dtype_of(config.model)
    log.info("model.dtype = 'auto': %s, which suits %s", found, device_of(config.model))
    return with_overrides(config, [f"model.dtype={found}"])


def loading(settings: ModelConfig) -> dict[str, Any]:
    """Return the arguments of `load_model` for these settings."""
    return {
        "dtype": dtype_of(settings),
        "device": device_of(settings),
        "trust_remote_code": settings.trust_remote_code,
        "cpu_kernels": settings.cpu_kernels,
    }


def find_model(settings: ModelConfig, *, seed: int, progress: Progress | None = None) -> LanguageModel:
    """Load what ``settings.source`` names; make a bundled model that is not in the cache yet.

    Raises:
        ModelError: there is no such model; the message says where it was looked for.
    """
    how = loading(settings)
    return load_placed(place_of(settings, seed=seed, progress=progress), ALONE, shards=False, **how)


def files_of(settings: ModelConfig, *, seed: int, progress: Progress | None = None) -> str:
    """Return the directory of what `find_model` would load; download a hub's model.

    Raises:
        ModelError: see `model_path`.
    """
    place = place_of(settings, seed=seed, progress=progress)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download

    with readable(f"model {place!r}"):
        return str(snapshot_download(place, ignore_patterns=["*/*", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx"]))


def card_of(place: str, settings: ModelConfig) -> ModelCard:
    """Return the card of a model's directory, without reading its weights.

    Raises:
        ModelError: its settings or its tokenizer cannot be read.
    """
    from transformers import AutoConfig

    path = base_of(Path(place)) if is_adapter(Path(place)) else place
    with readable(f"the configuration of model {place!r}"):
        sizes = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    return ModelCard(load_tokenizer(path), context_limit(sizes))


def place_of(
    settings: ModelConfig, *, seed: int, progress: Progress | None = None, settings_alone: bool = False
) -> str:
    """Return the directory or hub id of what ``settings.source`` names; make a bundled model that is not in the cache yet.

    With ``settings_alone``, a hub's model whose ``config.json`` is in the local cache is found there, without a network.

    Raises:
        ModelError: see `model_path`.
    """
    source = settings.source
    if source in MADE:
        source = str(made_model(source, settings.seed if settings.seed is not None else seed, progress=progress))
    return model_path(source, settings_alone=settings_alone)


def foreseen(settings: ModelConfig, *, seed: int) -> ModelCard | None:
    """Return the card of a model that `find_model` would train first, so that inputs that do not fit are rejected early.

    None if the model need not be trained.
    """
    if settings.source not in RECIPES:
        return None
    device_of(settings)
    recipe = RECIPES[settings.source]()
    seed = settings.seed if settings.seed is not None else seed
    made = packaged(settings.source, seed, recipe) or cached_place(settings.source, seed, recipe)
    return None if (made / "config.json").is_file() else recipe_card(seed, recipe)


def find_tokenizer(source: str, *, seed: int = 0) -> Any:
    """Return the tokenizer of what `find_model` would load, without its weights.

    Raises:
        ModelError: there is no such model, or it has no tokenizer.
    """
    settings = ModelConfig(source=source)
    card = foreseen(settings, seed=seed)
    if card is not None:
        return card.tokenizer
    path = Path(place_of(settings, seed=seed))
    return load_tokenizer(base_of(path) if is_adapter(path) else path)


def model_path(source: str, *, settings_alone: bool = False) -> str:
    """Return the directory or hub id of ``source``: ``RUN`` is a run's final kept model, ``RUN:stage`` the model of a stage.

    ``settings_alone``: see `place_of`.

    Raises:
        ModelError: it looks like a path that holds no model, or the run has no such model.
        DataError: see `named_run`.
    """
    if not is_unicode(source):
        raise ModelError(f"model {source!r}: this name is not UTF-8, and weights cannot be read from there: rename it.")
    run, stage = named_run(source)
    if run is not None:
        return _model_of_run(run, stage or ["base", *load_config(run / "config.toml").stages][-1])
    path = Path(source)
    if (path / "config.json").is_file() or is_adapter(path):
        return str(verify_checkpoint(path) if (path / MANIFEST).is_file() else path)
    if source == LIVE:
        raise ModelError("this run used a live model and was killed before saving it: start the run again.")
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1 or source.endswith("/"):
        raise ModelError(
            f"model {source!r}: there is no model directory (config.json) and no run (config.toml) at this path."
        )
    return (cached_settings(source) if settings_alone else None) or hub_model(source)


def named_run(source: str | Path) -> tuple[Path | None, str | None]:
    """Return the run in ``RUN`` or ``RUN:stage``, and the stage; None for each that is missing.

    Raises:
        DataError: the settings of a finished run, which say what its final model is, are damaged.
    """
    before, _, after = str(source).rpartition(":")
    for run, stage in ((before, after), (str(source), None)):
        if run and (Path(run) / "config.toml").is_file():
            check_sealed_file(Path(run), "config.toml")
            return Path(run), stage
    return None, None


def _model_of_run(run: Path, stage: str) -> str:
    known = ["base", *load_config(run / "config.toml").stages]
    if stage not in known:
        raise ModelError(f"run {run} has no stage {stage!r}; there are {', '.join(known)}.")
    try:
        checkpoint = verify_checkpoint(run / "checkpoints" / stage)
        if is_adapter(checkpoint):
            verify_checkpoint(run / "checkpoints/base")
        return str(checkpoint)
    except CheckpointError as error:
        if (run / "summary.json").is_file() and not (run / "checkpoints").is_dir():
            raise ModelError(
                f"run {run} is finished and has no checkpoints: a copy made by `selfcorrect pack`, which keeps no models. "
                f"Train it again: selfcorrect train {quote(str(run / 'config.toml'))} --out DIR"
            ) from None
        raise ModelError(
            f"run {run} has no finished model of {stage!r} yet ({error}) Finish it: "
            f"selfcorrect train --resume {quote(str(run))}"
        ) from None


def merge_adapter(source: str, out: Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> Path:
    """Write a LoRA model as a plain model to the new directory ``out``.

    Raises:
        ModelError: ``source`` has no adapter.
        RunDirectoryError: ``out`` is not empty, or cannot be written.
    """
    path = Path(model_path(source))
    if not is_adapter(path):
        raise ModelError(f"{path} is a full model, so it has no adapter to merge.")
    with new_directory(out) as folder:
        save_merged(path, folder, dtype=dtype, trust_remote_code=trust_remote_code)
    return out


def save_merged(path: Path, folder: Path, *, dtype: str, trust_remote_code: bool) -> None:
    """Write a model as a plain one: add its adapter, if it is one, to the base's weights in float32, and round once."""
    model = load_model(path, trust_remote_code=trust_remote_code).merged()
    model.model.to(DTYPES[dtype])
    model.save(folder)
