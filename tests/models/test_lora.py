"""Test LoRA and bfloat16 runs: shared weights, plain checkpoints, exact resume, merging, float32 master weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.crash import SETTINGS
from support.families import LORA, lively, of_family
from support.models import tiny_model
from support.trainers import make_trainer, settings

from selfcorrect.__main__ import main
from selfcorrect.config.schema import Config, LoRAConfig
from selfcorrect.config.toml import load_config
from selfcorrect.errors import ConfigError, InterruptedRun, ModelError
from selfcorrect.evaluation.callbacks import Callbacks
from selfcorrect.models.language_model import load_model
from selfcorrect.models.lora import is_adapter
from selfcorrect.runs.run import resume, train
from selfcorrect.training.master_weights import MasterWeights
from selfcorrect.zoo.resolve import model_path

pytestmark = pytest.mark.usefixtures("lenient")
PINNED = "stages.score.kl_coefs=[{ base = 0.1 }, { base = 0.02, stage1 = 0.1 }]"
KINDS = {
    "lora": ["model.lora.rank=2", "optimizer.learning_rate=1e-2", PINNED],
    "bfloat16": ["model.dtype=bfloat16", "optimizer.learning_rate=1e-4"],
}


def config(model_folder: Path, kind: str) -> Config:
    return load_config("demo", [*SETTINGS, f"model.source={model_folder}", *KINDS[kind]])


@pytest.fixture(scope="module")
def lora_run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lora"
    train(config(model_folder, "lora"), out)
    return out


@pytest.mark.slow
def test_checkpoints_of_a_lora_run_are_adapters_over_its_base(lora_run: Path) -> None:
    assert not is_adapter(lora_run / "checkpoints/base")
    base = load_model(lora_run / "checkpoints/base")
    digests = {base.digest()}
    for name in ("stage1", "score"):
        folder = lora_run / "checkpoints" / name
        assert is_adapter(folder) and not (folder / "model.safetensors").exists()
        assert model_path(f"{lora_run}:{name}") == str(folder)
        model = load_model(folder)
        digests.add(model.digest())
        with model.adapters.on(None):
            assert all(
                torch.equal(a, b)
                for a, b in zip(*(m.adapters.plain_tensors().values() for m in (model, base)), strict=True)
            )
    assert len(digests) == 3
    assert len(json.loads((lora_run / "summary.json").read_text())["provenance"]["model_digests"]) == 3
    metrics = [json.loads(line) for line in (lora_run / "metrics.jsonl").read_text().splitlines()]
    assert (
        max(abs(m["kl_base_t1"]) + abs(m["kl_base_t2"]) for m in metrics if m["step"] == 1 and m["stage"] == "stage1")
        < 1e-4
    )
    assert any(abs(m["kl_stage1_t2"]) > 1e-3 for m in metrics if m["stage"] == "score" and m["step"] > 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_an_interrupted_run_ends_with_the_same_bits(
    kind: str, model_folder: Path, lora_run: Path, tmp_path: Path
) -> None:
    whole = lora_run if kind == "lora" else tmp_path / "whole"
    if kind != "lora":
        train(config(model_folder, kind), whole)
    out, steps = tmp_path / "run", []
    for limit in (2, 4):  # once in either stage
        callbacks = Callbacks(on_step=steps.append, should_stop=lambda n=limit: 15 if len(steps) == n else None)
        with pytest.raises(InterruptedRun):
            if limit == 2:
                train(config(model_folder, kind), out, callbacks=callbacks)
            else:
                resume(out, callbacks=callbacks)
    resume(out)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("base", "stage1", "score"):
        one, other = (
            load_model(run / "checkpoints" / name, dtype="bfloat16" if kind == "bfloat16" else "float32")
            for run in (out, whole)
        )
        assert one.digest() == other.digest()


def test_a_merged_model_says_what_the_adapter_says(lora_run: Path, tmp_path: Path) -> None:
    assert main(["models", "merge", f"{lora_run}:score", "--out", str(tmp_path / "merged")]) == 0
    merged, adapted, base = (
        load_model(path)
        for path in (tmp_path / "merged", lora_run / "checkpoints/score", lora_run / "checkpoints/base")
    )
    ids = torch.tensor([[3, 7, 16, 8, 17, 2, 4]])
    with torch.no_grad():
        outputs = [m.logits(m.decode(ids).last_hidden_state) for m in (merged, adapted, base)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3
    assert main(["models", "merge", str(tmp_path / "merged"), "--out", str(tmp_path / "again")]) == 2
    assert main(["models", "merge", f"{lora_run}:score", "--out", str(tmp_path / "merged")]) == 2


def test_views_share_their_weights_and_do_not_disturb_each_other() -> None:
    base = of_family("Llama", tied=False)
    memory = {p.data_ptr() for p in base.model.parameters()}
    one = lively(base, "one", seed=1)
    before = one.digest(), base.digest()
    two = lively(base, "two", seed=2)
    assert memory <= {p.data_ptr() for p in two.model.parameters()}
    ids = torch.tensor([[3, 7, 2, 4]])
    found = [m.decode(ids).last_hidden_state for m in (base, one, two, base, one, two)]
    assert all(torch.equal(found[i], found[i + 3]) for i in range(3))
    assert not any(torch.equal(found[i], found[j]) for i in range(3) for j in range(i))
    assert (one.digest(), base.digest()) == before
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in two.parameters())
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}
    again = base.with_adapter("two", LORA, seed=2)  # replaces the other one of that name
    assert torch.equal(again.decode(ids).last_hidden_state, found[0])


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_modules = \['nope'\]"):
        of_family("Llama", tied=False).with_adapter("policy", LoRAConfig(target_modules=("nope",)))


def test_an_adapter_of_a_weight_that_two_layers_share_is_refused(tmp_path: Path) -> None:
    """Merged into a tied head, it would change the embedding too, and a checkpoint has such a weight only once."""
    settings = LoRAConfig(target_modules=("q_proj", "lm_head"))
    with pytest.raises(ConfigError, match="head and its embedding share one weight"):
        of_family("Llama", tied=True).with_adapter("policy", settings)
    apart = of_family("Llama", tied=False).with_adapter("policy", settings)
    apart.adapters.save("policy", tmp_path, "base")
    with pytest.raises(ModelError, match="the head or the embedding of a model in which both share one weight"):
        of_family("Llama", tied=True).adapters.load("policy", tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"[" * 200_000, b"", b"[1]", b"\xff\xfe", b'{"peft_type": 3, "r": []}'])
def test_a_damaged_adapter_is_no_bug(lora_run: Path, name: str, content: bytes, tmp_path: Path) -> None:
    """Outside a run, nothing seals it."""
    shutil.copytree(lora_run / "checkpoints/base", tmp_path / "base")
    shutil.copytree(
        lora_run / "checkpoints/score", tmp_path / "adapter", ignore=shutil.ignore_patterns("manifest.json")
    )
    load_model(tmp_path / "adapter")
    (tmp_path / "adapter" / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"the adapter in .* could not be loaded"):
        load_model(tmp_path / "adapter")


def test_master_weights_keep_what_bfloat16_would_round_away() -> None:
    """A bfloat16 weight of 1 would never move by steps of 1e-3: the next number below 1 is 1 - 1/256."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    master_weights = MasterWeights([weight])
    optimizer = torch.optim.SGD(master_weights.parameters, lr=1e-3)
    for _ in range(10):
        for _ in range(2):  # two micro-batches
            (0.5 * weight.sum()).backward()
            master_weights.grads_to_master()
        optimizer.step()
        optimizer.zero_grad()
        master_weights.master_to_model()
    assert master_weights.parameters[0].tolist() == pytest.approx([0.99] * 3, abs=1e-6)
    assert torch.equal(weight, torch.tensor([0.99] * 3).bfloat16())
    assert weight.grad is None
    saved = [tensor.clone() for tensor in master_weights.state_dict()]
    fresh = MasterWeights([torch.nn.Parameter(weight.detach().clone())])
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.parameters[0], master_weights.parameters[0])


def test_other_weights_are_their_own_masters() -> None:
    policy = tiny_model(0)
    masters = MasterWeights(policy.parameters())
    assert all(a is b for a, b in zip(masters.parameters, policy.parameters(), strict=True))
    assert masters.state_dict() == []


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    """Return the bytes that the graph of one micro-batch holds, with and without."""

    def kept(recompute: bool) -> int:
        policy = tiny_model(0, dtype=torch.float32)
        if recompute:
            policy.enable_gradient_checkpointing()
        trainer = make_trainer(settings(), policy=policy)
        (rows,) = trainer.pack_rollout(trainer.sampler.sample(trainer.state.step)).batches
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            policy.decode(rows.tokens_BT, rows.mask_BT)
        return sum(sizes)

    assert kept(True) < 0.3 * kept(False)


def test_an_architecture_without_recomputing_is_refused() -> None:
    policy = tiny_model(0)
    type(policy.model).supports_gradient_checkpointing = False
    try:
        with pytest.raises(ModelError, match="does not support gradient checkpointing"):
            policy.enable_gradient_checkpointing()
    finally:
        del type(policy.model).supports_gradient_checkpointing
