"""Measure how long a sharded run's step is held up by a checkpoint that is written at once, or in the background.

    python -m benchmarks.checkpoint_saving --processes 2 --layers 4 --width 512

A step here is a forward and a backward pass, and an update. The checkpoints are those of a run: weights, moments, digests, and
flushed to the disk of ``--folder``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS, VOCABULARY = 256, 8192


def measured(folder: str, layers: int, width: int, saves: int, asynchronous: bool) -> dict[str, float]:
    """Return medians over several saves, in seconds, as one of the processes."""
    import torch

    from selfcorrect.config.toml import make_config, to_toml
    from selfcorrect.distributed.world import joined
    from selfcorrect.models.language_model import LanguageModel
    from selfcorrect.runs.checkpoints import Checkpoints
    from selfcorrect.runs.shared_directory import SharedRunDirectory
    from selfcorrect.training.learner import Learner
    from selfcorrect.training.stage_trainer import StageState

    class Steps:
        """As much of a trainer as a checkpoint needs."""

        def __init__(self, policy: LanguageModel, learner: Learner, stage: Any) -> None:
            self.name, self.policy, self.learner, self.stage = "stage", policy, learner, stage
            self.state = StageState()
            self.ids = torch.arange(TOKENS)[None]

        def state_dict(self) -> dict[str, Any]:
            return {"step": self.state.step}

        def selection_metric(self) -> float:
            return float(self.state.step)

        def step(self) -> float:
            begun = time.perf_counter()
            self.learner.zero_grad()
            model = self.policy
            logits = model.as_forward(lambda: model.logits(model.decode(self.ids).last_hidden_state))
            self.learner.backward(logits.float().square().mean())
            self.learner.update(1e-4, "a step")
            self.state.step += 1
            return time.perf_counter() - begun

    torch.set_num_threads(1)
    settings = {
        "model": {"device": "cpu", "cpu_kernels": False},
        "distributed": {"shard": True, "async_save": asynchronous},
        "stages": {"stage": {"steps": 10**5, "reward_weights": [1, 1], "kl_coefs": [{}, {}]}},
    }
    config = make_config(settings)
    with joined() as world:
        directory = SharedRunDirectory.create(Path(folder) / f"{asynchronous}", to_toml(config), world)
        model = _model(layers, width)
        directory.save_checkpoint("base", model.save)
        checkpoints = Checkpoints(directory, config, model)
        policy = checkpoints.load("base", trained=True)
        trainer: Any = Steps(policy, Learner(policy, config.optimizer, world=world), config.stages["stage"])
        alone = [trainer.step() for _ in range(4)][1:]
        held, beside, until = [], [], []
        for _ in range(saves):
            begun = time.perf_counter()
            checkpoints.save(trainer, None)
            held.append(time.perf_counter() - begun)
            while checkpoints.saving:
                beside.append(trainer.step())
                checkpoints.look_after()
            until.append(time.perf_counter() - begun)
        checkpoints.finish()
        newest = directory.checkpoint_path(directory.checkpoints()[-1])
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
        checkpoints.close()
        directory.close()
    found = {"held up": held, "on disk after": until, "a step": alone, "a step meanwhile": beside}
    return {"MB": size / 1e6, **{name: statistics.median(times) for name, times in found.items() if times}}


def _model(layers: int, width: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from selfcorrect.models.language_model import LanguageModel
    from selfcorrect.zoo.addition import make_tokenizer

    tokenizer = make_tokenizer()
    sizes = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
    }
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **ends))
    return LanguageModel(model, tokenizer, cpu_kernels=False)


def main() -> None:
    """Print the table of both ways."""
    from selfcorrect.distributed.launch import on_processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"processes": 2, "layers": 4, "width": 512, "saves": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="write there; unset = a temporary directory")
    flags = parser.parse_args()
    columns = ["held up", "on disk after", "a step", "a step meanwhile"]
    print(f"| checkpoints of {flags.processes} processes | MB | {' | '.join(f'{name}, s' for name in columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    for asynchronous in (False, True):
        with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
            ranks = on_processes(
                flags.processes, measured, folder, flags.layers, flags.width, flags.saves, asynchronous
            )
        cells = [f"{max(rank[name] for rank in ranks):.3f}" if name in ranks[0] else "" for name in columns]
        name = "in the background" if asynchronous else "at once"
        print(f"| {name} | {ranks[0]['MB']:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
