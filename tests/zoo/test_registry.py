"""Test that bundled bases are used unchanged and all others are trained."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_model

from selfcorrect.config.schema import ModelConfig
from selfcorrect.config.toml import load_config
from selfcorrect.errors import CheckpointError
from selfcorrect.models.language_model import load_model
from selfcorrect.zoo import registry
from selfcorrect.zoo.addition import AdditionBase
from selfcorrect.zoo.registry import RECIPES, made_model, packaged, recipe_card
from selfcorrect.zoo.resolve import foreseen, place_of

PACKAGED = {
    ("addition-base", 101): "d50c3075c32a0c789f26a979dc7e18d9e0b57ae3626afe425868c32f41bda417",
    ("worked-sums-base", 100): "f9ba3b3a72b884e76fa82537226df7997cbf1eac149a3c366718538d884a338a",
}
"""Digests of the weights that the published studies started from."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Record the seeds to train, instead of training a minute for each."""
    seeds: list[int] = []

    def train(seed: int, *_: Any) -> Any:
        seeds.append(seed)
        return tiny_model(seed)

    monkeypatch.setattr(registry, "trained", train)
    monkeypatch.setenv("SELFCORRECT_HOME", str(tmp_path / "home"))
    return seeds


@pytest.mark.parametrize(("name", "seed"), PACKAGED)
def test_the_packaged_bases_are_the_published_studies_and_fit_their_recipes(name: str, seed: int) -> None:
    own = packaged(name, seed, RECIPES[name]())
    assert own
    assert hashlib.sha256((own / "model.safetensors").read_bytes()).hexdigest() == PACKAGED[name, seed]
    tokenizer = load_model(own, dtype="float32", device="cpu").tokenizer
    assert tokenizer.get_vocab() == recipe_card(seed, RECIPES[name]()).tokenizer.get_vocab()


@pytest.mark.parametrize("config", ["demo", "three_turns", "worked_sums"])
def test_the_built_in_configurations_start_from_them(config: str, trained: list[int]) -> None:
    model = load_config(config).model
    assert model.seed is not None
    assert made_model(model.source, model.seed).parent == registry.WEIGHTS and not trained
    assert foreseen(model, seed=0) is None


def test_the_rest_is_trained(trained: list[int], tmp_path: Path) -> None:
    assert made_model("addition-base", 101, out=tmp_path / "copied") == tmp_path / "copied" and not trained
    assert (tmp_path / "copied/model.safetensors").is_file()
    made_model("addition-base", 101, from_scratch=True)
    made_model("addition-base", 7)
    made_model("addition-base", 101, recipe=AdditionBase(width=32))
    made_model("addition-base", 101, out=tmp_path / "own", from_scratch=True)
    assert trained == [101, 7, 101, 101]
    assert foreseen(ModelConfig(seed=8), seed=0) is not None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_model_in_the_cache_is_named(name: str, trained: list[int]) -> None:
    settings = ModelConfig(source="addition-base", seed=7)
    place = Path(place_of(settings, seed=0))
    assert Path(place_of(settings, seed=0)) == place and trained == [7]
    content = bytearray((place / name).read_bytes())
    content[-20] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} .* is damaged.* remove the checkpoint's directory"):
        place_of(settings, seed=0)
    shutil.rmtree(place)
    assert Path(place_of(settings, seed=0)) == place and trained == [7, 7]


def test_a_model_that_the_user_asked_for_may_be_changed(trained: list[int], tmp_path: Path) -> None:
    place = made_model("addition-base", 7, out=tmp_path / "own")
    (place / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert place_of(ModelConfig(source=str(place)), seed=0) == str(place)


def test_an_interrupted_copy_leaves_no_half_model(
    trained: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(_: Path, place: Path, **__: Any) -> None:
        (place / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.shutil, "copytree", torn)
    with pytest.raises(KeyboardInterrupt):
        made_model("addition-base", 101, out=tmp_path / "models/own")
    assert not any((tmp_path / "models").iterdir())


def test_a_process_that_makes_a_model_more_slowly_takes_the_others(
    trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = registry.write_manifest

    def overtaken(writing: Path) -> None:
        seal(writing)
        shutil.copytree(writing, registry.cached_place("addition-base", 7, AdditionBase()))

    monkeypatch.setattr(registry, "write_manifest", overtaken)
    place = made_model("addition-base", 7)
    assert (place / "model.safetensors").is_file() and trained == [7]
    assert [path.name for path in place.parent.iterdir()] == [place.name], "nothing half-made stays"
