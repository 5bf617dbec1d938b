"""Write the plain Hugging Face directory of a model in shards. A process holds at most a file's tensors at a time.

`transformers` itself says what a directory contains: it saves the model once with a number in place of every weight. The
files that result show the names under which it stores each weight, and the weights follow.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfcorrect.distributed.loading import WEIGHTS, aliases, blank_of, weights_of
from selfcorrect.distributed.shard_files import STATE, read_shards
from selfcorrect.distributed.world import World
from selfcorrect.models import language_model
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.reading import silent_bars
from selfcorrect.storage.run_dir import MANIFEST

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Read = Callable[[Sequence[str], bool], dict[str, Tensor]]
"""Return tensors by their names in the model; a process that does not keep them returns none, but takes part."""


def save_from_shards(model: LanguageModel, folder: Path, world: World) -> list[Path]:
    """Write a sharded model as a plain directory; return the files that this process wrote. All processes call it together."""
    weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in weights_of(model).items()}

    def read(names: Sequence[str], keeps: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in names:
            whole = model.placement.full(weights[name])
            if keeps:
                found[name] = whole.cpu()
        return found

    written = _write(model.placement.blank, folder, world, read)
    if written is None:  # its directory holds other tensors than the model
        everything = model.saved_weights()
        with world.together():
            if world.first:
                model.save(folder, everything)
        return []
    with world.together():
        if world.first:
            model.tokenizer.save_pretrained(folder)
    return written


def save_from_state(checkpoint: Path, folder: Path, world: World, *, dtype: str, trust_remote_code: bool) -> list[Path]:
    """Write the model of a training state of shards as a plain directory; return the files that this process wrote.

    All processes call it together.
    """
    with world.together():
        blank, tokenizer = blank_of(checkpoint, dtype=dtype, trust_remote_code=trust_remote_code)
    sizes = blank.state_dict()

    def read(names: Sequence[str], keeps: bool) -> dict[str, Tensor]:
        found = {name: torch.empty_like(sizes[name], device="cpu") for name in names} if keeps else {}
        if found:
            read_shards({WEIGHTS + name: tensor for name, tensor in found.items()}, checkpoint / STATE)
        return found

    written = _write(blank, folder, world, read)
    with world.together():
        if written is None and world.first:
            names = list(aliases(blank))
            with silent_bars():
                blank.save_pretrained(folder, state_dict=read(names, True), max_shard_size=language_model.FILE_BYTES)
        if world.first:
            tokenizer.save_pretrained(folder)
    return written or []


def _write(blank: Any, folder: Path, world: World, read: Read) -> list[Path] | None:
    """Write settings and weights of a model, whose files the processes share; None if it is not stored weight by weight."""
    stored = world.from_first(lambda: _stored(blank, folder))
    if stored is None:
        return None
    sizes = blank.state_dict()
    split = split_torch_state_dict_into_shards(
        {name: sizes[weight] for name, weight in stored.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=language_model.FILE_BYTES,
    )
    written = []
    for place, (file, names) in enumerate(split.filename_to_tensors.items()):
        keeps = place % world.size == world.rank
        tensors = read([stored[name] for name in names], keeps)
        with world.together():
            if keeps:
                content = {name: tensors[stored[name]].contiguous() for name in names}
                save_file(content, folder / file, metadata={"format": "pt"})
                written.append(folder / file)
                del content
        del tensors
    with world.together():
        if split.is_sharded and world.first:
            totals = {"total_parameters": blank.num_parameters(), **split.metadata}
            index = {"metadata": totals, "weight_map": split.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return written


def _stored(blank: Any, folder: Path) -> dict[str, str] | None:
    """Save all but the weights, and return which weight of the model each name in its files stands for.

    None if something there is not one weight as it is: a family may be stored under another arrangement.
    """
    names = list(aliases(blank))
    with silent_bars(), tempfile.TemporaryDirectory(dir=folder, prefix=".") as trial:
        try:
            blank.save_pretrained(trial, state_dict=_numbers(blank))
            found = load_file(Path(trial) / SINGLE)
        except (RuntimeError, ValueError, IndexError, KeyError, FileNotFoundError):
            return None
        (Path(trial) / SINGLE).unlink()
        if any(tensor.shape != (1,) for tensor in found.values()):
            return None
        stored = {name: names[int(tensor)] for name, tensor in found.items()}
        if sorted(stored.values()) != sorted(names):
            return None
        for item in Path(trial).iterdir():
            item.rename(folder / item.name)
    return stored


def _numbers(blank: Any) -> dict[str, Tensor]:
    """Return a number for every weight under all of its names."""
    found: dict[str, Tensor] = {}
    for number, others in enumerate(aliases(blank).values()):
        found |= dict.fromkeys(others, torch.tensor([number]))
    return found


def copy_settings(source: Path, folder: Path) -> None:
    """Copy all of a saved model's directory but its weights and its seal."""
    for file in source.iterdir():
        if file.name != MANIFEST and ".safetensors" not in file.name:
            shutil.copy2(file, folder / file.name)
