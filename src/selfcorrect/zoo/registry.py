"""The bundled models: their names, their recipes, and the cache that stores them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from selfcorrect.errors import ModelError
from selfcorrect.models.card import ModelCard
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.storage.run_dir import write_manifest
from selfcorrect.zoo import addition, micro_code, worked_sums
from selfcorrect.zoo.addition import AdditionBase, make_addition_base
from selfcorrect.zoo.micro_code import MicroCodeBase, make_micro_code_base
from selfcorrect.zoo.smollm2 import WEIGHTS_DIGEST, make_smollm2
from selfcorrect.zoo.tiny_llama import CONTEXT_LENGTH
from selfcorrect.zoo.worked_sums import WorkedSumsBase, make_worked_sums_base

ADDITION_BASE = "addition-base"
MICRO_CODE_BASE = "micro-code-base"
WORKED_SUMS_BASE = "worked-sums-base"
SMOLLM2 = "smollm2-135m"
MADE = {
    ADDITION_BASE: "a tiny Llama for the `addition` task: seed 101 comes with the package, other seeds take about a minute",
    MICRO_CODE_BASE: "a tiny Llama that writes short Python functions, for the `micro_code` task, in about a minute",
    WORKED_SUMS_BASE: "a tiny Llama that adds step by step, for the `worked_sums` task: seed 100 comes with the package",
    SMOLLM2: "SmolLM2-135M-Instruct from the package index (extra `smollm2`)",
}
"""Models that this package trains itself or reads from another package, by name."""
BUNDLED_LICENCE = "apache-2.0"
"""The licence of all of them, as a model hub writes it."""
HUB_ID_OF_SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

BaseRecipe = AdditionBase | MicroCodeBase | WorkedSumsBase
RECIPES: dict[str, type[BaseRecipe]] = {
    ADDITION_BASE: AdditionBase,
    MICRO_CODE_BASE: MicroCodeBase,
    WORKED_SUMS_BASE: WorkedSumsBase,
}
"""The recipes of the models that are trained from scratch."""

WEIGHTS = Path(__file__).parent / "weights"
"""Bases that come with the package, as NAME-SEED: processors round differently, so each kind would train a different one."""

Progress = Callable[[str, int, int], None]


def trained(seed: int, recipe: BaseRecipe, on_step: Callable[[int, int, float], None] | None = None) -> LanguageModel:
    """Train the model of a recipe from scratch."""
    if isinstance(recipe, MicroCodeBase):
        return make_micro_code_base(seed, recipe, on_step=on_step)
    if isinstance(recipe, WorkedSumsBase):
        return make_worked_sums_base(seed, recipe, on_step=on_step)
    return make_addition_base(seed, recipe, on_step=on_step)


def recipe_card(seed: int, recipe: BaseRecipe) -> ModelCard:
    """Return the card of a recipe's model without training it."""
    if isinstance(recipe, MicroCodeBase):
        return ModelCard(micro_code.make_tokenizer(micro_code.training_problems(recipe, seed)), CONTEXT_LENGTH)
    if isinstance(recipe, WorkedSumsBase):
        return ModelCard(worked_sums.make_tokenizer(recipe), CONTEXT_LENGTH)
    return ModelCard(addition.make_tokenizer(), CONTEXT_LENGTH)


def cache_home() -> Path:
    """Return the directory of cached models: ``$SELFCORRECT_HOME``, else the user's cache directory."""
    from platformdirs import user_cache_path

    home = os.environ.get("SELFCORRECT_HOME")
    return Path(home) if home else user_cache_path("selfcorrect")


def made_model(
    name: str,
    seed: int,
    *,
    recipe: BaseRecipe | None = None,
    out: Path | None = None,
    from_scratch: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Return the directory of a bundled model: the packaged one, a cached one, or ``out``; make the model if needed.

    A base that comes with the package is trained again only with ``from_scratch``.

    Raises:
        ModelError: no model has that name, or ``out`` is not empty.
    """
    if name not in MADE:
        raise ModelError(f"there is no bundled model {name!r}; choose from {', '.join(MADE)}.")
    if recipe is None and name in RECIPES:
        recipe = RECIPES[name]()
    if out is not None and out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: choose another directory.")
    own = None if from_scratch else packaged(name, seed, recipe)
    if own and not out:
        return own
    place = out or cached_place(name, seed, recipe)
    if (place / "config.json").is_file():
        return place

    place.parent.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        if own:
            shutil.copytree(own, writing, dirs_exist_ok=True)
        else:
            _made(name, seed, recipe, progress).save(writing)
        if out is None:  # in the cache nobody changes it, but years may pass; what the user asked for is the user's own
            write_manifest(writing)
        try:
            writing.rename(place)  # an empty directory is replaced
        except OSError:
            if not (place / "config.json").is_file():
                raise  # else another process was faster: its model has the same bits
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return place


def _made(name: str, seed: int, recipe: BaseRecipe | None, progress: Progress | None) -> LanguageModel:
    def on_step(step: int, steps: int, loss: float) -> None:
        if progress:
            progress(f"making {name}", step, steps)

    if recipe is None:
        on_step(0, 1, 0.0)
        return make_smollm2()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the weights' bits must not depend on the number of threads
    try:
        return trained(seed, recipe, on_step)
    finally:
        torch.set_num_threads(threads)


def packaged(name: str, seed: int, recipe: BaseRecipe | None) -> Path | None:
    """Return the directory of a base that comes with the package; None if this seed or recipe must be trained."""
    directory = WEIGHTS / f"{name}-{seed}"
    default = name in RECIPES and recipe == RECIPES[name]()
    return directory if default and directory.is_dir() else None


def cached_place(name: str, seed: int, recipe: BaseRecipe | None) -> Path:
    """Return a bundled model's directory in the cache; its name identifies everything that determines the weights' bits."""
    models = cache_home() / "models"
    if recipe is None:
        return models / f"{name}-{WEIGHTS_DIGEST[:12]}"
    identity = json.dumps([name, seed, asdict(recipe), CONTEXT_LENGTH, torch.__version__])
    return models / f"{name}-{seed}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
