"""LoRA adapters over one set of weights: the base, the policy and earlier stages share it, and one of them computes at a time.

`peft` keeps the adapters inside the model's own layers, by name. A model "with adapter a" and the same model "with
none" (the reference) are then two views on the same memory; `Adapters.on` switches between them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.config.schema import LoRAConfig
from selfcorrect.errors import ConfigError, ModelError
from selfcorrect.extras import require

ADAPTER_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


class Adapters:
    """The adapters of one model; without any, everything here does nothing.

    Between calls the *resting* adapter is on: that of the policy, since a backward pass that recomputes layers must
    find the weights that its forward pass saw.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.peft: Any = None
        self._on: str | None = None

    @contextlib.contextmanager
    def on(self, name: str | None) -> Iterator[None]:
        """Compute with this adapter, or with None."""
        before = self._on
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def create(self, name: str, settings: LoRAConfig, seed: int) -> None:
        """A new adapter, which changes nothing yet (B = 0), its A drawn from ``seed``; it rests from now on.

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
            except ValueError as error:  # peft's way to say that no layer has such a name
                raise ConfigError(f"model.lora.target_modules = {list(settings.target_modules)}: {error}") from None
        if self._on_shared_weight(name):
            raise ConfigError(
                f"model.lora.target_modules = {list(settings.target_modules)}: this model's head and its embedding share one "
                "weight, so an adapter of one cannot be added into it: leave both out."
            )
        self._switch(name)

    def load(self, name: str, directory: Path, *, rest: bool = False) -> None:
        """An adapter from a directory in peft's format."""
        peft = peft_package()
        from safetensors.torch import load_file

        before = self._on
        config = peft.LoraConfig.from_pretrained(str(directory))
        config.base_model_name_or_path = None  # which weights it is for is decided here
        self._add(name, config)
        found = peft.set_peft_model_state_dict(self.peft, load_file(directory / WEIGHTS_FILE), adapter_name=name)
        if found.unexpected_keys or any("lora_" in key and f".{name}." in key for key in found.missing_keys):
            raise ModelError(f"{directory}: this adapter does not fit {type(self.model).__name__}.")
        if self._on_shared_weight(name):
            raise ModelError(
                f"{directory}: this adapter is of the head or the embedding of a model in which both share one weight, so it "
                "cannot be added into it."
            )
        self._switch(name if rest or before == name else before)

    def save(self, name: str, directory: Path, base: str) -> None:
        """Write the adapter in peft's format; ``base`` is what `adapter_config.json` names as its base model."""
        from safetensors.torch import save_file

        config = copy.deepcopy(self.peft.peft_config[name])
        config.inference_mode, config.base_model_name_or_path = True, base
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # a set: its order differs from process to process
        config.save_pretrained(str(directory))
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self.tensors(name).items()}
        save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def merge(self, name: str) -> Any:
        """The plain model with the adapter added into its weights; all adapters are gone afterwards."""
        merged = self.peft.merge_and_unload(adapter_names=[name])
        self.peft = self._on = None
        return merged

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's own weights."""
        return [p for key, p in self.model.named_parameters() if "lora_" in key and name in key.split(".")]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's own weights, under the names of its file."""
        found: dict[str, Tensor] = peft_package().get_peft_model_state_dict(
            self.peft, adapter_name=name, save_embedding_layers=False
        )
        return found

    def plain_tensors(self) -> dict[str, Tensor]:
        """The weights below the adapters, under the names of the plain model."""
        everything = self.model.state_dict()
        return {key.replace(".base_layer.", "."): t for key, t in everything.items() if "lora_" not in key}

    def merged_tensors(self, name: str | None) -> Iterator[tuple[str, Tensor]]:
        """The weights with an adapter added in, rounded once, one tensor at a time under the names of the plain model.

        Nothing is changed, and no more than one merged tensor exists at a time. Tied weights come once, under their
        first name, as in a checkpoint.

        Raises:
            ModelError: the adapter does more than add to weights.
        """
        layers = {f"{key}.weight": m for key, m in self.model.named_modules() if name in getattr(m, "lora_A", ())}
        seen: set[int] = set()
        for key, tensor in self.plain_tensors().items():
            if tensor.data_ptr() in seen:
                continue
            seen.add(tensor.data_ptr())
            merged = weight_with(layers[key], name) if key in layers else tensor
            if merged is None:
                raise ModelError(
                    f"the adapter {name!r} does more to {key.removesuffix('.weight')} than to add to its weight (DoRA, or a "
                    "bias of its own), so it cannot be merged: use one without."
                )
            yield key, merged.to(tensor.dtype)

    def _on_shared_weight(self, name: str) -> bool:
        """Whether the adapter is one of the head or of the embedding, where these are tied."""
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        of_either = name in getattr(head, "lora_A", ()) or name in getattr(embedding, "lora_embedding_A", ())
        return of_either and below_adapters(head).weight is below_adapters(embedding).weight

    def _add(self, name: str, config: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going out of use
            if self.peft is None:
                self.peft = peft_package().get_peft_model(self.model, config, adapter_name=name)
                self._on = name
                return
            if name in self.peft.peft_config:  # peft would turn on another one by itself
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
    """The layer under LoRA adapters, or the layer itself where there are none."""
    found: nn.Module = layer.get_base_layer() if hasattr(layer, "lora_A") else layer
    return found


def weight_with(layer: Any, name: str | None) -> Tensor | None:
    """A linear layer's weight with what an adapter adds to it; None where the adapter does more than that (DoRA, a bias)."""
    below: Any = below_adapters(layer)
    if name not in getattr(layer, "lora_A", ()):
        return getattr(below, "weight", None)
    if name in layer.lora_variant or layer.lora_bias.get(name):
        return None
    found: Tensor = below.weight + layer.get_delta_weight(name)
    return found


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter and not a whole model."""
    return (directory / ADAPTER_FILE).is_file()


def base_of(directory: Path) -> str:
    """The base model of an adapter: the run's own `base` beside it, else what the adapter says."""
    beside = directory.resolve().parent / "base"
    if (beside / "config.json").is_file():
        return str(beside)
    base = json.loads((directory / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{directory / ADAPTER_FILE} names no base model (base_model_name_or_path).")
    return str(base)


def _targets(settings: LoRAConfig) -> str | list[str]:
    return "all-linear" if settings.target_modules == ("all-linear",) else list(settings.target_modules)


def peft_package() -> Any:
    """The package `peft`.

    Raises:
        ConfigError: it is not installed.
    """
    return require("peft", extra="lora", why="LoRA")
