"""Compute the gradient of fixed episodes, on one process or on several whose model FSDP2 shards, with the same learner.

As a script it is one of the processes: ``python tests/support/sharded.py RANK WORLD FOLDER``. Rank 0 writes
``FOLDER/gradients.pt``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for use as a script

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.models.scorable import HeadPass
from selfcorrect.training.batch import MicroBatch, pack
from selfcorrect.training.learner import Learner
from selfcorrect.training.sample import TrainingSample
from selfcorrect.training.scoring import score
from support.episodes import episode, turn
from support.families import lively, of_family
from support.trainers import settings

PROMPTS = [(4, 5, 6), (7, 8), (9, 10, 11, 12), (5, 9)]
EPISODES = [
    episode(
        turn(prompt, [13 + g, 14, 2], right=g % 2),
        turn([3, 3 + g], [15, 16 + g, 4, 2][g:], right=(g + 1) % 2),
        name=str(p),
        sample=g,
    )
    for p, prompt in enumerate(PROMPTS)
    for g in range(2)
]
ADVANTAGES_NK = torch.linspace(-1.5, 2.0, 2 * len(EPISODES), dtype=torch.float64).view(-1, 2)


@dataclass(frozen=True)
class Scenario:
    """A way to train: the parameters, and the way to their gradient."""

    lora: bool
    tied: bool
    by_turn: bool
    head: str
    dtype: str

    @property
    def name(self) -> str:
        return "-".join(
            [
                "lora" if self.lora else "full",
                "tied" if self.tied else "untied",
                "by_turn" if self.by_turn else "whole",
                self.head,
                self.dtype,
            ]
        )


SCENARIOS = [
    Scenario(*values, head=head, dtype=dtype)
    for values in itertools.product((False, True), (False, True), (False, True))
    for head, dtype in [*((head, "float64") for head in HeadPass), (HeadPass.CHECKPOINTED, "float32")]
]
"""In float32 only with the head that sharded models use."""


def policy_of(scenario: Scenario) -> LanguageModel:
    """Return a tiny Llama with the general forward pass; the CPU's calls parts of layers, where FSDP2 has no hooks."""
    model = of_family("Llama", tied=scenario.tied, dtype=getattr(torch, scenario.dtype), cpu_kernels=False)
    policy = lively(model) if scenario.lora else model
    policy.head_pass = HeadPass(scenario.head)
    return policy


def shard(model: Any) -> None:
    """Shard each layer with FSDP2, and the rest in the root's group: embeddings, last norm and head."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)


def gradients(scenario: Scenario, policy: LanguageModel, rank: int, world: int) -> dict[str, Tensor]:
    """Return the learner's gradient of every parameter after this process's part of the episodes.

    FSDP2 divides the sum over processes by their number, so the loss of each is multiplied by it.
    """
    learner = Learner(policy, settings().optimizer)
    losses = as_forward(policy, lambda rows: losses_of(policy, rows))
    learner.zero_grad()
    share = len(EPISODES) // world
    samples = [TrainingSample.of_episode(one) for one in EPISODES]
    for start in range(rank * share, (rank + 1) * share, 2):
        rows = pack(samples, range(start, start + 2), pad_id=policy.pad_id)
        mean_K = losses(rows) * world / len(EPISODES)
        if scenario.by_turn:
            learner.backward_by_turn(mean_K, lambda k, gradients: None)
        else:
            learner.backward(mean_K.sum())
    learner.check_complete("the step")
    names = {id(parameter): name for name, parameter in policy.model.named_parameters()}
    return {names[id(p)]: p.grad for p in policy.parameters() if p.grad is not None}


def losses_of(policy: LanguageModel, rows: MicroBatch) -> Tensor:
    """Return minus advantage times log pi, plus a KL-like term without entropy in the second turn, summed by turn, [K]."""
    logprobs_S = score(policy, rows, 0.9).logprobs_S
    advantages_S = ADVANTAGES_NK.to(logprobs_S)[rows.episode_S, rows.turn_S]
    loss_S = -advantages_S * logprobs_S + 0.1 * rows.turn_S * logprobs_S.square()
    return loss_S.new_zeros(2).index_add(0, rows.turn_S, loss_S)


def as_forward(policy: LanguageModel, function: Callable[[MicroBatch], Tensor]) -> Callable[[MicroBatch], Tensor]:
    """Return the function as a forward method of a sharded model, so that its root group is unsharded while it runs."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(policy.model, FSDPModule):
        return function
    policy.model.losses_of_rows = function
    register_fsdp_forward_method(policy.model, "losses_of_rows")
    found: Callable[[MicroBatch], Tensor] = policy.model.losses_of_rows
    return found


def main(arguments: Sequence[str]) -> None:
    """Run one of the processes."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    rank, world, folder = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    found = {}
    for scenario in SCENARIOS:
        policy = policy_of(scenario)
        shard(policy.model)
        of_scenario = gradients(scenario, policy, rank, world)
        assert all(isinstance(gradient, DTensor) for gradient in of_scenario.values())
        found[scenario.name] = {name: gradient.full_tensor() for name, gradient in of_scenario.items()}
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
