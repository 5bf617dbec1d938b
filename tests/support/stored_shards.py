"""Files of sharded models: what several processes write and read, for comparison with one process.

As a script it is one of the processes of what takes long: ``python tests/support/stored_shards.py FOLDER``.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytest import MonkeyPatch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.llama.modeling_llama import LlamaRMSNorm

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it runs as a script

from selfcorrect.config.schema import Config
from selfcorrect.config.toml import to_toml
from selfcorrect.distributed import shard_files
from selfcorrect.distributed.exporting import save_from_shards, save_from_state
from selfcorrect.distributed.loading import load_placed
from selfcorrect.distributed.shards import full_tensor, is_shard
from selfcorrect.distributed.world import ALONE, World, joined
from selfcorrect.errors import CheckpointError, SelfCorrectError
from selfcorrect.models import language_model
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.runs import shared_directory
from selfcorrect.runs.checkpoints import Checkpoints
from selfcorrect.runs.shared_directory import SharedRunDirectory
from selfcorrect.storage.run_dir import MANIFEST
from selfcorrect.training.sft_trainer import SFTTrainer
from selfcorrect.training.stage_trainer import StageTrainer
from support.episodes import SCRIPT, problem
from support.families import TOKENIZER, of_family
from support.models import tiny_model
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

SAVED_AT, STEPS = 1, 2
ODD = {"hidden_size": 36, "intermediate_size": 50}
"""Sizes that two, three and four processes cannot share equally."""


# -- plain directories, read and written by shards -----------------------------------------------------------------

PLAIN: dict[str, tuple[LanguageModel, str, bool]] = {
    "float64, trained": (tiny_model(), "float64", True),
    "float32, tied, trained": (of_family("Llama", tied=True, dtype=torch.float32, **ODD), "float32", True),
    "bfloat16, trained in float32 shards": (
        of_family("Qwen3", tied=False, dtype=torch.float32, **ODD),
        "bfloat16",
        True,
    ),
    "bfloat16, tied, frozen": (of_family("Gemma2", tied=True, dtype=torch.bfloat16), "bfloat16", False),
}
"""A saved model, the dtype in which it is loaded, and whether it is to be trained."""


def by_shards(name: str, folder: Path, world: World) -> dict[str, Any]:
    """Load a plain directory as shards and save these as another one; return what the shards are."""
    model, dtype, trained = PLAIN[name]
    place, again = folder / f"{name}-plain", folder / f"{name}-again"
    world.from_first(lambda: model.save(place))
    loaded = _loaded(place, world, trained=trained, dtype=dtype)
    world.from_first(again.mkdir)
    with MonkeyPatch.context() as patch:
        patch.setattr(language_model, "FILE_BYTES", 9000)  # several files
        save_from_shards(loaded, again, world)
    with torch.no_grad():
        ids = torch.arange(6)[None]
        logits = loaded.as_forward(lambda: loaded.logits(loaded.decode(ids).last_hidden_state))
        loaded.placement.release()
    weights, numbers = loaded.plain_weights(), getattr(torch, dtype)
    own = [weight.to_local() for weight in loaded.model.parameters() if isinstance(weight, DTensor)]
    return {
        "digest": loaded.digest(),
        "logits": logits,
        "sharded": all(is_shard(weight) and weight.requires_grad == trained for weight in loaded.model.parameters()),
        "as one process has them": all(torch.equal(weight, weight.to(numbers).to(weight.dtype)) for weight in own),
        "stored": {str(weight.dtype) for weight in loaded.model.parameters()},
        "streamed": {str(weight.dtype) for _, weight in weights},
    }


def by_whole_models(folder: Path, world: World) -> str:
    """Return the digest of a model whose files no shard can be read from: its decoder was saved without the head."""
    model = of_family("Llama", tied=True, dtype=torch.float32)
    place = folder / "decoder"

    def save() -> None:
        model.save(place)
        (place / "model.safetensors").unlink()
        model.model.model.save_pretrained(place)

    world.from_first(save)
    loaded = _loaded(place, world, trained=True, dtype="float32")
    assert all(map(is_shard, loaded.model.parameters()))
    return loaded.digest()


def _loaded(place: Path, world: World, *, trained: bool, dtype: str) -> LanguageModel:
    return load_placed(place, world, shards=True, trained=trained, dtype=dtype, cpu_kernels=False)


# -- what a process holds ------------------------------------------------------------------------------------------


class Held(TorchDispatchMode):
    """The bytes of all tensors that exist in this process within the block, at most: ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, weakref.ref[Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it calls the same for its shards, which are seen then
        found = function(*args, **(kwargs or {}))
        fresh = False
        for tensor in tree_leaves((args, kwargs, found)):
            plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type != "meta"
            if plain and tensor.untyped_storage().nbytes() >= SMALL_BYTES:
                known = self._alive.get(id(tensor))
                if known is None or known() is not tensor:
                    self._alive[id(tensor)], fresh = weakref.ref(tensor), True
        if fresh:
            self.peak = max(self.peak, self.now())
        return found

    def now(self) -> int:
        sizes: dict[int, int] = {}
        for key, reference in list(self._alive.items()):
            tensor = reference()
            if tensor is None:
                del self._alive[key]
            else:
                storage = tensor.untyped_storage()
                sizes[storage._cdata] = storage.nbytes()
        return sum(sizes.values())


SMALL_BYTES = 1024
LAYERS = 12


def most_held(folder: Path, world: World) -> dict[str, float]:
    """Return the largest number of bytes that this process holds while it loads, saves and exports, over the whole model's.

    Of the model's layers, one is gathered at a time, and its embeddings and head are small.
    """
    how = {"num_hidden_layers": LAYERS, "hidden_size": 64, "intermediate_size": 128, "dtype": torch.float32}
    place, state, plain = folder / "deep", folder / "deep-state", folder / "deep-again"
    world.from_first(lambda: of_family("Llama", tied=True, **how).save(place))
    config = settings(model={"dtype": "float32"})
    with Held() as loading:
        policy = _loaded(place, world, trained=True, dtype="float32")
    share = sum(weight.to_local().nbytes for weight in policy.model.parameters() if isinstance(weight, DTensor))
    trainer = make_trainer(config, policy=policy, base=policy)
    for weight in policy.parameters():
        weight.grad = torch.ones_like(weight)
    trainer.learner.optimizer.step()
    trainer.learner.zero_grad()
    whole = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
    found = {"share": share / whole, "loading": loading.peak / whole}
    with Held() as saving:
        tensors = {str(i): weight.detach() for i, weight in enumerate(policy.parameters())}
        shard_files.write_shards(tensors, state, world)
    found["saving"] = saving.peak / whole
    world.from_first(plain.mkdir)
    with MonkeyPatch.context() as patch, Held() as exporting:
        patch.setattr(language_model, "FILE_BYTES", whole // 8)
        save_from_shards(policy, plain, world)
    return {**found, "exporting": exporting.peak / whole}


# -- training states -----------------------------------------------------------------------------------------------


@contextmanager
def norms_in_their_dtype() -> Iterator[None]:
    """Let a Llama's norms compute in float64 within the block, where the family's own would round to float32."""

    def forward(norm: Any, hidden: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)

    with MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield


def _settings(dtype: str, **groups: Any) -> Config:
    model = {"dtype": dtype, "device": "cpu", "cpu_kernels": False}
    return settings(model=model, distributed={"shard": True, **groups.pop("distributed", {})}, **groups)


STAR = {"steps": 2, "method": "star", "correct_pairs": "all", "rounds": 1}
STATES: dict[str, tuple[LanguageModel, Config]] = {
    "float64": (of_family("Llama", tied=False, **ODD), _settings("float64")),
    "float64, tied": (of_family("Llama", tied=True), _settings("float64")),
    "float64, in the background": (tiny_model(), _settings("float64", distributed={"async_save": True})),
    "bfloat16": (of_family("Llama", tied=False, dtype=torch.bfloat16), _settings("bfloat16")),
}
"""The model from which a run starts, and its settings."""
ALWAYS = "float64, in the background"
"""The run that is compared wherever several processes are started; the others take long."""


def _run(name: str, folder: Path, world: World) -> tuple[SharedRunDirectory, Checkpoints, Config]:
    model, config = STATES[name]
    place = folder / f"run {name}"
    if world.from_first((place / "config.toml").is_file):
        directory = SharedRunDirectory.open(place, world)
    else:
        directory = SharedRunDirectory.create(place, to_toml(config), world)
        directory.save_checkpoint("base", model.save)
    return directory, Checkpoints(directory, config, model), config


def _trainer(checkpoints: Checkpoints, start: str, config: Config, world: World) -> StageTrainer:
    policy, base = checkpoints.load(start, trained=True), checkpoints.load("base")
    return make_trainer(config, policy=policy, base=base, world=world)


def _weights(trainer: StageTrainer) -> dict[str, Tensor]:
    return {name: full_tensor(weight).detach().clone() for name, weight in trainer.policy.model.named_parameters()}


def saved_run(name: str, folder: Path, world: World) -> dict[str, Any]:
    """Save a run in the middle and train it to its end; also continue it from there."""
    directory, checkpoints, config = _run(name, folder, world)
    trainer = _trainer(checkpoints, "base", config, world)
    metrics = []
    for step in range(STEPS):
        metrics.append(dict(trainer.step().metrics))
        checkpoints.look_after()
        if step + 1 == SAVED_AT:
            checkpoints.save(trainer, None)
    checkpoints.finish()
    found = {"metrics": metrics, "weights": _weights(trainer), "again": continued(name, folder, world, checkpoints)}
    checkpoints.close()
    directory.close()
    return found


def continued(name: str, folder: Path, world: World, checkpoints: Checkpoints | None = None) -> dict[str, Any]:
    """Continue a saved run, with any number of processes; return the metrics of its steps and its weights at the end."""
    directory = None
    if checkpoints is None:
        directory, checkpoints, _ = _run(name, folder, world)
    saved = checkpoints.latest()
    assert saved is not None
    trainer = _trainer(checkpoints, saved.checkpoint, checkpoints.config, world)
    checkpoints.restore(saved, trainer)
    metrics = [dict(trainer.step().metrics) for _ in range(saved.step, STEPS)]
    if directory is not None:
        directory.close()
    return {"metrics": metrics, "weights": _weights(trainer), "sharded": trainer.policy.placement.sharded}


def gathered_run(name: str, folder: Path, world: World) -> list[dict[str, Any]]:
    """Save a run by one process, which writes a plain model, and continue it as shards; return both ends."""
    apart = folder / "gathered"

    def alone() -> dict[str, Any]:
        apart.mkdir(exist_ok=True)
        found = saved_run(name, apart, ALONE)
        state = apart / f"run {name}/checkpoints/stage-{SAVED_AT:06d}"
        assert (state / "model.safetensors").is_file() and not (state / "state").exists()
        return found

    return [world.from_first(alone), continued(name, apart, world)]


def supervised_state(folder: Path, world: World) -> list[bool]:
    """Return whether the stage's first weights, which a supervised trainer keeps beside the others, survive a checkpoint."""
    model = tiny_model()
    groups = {"rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4}, "stages": {"stage": STAR}}
    config = _settings("float64").model_copy(update={})
    config = type(config).model_validate({**config.model_dump(), **groups})
    directory = SharedRunDirectory.create(folder / "supervised", to_toml(config), world)
    directory.save_checkpoint("base", model.save)
    checkpoints = Checkpoints(directory, config, model)

    def trainer(start: str) -> SFTTrainer:
        return SFTTrainer(
            config,
            "stage",
            policy=checkpoints.load(start, trained=True),
            references={},
            problems=[problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
            chat=ChatFormat(TOKENIZER, SCRIPT),
            verifier=FunctionVerifier(lambda problem, text: len(text) % 2 == 1),
            world=world,
        )

    one = trainer("base")
    for _ in range(STAR["steps"] + 1):  # type: ignore[operator]
        one.step()
    checkpoints.save(one, None)
    saved = checkpoints.latest()
    assert saved is not None
    two = trainer(saved.checkpoint)
    before = [full_tensor(weight).clone() for weight in two.start]
    checkpoints.restore(saved, two)
    directory.close()
    starts = [[full_tensor(weight) for weight in each.start] for each in (one, two)]
    return [
        all(map(torch.equal, *starts)),
        not any(map(torch.equal, starts[0], before)),
        one.collected == two.collected and bool(one.collected),
    ]


def exported(name: str, folder: Path, world: World) -> None:
    """Write the plain directory of a saved run's checkpoint, in files of a bounded size."""
    directory, checkpoints, config = _run(name, folder, world)
    saved = checkpoints.latest()
    assert saved is not None
    how: Mapping[str, Any] = {"dtype": config.model.dtype, "trust_remote_code": False}
    source, target = directory.checkpoint_path(saved.checkpoint), folder / f"exported {name}"
    world.from_first(target.mkdir)
    with MonkeyPatch.context() as patch:
        patch.setattr(language_model, "FILE_BYTES", 9000)
        save_from_state(source, target, world, **how)
    checkpoints.export("stage", saved.checkpoint)
    directory.close()


# -- saves that fail -----------------------------------------------------------------------------------------------


def failing_saves(folder: Path, world: World) -> dict[str, Any]:
    """Let the second process fail in a save, at once and in the background; return what is said and what is there."""
    found: dict[str, Any] = {}
    for asynchronous in (False, True):
        config = _settings("float64", distributed={"async_save": asynchronous})
        place = folder / f"failing {asynchronous}"
        directory = SharedRunDirectory.create(place, to_toml(config), world)
        directory.save_checkpoint("base", tiny_model().save)
        checkpoints = Checkpoints(directory, config, tiny_model())
        trainer = _trainer(checkpoints, "base", config, world)
        trainer.step()
        checkpoints.save(trainer, None)
        checkpoints.finish()
        for where in ("write", "flush"):
            trainer.step()
            with MonkeyPatch.context() as patch:
                if world.rank == 1:
                    full = _disk_full
                    owner = HuggingFaceStorageWriter if where == "write" else shared_directory
                    patch.setattr(owner, "write_data" if where == "write" else "flushed_digest", full)
                said = ""
                try:
                    checkpoints.save(trainer, None)
                    said = "later: " if asynchronous else ""
                    checkpoints.finish()
                except SelfCorrectError as error:
                    said += f"{type(error).__name__}: {error}"
            found[f"{where}, {asynchronous}"] = said, directory.checkpoints()
        checkpoints.save(trainer, None)  # and the next one succeeds
        checkpoints.finish()
        found[f"after, {asynchronous}"] = directory.checkpoints()
        checkpoints.close()
        directory.close()
    return found


def damaged(folder: Path, world: World) -> list[str]:
    """Return what is said of a training state in which one of its files, each in turn, is not what it was."""
    directory, _, _ = _run(ALWAYS, folder, world)
    name, said = f"stage-{SAVED_AT:06d}", []
    place = directory.verify_checkpoint(name)
    for file in sorted(file for file in place.rglob("*") if file.is_file() and file.name != MANIFEST):
        content = file.read_bytes()
        world.gather(None)  # all have read it
        world.from_first(lambda file=file, content=content: file.write_bytes(content[:-1]))  # type: ignore[misc]
        try:
            directory.verify_checkpoint(name)
            said.append("")
        except CheckpointError as error:
            said.append(str(error))
        world.from_first(lambda file=file, content=content: file.write_bytes(content))  # type: ignore[misc]
    directory.verify_checkpoint(name)
    directory.close()
    return said


def _disk_full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def slow_save(folder: Path, world: World) -> list[Any]:
    """Hold a save in the background up; return what is there while steps go on, when the next save waits, and at the end."""
    config = _settings("float64", distributed={"async_save": True})
    directory = SharedRunDirectory.create(folder / "slow", to_toml(config), world)
    directory.save_checkpoint("base", tiny_model().save)
    checkpoints = Checkpoints(directory, config, tiny_model())
    trainer = _trainer(checkpoints, "base", config, world)
    held_up, seen = threading.Event(), []
    real = state_dict_saver.save

    def slow(*arguments: Any, **options: Any) -> Any:
        assert held_up.wait(60)
        return real(*arguments, **options)

    with MonkeyPatch.context() as patch:
        trainer.step()
        checkpoints.save(trainer, None)
        checkpoints.finish()
        patch.setattr(state_dict_saver, "save", slow)
        trainer.step()
        checkpoints.save(trainer, None)
        kept = [full_tensor(weight).clone() for weight in trainer.policy.parameters()]
        trainer.step()  # changes the weights while those of the step before are still to be written
        checkpoints.look_after()
        seen.append(directory.checkpoints())
        threading.Timer(0.2, held_up.set).start()
        checkpoints.save(trainer, None)  # waits for the one before
        seen.append(directory.checkpoints())
        saved = checkpoints.load("stage-000002")
        seen.append(all(torch.equal(full_tensor(w), k) for w, k in zip(saved.model.parameters(), kept, strict=True)))
        checkpoints.finish()
        seen.append(directory.checkpoints())
    checkpoints.close()
    directory.close()
    return seen


def some(folder: Path, world: World) -> dict[str, Any]:
    """Return what of the above is quick, as one of the processes."""
    found: dict[str, Any] = {"plain": {name: by_shards(name, folder, world) for name in PLAIN}}
    found["decoder"] = by_whole_models(folder, world)
    found["held"] = most_held(folder, world)
    with norms_in_their_dtype():
        found["runs"] = {ALWAYS: saved_run(ALWAYS, folder, world)}
        exported(ALWAYS, folder, world)
        found["damaged"] = damaged(folder, world)
        found["failing"] = failing_saves(folder, world)
        found["slow"] = slow_save(folder, world)
    return found


def the_rest(folder: Path, world: World) -> dict[str, Any]:
    """Return the rest."""
    found: dict[str, Any] = {"runs": {}}
    with norms_in_their_dtype():
        for name in STATES:
            if name != ALWAYS:
                found["runs"][name] = saved_run(name, folder, world)
                exported(name, folder, world)
        found["supervised"] = supervised_state(folder, world)
        found["gathered"] = {name: gathered_run(name, folder, world) for name in ("float64", "bfloat16")}
    return found


def main(folder: str) -> None:
    """Be one of the processes of the rest."""
    with joined(timeout_s=300) as world:
        torch.save(the_rest(Path(folder), world), Path(folder) / f"rank-{world.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
