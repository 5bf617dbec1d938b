"""What a sharded model gives to files, engines and optimizers, for comparison with the same model in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from selfcorrect.distributed.shards import full_tensor, shard
from selfcorrect.distributed.world import World
from selfcorrect.errors import TrainingError
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.learner import Learner
from support.families import LORA, lively, of_family
from support.models import tiny_model
from support.trainers import settings


def _frozen(model: LanguageModel) -> LanguageModel:
    model.model.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], LanguageModel]] = {
    "untied": tiny_model,
    "tied": lambda: of_family("Llama", tied=True, dtype=torch.float32),
    "bfloat16, trained in float32": lambda: of_family("Llama", tied=False, dtype=torch.bfloat16),
    "bfloat16, tied, a reference": lambda: _frozen(of_family("Qwen3", tied=True, dtype=torch.bfloat16)),
    "a policy with an adapter": lambda: lively(of_family("Llama", tied=True)),
}


def facts(name: str, folder: Path, world: World) -> dict[str, Any]:
    """Save the model below ``folder``; return its digest, the tensors that an engine gets, and those of two optimizers."""
    model = MODELS[name]()
    shard(model, world)
    weights, place = model.saved_weights(), folder / name
    if world.first:
        model.save(place, weights)
    streamed = {key: tensor.clone() for key, tensor in model.plain_weights()}
    return {
        "digest": model.digest(),
        "streamed": streamed,
        "masters": [full_tensor(master) for master in Learner(model, settings().optimizer).state_dict()["masters"]]
        if _trains(model)
        else [],
    }


def late_optimizer(world: World) -> str:
    """Return why a learner is refused that is made after a forward pass, while the root's weights are whole."""
    model = tiny_model()
    shard(model, world)
    ids = torch.zeros((1, 3), dtype=torch.long)
    with torch.no_grad():
        model.as_forward(lambda: model.decode(ids).last_hidden_state)
    try:
        Learner(model, settings().optimizer)
    except TrainingError as error:
        model.placement.release()
        Learner(model, settings().optimizer)
        return str(error)
    return ""


def later_adapter(world: World) -> str:
    """Return the digest of a policy whose adapter is made when its base lies in shards already."""
    base = _frozen(of_family("Llama", tied=True))
    shard(base, world)
    return base.with_adapter("policy", LORA, seed=3).digest()


def _trains(model: LanguageModel) -> bool:
    return bool(model.parameters())
