"""Steps of trainers in one of several processes, for comparison with one process.

As a script it is one of the processes; the launcher's variables (RANK, WORLD_SIZE, ...) say which one:
``python tests/support/processes.py FOLDER``. Every process leaves ``FOLDER/rank-N.pt``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # where it runs as a script

from selfcorrect.config.stages import ReinforcementStage
from selfcorrect.config.toml import make_config
from selfcorrect.distributed.shards import full_tensor, shard
from selfcorrect.distributed.world import World, joined
from selfcorrect.method.base import StepOutcome
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.rollout.chat_format import ChatFormat
from selfcorrect.script import DRAFT_REQUEST, Script, UserTurn
from selfcorrect.training.sft_trainer import SFTTrainer
from selfcorrect.training.stage_trainer import StageTrainer
from selfcorrect.types import Judgement, Role
from selfcorrect.zoo.addition import make_tokenizer
from support import stored_shards
from support.episodes import SCRIPT, problem
from support.families import lively, of_family
from support.models import tiny_model
from support.shards import MODELS, facts, late_optimizer, later_adapter
from support.trainers import make_trainer, settings
from support.verifiers import FunctionVerifier

STEPS = 2
"""The second step begins with weights, moments and an adaptive coefficient that the first one left."""
LATER = ("one step ahead", "supervised", "alternating", "replay")
"""These take a third step: the first to sample with weights that have moved, to learn from what the first sampled, to begin
another pair, or the second to revise what earlier ones sampled."""
BOTH = [{"base": 0.1}, {"base": 0.2}]
ADAPTIVE = {"adaptive": {"reference": "base", "turn": 2}, "kl_coefs": BOTH}
GROUPS_3 = {"rollout": {"batch_size": 12}, "optimizer": {"micro_batch_tokens": 60}}


class Processes(NamedTuple):
    """The processes of a scenario, and whether its models lie in shards over them."""

    world: World
    sharded: bool = False

    def place(self, model: LanguageModel) -> LanguageModel:
        if self.sharded:
            shard(model, self.world)
        return model


def _trainer(
    among: Processes,
    policy: LanguageModel | None = None,
    base: LanguageModel | None = None,
    script: Script = SCRIPT,
    asked: UserTurn = DRAFT_REQUEST,
    **groups: Any,
) -> StageTrainer:
    if base is None:
        base = tiny_model(1)
        base.model.requires_grad_(False)
    return make_trainer(
        settings(**groups),
        policy=among.place(policy or tiny_model(0)),
        base=among.place(base),
        world=among.world,
        script=script,
        asked=asked,
    )


def _lora(among: Processes, **groups: Any) -> StageTrainer:
    base = of_family("Llama", tied=True)
    return _trainer(among, lively(base), base, **groups)


def _supervised(among: Processes, script: Script = SCRIPT, **stage: Any) -> StageTrainer:
    config = make_config(
        {
            "rollout": {"batch_size": 8, "group_size": 4, "max_tokens": 4},
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1e9},
            "task": {"train_problems": 16},
            "stages": {"stage": {"steps": 2, "method": "star", "correct_pairs": "all", "rounds": 1, **stage}},
        }
    )
    return SFTTrainer(
        config,
        "stage",
        policy=among.place(tiny_model(0)),
        references={},
        problems=[problem(f"p{i}", f"{i}+{i}=", str(2 * i)) for i in range(10)],
        chat=ChatFormat(make_tokenizer(), script),
        verifier=FunctionVerifier(lambda problem, text: len(text) % 2 == 1),
        world=among.world,
    )


def less_the_mean_of_the_step(outcome: StepOutcome, stage: ReinforcementStage) -> torch.Tensor:
    """A method that sees more than one group at a time, unlike the built-in one."""
    shaped_NK = outcome.rewards_NK - outcome.penalty_NK
    return shaped_NK - shaped_NK.mean(0)


ASK = UserTurn("1=", Role.VERIFICATION, says_correct="number", says_wrong="Correct")
IF_WRONG = Script(revise=(ASK, UserTurn("2=", when=Judgement.WRONG)))

ASK_OF_DRAFT = UserTurn("{prompt}{attempt}=", Role.VERIFICATION, says_correct="number", says_wrong="Correct")
DRAFTS = {"method": "self_verification", "verification": {"kl_coefs": {"base": 0.2}}}

SCENARIOS: dict[str, Callable[[Processes], StageTrainer]] = {
    "plain": _trainer,
    "tied": lambda among: _trainer(among, of_family("Llama", tied=True)),
    # Shards enter FSDP2's order of passes while they sample, so the processes must sample differently often here.
    "by the family's own pass, three problems": lambda among: _trainer(
        among, of_family("Qwen3", tied=False, cpu_kernels=False), **GROUPS_3
    ),
    "bonus, adaptive beta2, penalty in the reward, small micro-batches, turn gradients": lambda among: _trainer(
        among,
        stage={"bonus": 2.0, **ADAPTIVE},
        kl={"placement": "reward"},
        optimizer={"micro_batch_tokens": 40, "max_grad_norm": 1.0},
        log={"turn_gradients_every": 1},
    ),
    "penalty in the reward, a method that compares all episodes of a step": lambda among: _trainer(
        among, stage={"method": "support.processes:less_the_mean_of_the_step"}, kl={"placement": "reward"}
    ),
    "S2R's credit, three problems": lambda among: _trainer(
        among, script=IF_WRONG, stage={"method": "s2r"}, kl={"placement": "reward"}, **GROUPS_3
    ),
    "the outcome of trajectories, three problems": lambda among: _trainer(
        among,
        script=IF_WRONG,
        stage={"method": "self_rewarding", "reward_weights": [0, 1], "verification": {"weight": 0.0}},
        kl={"placement": "reward"},
        **GROUPS_3,
    ),
    "alternating, three problems": lambda among: _trainer(
        among, stage={"method": "thinktwice"}, kl={"placement": "reward"}, log={"turn_gradients_every": 1}, **GROUPS_3
    ),
    "distillation, three problems": lambda among: _trainer(
        among, stage={"method": "distilled"}, kl={"placement": "reward"}, log={"turn_gradients_every": 1}, **GROUPS_3
    ),
    "drafts on prompts of their own, three problems": lambda among: _trainer(
        among,
        asked=ASK_OF_DRAFT,
        stage=DRAFTS,
        kl={"placement": "reward"},
        log={"turn_gradients_every": 1},
        **GROUPS_3,
    ),
    "penalty in the loss": lambda among: _trainer(among, kl={"placement": "loss", "estimator": "k3"}),
    "full KL": lambda among: _trainer(among, kl={"placement": "loss", "estimator": "full"}),
    "two updates a rollout, the base's first attempts": lambda among: _trainer(
        among, stage={"offline_share": 0.5}, optimizer={"num_iterations": 2}
    ),
    "four updates a rollout, until their KL is too large": lambda among: _trainer(
        among, optimizer={"num_iterations": 4, "kl_stop": 0.45, "learning_rate": 3e-3, "micro_batch_tokens": 40}
    ),
    "the KL of a step is limited": lambda among: _trainer(
        among,
        optimizer={
            "kl_control": {"target": 0.15, "limit": 0.3},
            "learning_rate": 3e-3,
            "micro_batch_tokens": 40,
        },
    ),
    "the KL of a step is limited, LoRA": lambda among: _lora(
        among, optimizer={"kl_control": {"target": 0.02, "limit": 0.05}, "learning_rate": 3e-3}
    ),
    "replay of the policy's attempts, three problems": lambda among: _trainer(
        among, stage={"replay": {"share": 0.34}}, **GROUPS_3
    ),
    "replay of the base's attempts, trees": lambda among: _trainer(
        among,
        stage={"replay": {"share": 0.5, "pool": "base", "size": 3}, "revisions": 2},
        rollout={"batch_size": 16},
    ),
    "replay one step ahead, penalty in the reward": lambda among: _trainer(
        among,
        stage={"replay": {"share": 0.5}},
        rollout={"ahead": 1},
        kl={"placement": "reward"},
        optimizer={"tis_cap": 2.0, "learning_rate": 3e-3},
    ),
    "trees": lambda among: _trainer(among, stage={"revisions": 2}, kl={"placement": "loss", "estimator": "k2"}),
    "one step ahead, adaptive beta2, three problems": lambda among: _trainer(
        among,
        stage=ADAPTIVE,
        rollout={"batch_size": 12, "ahead": 1},
        optimizer={"micro_batch_tokens": 60, "tis_cap": 2.0, "learning_rate": 3e-3},
    ),
    "one step ahead, penalty in the loss, dynamic sampling": lambda among: _trainer(
        among,
        stage={"max_gen_batches": 3},
        rollout={"ahead": 1},
        kl={"placement": "loss", "estimator": "k3"},
        optimizer={"tis_cap": 2.0, "learning_rate": 3e-3},
    ),
    "importance weights": lambda among: _trainer(among, optimizer={"tis_cap": 2.0}),
    "shuffled verdicts": lambda among: _trainer(among, task={"shuffle_verdicts": True}),
    "three problems": lambda among: _trainer(among, **GROUPS_3),
    "one problem": lambda among: _trainer(among, rollout={"batch_size": 4}, log={"turn_gradients_every": 1}),
    "a problem twice in a step": lambda among: _trainer(among, rollout={"batch_size": 64}),
    "LoRA": lambda among: _trainer(among, lively(of_family("Llama", tied=True, cpu_kernels=False))),
    "float32": lambda among: _trainer(among, tiny_model(0, dtype=torch.float32)),
    "LoRA beside its own base, full KL": lambda among: _lora(among, kl={"placement": "loss", "estimator": "full"}),
    "supervised": _supervised,
    "supervised, verifications that are written": lambda among: _supervised(
        among, IF_WRONG, method="self_rewarding_ift", learn="both"
    ),
}


def results(name: str, among: Processes) -> dict[str, Any]:
    """Return the metrics of every step, the sampled ids and the weights at the end."""
    trainer = SCENARIOS[name](among)
    start = _weights(trainer)
    records = [trainer.step() for _ in range(STEPS + name.startswith(LATER))]
    return {
        "metrics": [dict(record.metrics) for record in records],
        "ids": [[list(episode.ids) for episode in record.episodes] for record in records],
        "verdicts": [[list(episode.rewards) for episode in record.episodes] for record in records],
        "weights": _weights(trainer),
        "still": [name for name, weight in _weights(trainer).items() if torch.equal(weight, start[name])],
        "selection": trainer.selection_metric(),
        "sharded": trainer.policy.placement.sharded,
        "held": held_bytes(trainer),
    }


def held_bytes(trainer: StageTrainer) -> dict[str, int]:
    """Return the bytes that this process holds between two steps: of weights, references and moments."""

    def size(tensors: Iterable[torch.Tensor]) -> int:
        own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    moments = trainer.learner.optimizer.state.values()
    return {
        "weights": size(trainer.policy.model.parameters()),
        "references": sum(size(model.model.parameters()) for model in getattr(trainer, "references", [])),
        "moments": size(state[name] for state in moments for name in ("exp_avg", "exp_avg_sq")),
    }


def _weights(trainer: StageTrainer) -> dict[str, torch.Tensor]:
    named = trainer.policy.model.named_parameters()
    return {name: full_tensor(weight).detach().clone() for name, weight in named if weight.requires_grad}


def launch(
    script: Path, count: int, folder: Path, arguments: Sequence[str] = (), *, time_limit_s: float = 240
) -> list[str]:
    """Run a script in ``count`` processes as a launcher would; return what each wrote.

    Raises:
        AssertionError: a process fails; the message is the end of its output.
        subprocess.TimeoutExpired: they hang.
    """
    logs = [(folder / f"rank-{rank}-of-{count}.log").open("w+") for rank in range(count)]
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=log,
            stderr=log,
            env=launcher_environment(rank, count, port),
        )
        for rank, log in enumerate(logs)
    ]
    try:
        for process in processes:
            process.wait(time_limit_s)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    said = [Path(log.name).read_text() for log in logs]
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


def launcher_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the environment that torchrun gives a process, with one thread."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    variables = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **variables, **{name: str(number) for name, number in numbers.items()}}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(folder: str) -> None:
    """Be one of the processes."""
    with joined(timeout_s=60) as world:
        ways = [Processes(world, sharded) for sharded in (False, True)]
        found: dict[Any, Any] = {way.sharded: {name: results(name, way) for name in SCENARIOS} for way in ways}
        found["models"] = {name: facts(name, Path(folder), world) for name in MODELS}
        found["stored"] = stored_shards.some(Path(folder), world)
        found["late optimizer"], found["later adapter"] = late_optimizer(world), later_adapter(world)
        torch.save(found, Path(folder) / f"rank-{world.rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
