"""Load a model as shards: every process reads its own part of the files, so none holds the whole of it.

A training checkpoint of a sharded run has its weights only in files of shards, from which one process can load all of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.config.schema import Config
from selfcorrect.distributed.shard_files import STATE, names_in, read_shards
from selfcorrect.distributed.shards import is_shard, placed, shard
from selfcorrect.distributed.world import World
from selfcorrect.errors import ModelError
from selfcorrect.models.dtypes import DTYPES, ROUNDED
from selfcorrect.models.language_model import LanguageModel, load_model
from selfcorrect.models.lora import Adapters, is_adapter
from selfcorrect.models.reading import load_tokenizer, readable

WEIGHTS = "weights."
"""The beginning of the weights' names among the shards of a training state."""
log = logging.getLogger("selfcorrect")


def in_shards(config: Config, world: World) -> bool:
    """Return whether a run's models lie in shards over its processes."""
    return config.distributed.shard and world.size > 1


def load_placed(
    source: str | Path,
    world: World,
    *,
    shards: bool,
    trained: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    cpu_kernels: bool = True,
) -> LanguageModel:
    """Load a model whole, or as ``shards`` over the processes, which then all call it together.

    ``trained`` says whether its weights will be trained; those of other sharded models are frozen. A model whose files do not
    hold its weights by their names, one by one, is first loaded whole into the host's memory of every process.

    Raises:
        ModelError: the model cannot be loaded.
    """
    path = Path(source)
    how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if not shards or world.size == 1:
        if (path / STATE).is_dir():
            return _whole_of_shards(path, device=device, cpu_kernels=cpu_kernels, **how)
        return load_model(source, device=device, cpu_kernels=cpu_kernels, **how)
    with world.together():
        found = _by_parts(path, **how)
    if world.any(found is None) or found is None:
        return _whole_first(source, world, trained=trained, device=device, cpu_kernels=cpu_kernels, **how)
    root, names = found
    root.requires_grad_(trained)
    place = placed(root, world, dtype=DTYPES[dtype], device=torch.device(device).type)
    with world.together(), readable(f"model {str(source)!r}"):
        _materialize(root, device)
        _fill(root, path, names, place.rounded)
        tokenizer = load_tokenizer(path)
    adapters = Adapters(root)
    adapters.placement = place
    return LanguageModel(root, tokenizer, adapters=adapters, cpu_kernels=cpu_kernels)


def _by_parts(path: Path, *, dtype: str, trust_remote_code: bool) -> tuple[Any, Mapping[str, str]] | None:
    """Return a directory's model without weights, and under which names its files hold these; None if they do not."""
    if not path.is_dir() or is_adapter(path):
        return None
    try:
        with readable(f"model {str(path)!r}"):
            root = _without_weights(path, dtype=dtype, trust_remote_code=trust_remote_code)
            names = stored_names(path, root, DTYPES[dtype])
    except ModelError:
        if (path / STATE).is_dir():
            raise
        return None  # `transformers` may be able to, or says what is wrong
    return None if names is None else (root, names)


def _whole_first(
    source: str | Path, world: World, *, trained: bool, device: str, cpu_kernels: bool, **how: Any
) -> LanguageModel:
    log.info(f"model {str(source)!r} cannot be read by parts: every process loads it whole before it is sharded")
    with world.together():
        model = load_model(source, cpu_kernels=cpu_kernels and device == "cpu", **how).merged()
        model.model.requires_grad_(trained)
    shard(model, world, device=device)
    return model


# -- what a model's files hold -------------------------------------------------------------------------------------


def stored_names(path: Path, root: Any, dtype: torch.dtype) -> Mapping[str, str] | None:
    """Return under which name the files hold each weight of the model, by the weight's first name.

    None if the files cannot be read tensor by tensor: another format, other names (of an older version, or of a decoder
    without its head), a weight twice, or weights that keep a dtype of their own.
    """
    if (path / STATE).is_dir():
        return {name: WEIGHTS + name for name in _weights(root)}
    files = names_in(path)
    wanted = _files_of_model(path)
    if wanted is None or not wanted <= set(files) or getattr(root.config, "quantization_config", None):
        return None
    own_dtypes = any(getattr(root, kind, None) for kind in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    if own_dtypes and dtype in ROUNDED:
        return None
    stored = Counter(name for names in files.values() for name in names)
    names: dict[str, str] = {}
    for first, others in aliases(root).items():
        present = [name for name in others if name in stored]
        if len(present) != 1 or stored[present[0]] != 1:
            return None
        names[first] = present[0]
    return names


def _files_of_model(path: Path) -> set[str] | None:
    """Return the files from which `transformers` reads a model's weights; None if there are none in safetensors' format."""
    if (path / "model.safetensors").is_file():
        return {"model.safetensors"}
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return None
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # `transformers` says what is wrong with it


def aliases(root: Any) -> dict[str, list[str]]:
    """Return all names of every weight and stored buffer, by the first one; tied weights have several."""
    found: dict[int, list[str]] = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in found.values()}


def _weights(root: Any) -> dict[str, Tensor]:
    """Return every weight and stored buffer once, under its first name."""
    everything = root.state_dict(keep_vars=True)
    return {name: everything[name].detach() for name in aliases(root)}


# -- a model without its weights, and how they come into it --------------------------------------------------------


def _without_weights(path: Path, *, dtype: str, trust_remote_code: bool) -> Any:
    """Return the model of a directory with its buffers but without its weights, which are on the `meta` device."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with readable(f"model {str(path)!r}"), _parameters_on_meta():
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        root = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
        if root.can_generate() and (path / "generation_config.json").is_file():
            root.generation_config = GenerationConfig.from_pretrained(path)
    root.config._name_or_path = root.name_or_path = str(path)
    return root.eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Create parameters, but not buffers, on the `meta` device within the block: formulas give the buffers, files the weights."""
    register = nn.Module.register_parameter

    def without_memory(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # one that is tied stays one
            param = nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _materialize(root: Any, device: str) -> None:
    """Give the weights memory, without values; buffers keep theirs."""
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
    root.to_empty(device=device)
    for name, buffer in root.named_buffers():
        buffer.copy_(buffers[name])


@torch.no_grad()
def _fill(root: Any, path: Path, names: Mapping[str, str], rounded: torch.dtype | None) -> None:
    """Read the weights. Files of a plain model are rounded to the dtype that the model computes with, as always."""
    folder, weights = path, _weights(root)
    if (path / STATE).is_dir():
        folder, rounded = path / STATE, None
    narrow = {name for name, tensor in weights.items() if rounded is not None and is_shard(tensor)}
    targets = {
        name: torch.empty_like(tensor, dtype=rounded) if name in narrow else tensor for name, tensor in weights.items()
    }
    read_shards({names[name]: target for name, target in targets.items()}, folder)
    for name in narrow:
        weights[name].copy_(targets[name])


def _whole_of_shards(
    path: Path, *, dtype: str, device: str, trust_remote_code: bool, cpu_kernels: bool
) -> LanguageModel:
    """Load all of a model of which a training state has only shards."""
    root = _without_weights(path, dtype=dtype, trust_remote_code=trust_remote_code)
    with readable(f"model {str(path)!r}"):
        _materialize(root, device)
        root.tie_weights()
        _fill(root, path, {name: WEIGHTS + name for name in _weights(root)}, None)
    return LanguageModel(root, load_tokenizer(path), cpu_kernels=cpu_kernels)


def blank_of(path: Path, *, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the model of a directory with all weights on the `meta` device, and its tokenizer."""
    return _without_weights(path, dtype=dtype, trust_remote_code=trust_remote_code), load_tokenizer(path)


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """Return every weight of a sharded model once, for `load_placed` to find it in a training state."""
    return {WEIGHTS + name: tensor for name, tensor in _weights(model.model).items()}
