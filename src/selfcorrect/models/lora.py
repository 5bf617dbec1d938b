"""LoRA adapters over one set of weights, shared by the base, the policy and earlier stages; one is active at a time.

`peft` keeps the adapters by name inside the model's layers. The policy (the model with an adapter) and the reference (the
model without) are two views of the same memory; `Adapters.on` switches between them.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.config.schema import LoRAConfig
from selfcorrect.documents import read_json
from selfcorrect.errors import ConfigError, DataError, ModelError
from selfcorrect.extras import require
from selfcorrect.models.placement import LOCAL, Placement
from selfcorrect.models.reading import readable

ADAPTER_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


class Adapters:
    """The adapters of one model, possibly none.

    Between calls the *resting* adapter, the policy's, is active: a backward pass that recomputes layers must find the
    weights that its forward pass used. ``placement`` says where the weights below the adapters lie.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.placement: Placement = LOCAL
        self.peft: Any = None
        self._on: str | None = None
        self.takes_masks: bool | None = None  # of the model below, so of all views

    @contextlib.contextmanager
    def on(self, name: str | None) -> Iterator[None]:
        """Activate this adapter within the block; None: the plain weights."""
        before = self._on
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def create(self, name: str, settings: LoRAConfig, seed: int) -> None:
        """Create an adapter and make it the resting one. B is 0, so it changes nothing yet; A is drawn from ``seed``.

        Raises:
            ConfigError: the model has no such layers, or they share their weight with others.
        """
        config = peft_package().LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=_targets(settings),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            try:
                self._add(name, config)
            except ValueError as error:  # peft raises this if no layer has such a name
                raise ConfigError(f"model.lora.target_modules = {list(settings.target_modules)}: {error}") from None
        if self._on_shared_weight(name):
            raise ConfigError(
                f"model.lora.target_modules = {list(settings.target_modules)}: this model's head and its embedding share one "
                "weight, so an adapter on one cannot be merged into it: leave both out."
            )
        self._switch(name)

    def load(self, name: str, directory: Path, *, rest: bool = False) -> None:
        """Load an adapter from a directory in peft's format; ``rest`` makes it the resting one, which can be trained.

        Raises:
            ModelError: the adapter is damaged or does not fit the model, or it is on a weight that head and embedding share.
        """
        peft = peft_package()
        with readable(f"the adapter in {directory}"):
            self._load(peft, name, directory, rest=rest)

    def _load(self, peft: Any, name: str, directory: Path, *, rest: bool) -> None:
        from safetensors.torch import load_file

        before = self._on
        config = peft.LoraConfig.from_pretrained(str(directory))
        if getattr(config, "megatron_config", None):  # peft would import whatever module `megatron_core` names
            raise ModelError(
                f"{directory}: an adapter for Megatron is not supported: remove megatron_config from its file."
            )
        config.base_model_name_or_path = None  # the caller chooses the weights
        self._add(name, config)
        found = peft.set_peft_model_state_dict(self.peft, load_file(directory / WEIGHTS_FILE), adapter_name=name)
        if found.unexpected_keys or any("lora_" in key and f".{name}." in key for key in found.missing_keys):
            raise ModelError(f"{directory}: this adapter does not fit {type(self.model).__name__}.")
        if self._on_shared_weight(name):
            raise ModelError(
                f"{directory}: this adapter is on the head or the embedding of a model in which both share one weight, so it "
                "cannot be merged into that weight."
            )
        self._switch(name if rest or before == name else before)
        if rest:  # peft freezes what a file says is for inference, until the adapter is switched off and on
            for parameter in self.parameters(name):
                parameter.requires_grad_(True)

    def save(self, name: str, directory: Path, base: str) -> None:
        """Write the adapter in peft's format; `adapter_config.json` names ``base`` as its base model."""
        from safetensors.torch import save_file

        config = copy.deepcopy(self.peft.peft_config[name])
        config.inference_mode, config.base_model_name_or_path = True, base
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # a set, whose order differs between processes
        config.save_pretrained(str(directory))
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self.tensors(name).items()}
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def merge(self, name: str) -> Any:
        """Return the plain model with the adapter merged into its weights; this removes all adapters."""
        merged = self.peft.merge_and_unload(adapter_names=[name])
        self.peft = self._on = None
        return merged

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return the adapter's weights."""
        return [p for key, p in self.model.named_parameters() if "lora_" in key and name in key.split(".")]

    def added(self) -> set[nn.Parameter]:
        """Return the weights of all adapters."""
        return {p for key, p in self.model.named_parameters() if "lora_" in key}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the adapter's weights under the names in its file."""
        found: dict[str, Tensor] = peft_package().get_peft_model_state_dict(
            self.peft, adapter_name=name, save_embedding_layers=False
        )
        return found

    def plain_tensors(self) -> dict[str, Tensor]:
        """Return the weights below the adapters under the names of the plain model; tied names have the same tensor.

        Those of a sharded model are shards.
        """
        everything = self.model.state_dict(keep_vars=True)
        detached = {id(weight): weight.detach() for weight in everything.values()}
        return {
            key.replace(".base_layer.", "."): detached[id(weight)]
            for key, weight in everything.items()
            if "lora_" not in key
        }

    def merged_tensors(self, name: str | None) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights with an adapter merged in, rounded once, under the names of the plain model.

        The model does not change, and only one merged tensor exists at a time. Tied weights come once, under their first
        name, as in a checkpoint.

        Raises:
            ModelError: the adapter does more than add to weights.
        """
        layers = {f"{key}.weight": m for key, m in self.model.named_modules() if name in getattr(m, "lora_A", ())}
        seen: set[int] = set()
        for key, tensor in self.plain_tensors().items():
            if id(tensor) in seen:  # not its address, which shards do not have
                continue
            seen.add(id(tensor))
            whole = self.placement.full(tensor)
            merged = weight_with(layers[key], name, whole) if key in layers else whole
            if merged is None:
                raise ModelError(
                    f"the adapter {name!r} does more to {key.removesuffix('.weight')} than add to its weight (DoRA, or an "
                    "additional bias), so it cannot be merged: use an adapter without these."
                )
            yield key, merged.to(whole.dtype)

    def _on_shared_weight(self, name: str) -> bool:
        """Whether the adapter is on the head or the embedding of a model in which the two are tied."""
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        of_either = name in getattr(head, "lora_A", ()) or name in getattr(embedding, "lora_embedding_A", ())
        return of_either and below_adapters(head).weight is below_adapters(embedding).weight

    def _add(self, name: str, config: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
            if self.peft is None:
                self.peft = peft_package().get_peft_model(self.model, config, adapter_name=name)
                self._on = name
                return
            if name in self.peft.peft_config:  # peft would activate another one by itself
                self._switch(next((other for other in self.peft.peft_config if other != name), None))
                self.peft.delete_adapter(name)
            self.peft.add_adapter(name, config)

    def _switch(self, name: str | None) -> None:
        if name == self._on:
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            self.peft.set_adapter(name)
            if self._on is None:
                self.peft.base_model.enable_adapter_layers()
        self._on = name


def below_adapters(layer: Any) -> nn.Module:
    """Return the layer under LoRA adapters, or the layer itself if it has none."""
    found: nn.Module = layer.get_base_layer() if hasattr(layer, "lora_A") else layer
    return found


def has_adapter(layer: Any, name: str | None) -> bool:
    """Return whether this adapter changes the layer."""
    return name in getattr(layer, "lora_A", ())


def active_adapter(layer: Any) -> str | None:
    """Return the adapter that peft would compute beside this layer now; None if it is none, several, or merged."""
    if layer.disable_adapters or layer.merged:
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    return active[0] if len(active) == 1 else None


def only_adds(layer: Any, name: str | None) -> bool:
    """Return whether the adapter only adds its update to the layer's weight; false of DoRA and of an adapter with a bias."""
    return not has_adapter(layer, name) or not (name in layer.lora_variant or layer.lora_bias.get(name))


def factors(layer: Any, name: str | None) -> tuple[Tensor, Tensor] | None:
    """Return A [R, I] and B [O, R], scaled, of the adapter's update B A to a linear layer; None if the layer has no such one."""
    if name is None or not has_adapter(layer, name):
        return None
    return layer.lora_A[name].weight.detach(), layer.scaling[name] * layer.lora_B[name].weight.detach()


def weight_with(layer: Any, name: str | None, weight: Tensor | None = None) -> Tensor | None:
    """Return a linear layer's weight plus the adapter's update; None if the adapter does more (DoRA, a bias).

    ``weight`` is the layer's own weight where that lies in shards.
    """
    below: Any = below_adapters(layer)
    if not only_adds(layer, name):
        return None
    if not has_adapter(layer, name):
        return getattr(below, "weight", None)
    found: Tensor = (below.weight if weight is None else weight) + layer.get_delta_weight(name)
    return found


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter, not a whole model."""
    return (directory / ADAPTER_FILE).is_file()


def base_of(directory: Path) -> str:
    """Return the base model of an adapter: the run's `base` directory next to it, else the one that the adapter names."""
    run_base = directory.resolve().parent / "base"
    if (run_base / "config.json").is_file():
        return str(run_base)
    try:
        base = dict(read_json(directory / ADAPTER_FILE)).get("base_model_name_or_path")
    except (DataError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{directory / ADAPTER_FILE} cannot be read: {error}") from None
    if not base:
        raise ModelError(f"{directory / ADAPTER_FILE} names no base model: set base_model_name_or_path.")
    return str(base)


def _targets(settings: LoRAConfig) -> str | list[str]:
    return "all-linear" if settings.target_modules == ("all-linear",) else list(settings.target_modules)


def peft_package() -> Any:
    """Return the package `peft`.

    Raises:
        ConfigError: it is not installed.
    """
    return require("peft", extra="lora", why="LoRA")
