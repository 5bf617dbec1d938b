"""The learner, the one owner of what is trained: weights, float32 masters, optimizer, clipping, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfcorrect.config.optimizer import OptimizerConfig
from selfcorrect.distributed.shards import assert_sharded, is_shard, like
from selfcorrect.distributed.world import ALONE, World
from selfcorrect.errors import TrainingError
from selfcorrect.models.dtypes import ROUNDED
from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.master_weights import MasterWeights
from selfcorrect.training.schedule import scheduled

NAMED = 3
"""An error names at most N parameters."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What `Learner.put_back` restores, in the order of the parameters; moments are empty before the first update."""

    weights: Sequence[Tensor]
    moments: Sequence[Mapping[str, Tensor]]


class Learner:
    """A trainer of a policy's parameters, in place: all its weights, or only its adapter's.

    Create it once the weights are on their device and sharded, because the optimizer keeps references to them.

    Args:
        policy: the model to train.
        settings: how weights are updated.
        learning_rate: the stage's peak; unset = ``settings.learning_rate``.
        world: the processes whose gradients are added up before an update. Each holds the whole policy or its shard.

    Raises:
        TrainingError: the policy is sharded, but what it would train now is not.
    """

    def __init__(
        self,
        policy: LanguageModel,
        settings: OptimizerConfig,
        *,
        learning_rate: float | None = None,
        world: World = ALONE,
    ) -> None:
        self.policy, self.settings, self.world = policy, settings, world
        self.peak = learning_rate or settings.learning_rate
        shards = policy.placement.sharded and policy.adapter is None
        if shards:
            assert_sharded(policy.parameters())
        self.master_weights = MasterWeights(policy.parameters(), wider=shards and policy.dtype in ROUNDED)
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.master_weights.parameters,
            lr=self.peak,
            betas=self.settings.betas,
            eps=self.settings.epsilon,
            weight_decay=self.settings.weight_decay,
            fused=True if self.policy.device.type == "cuda" else None,  # one kernel, and no temporary copies
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters of the policy: its shards where it is sharded, also while it holds them whole."""
        return self.master_weights.weights

    def missing(self, batches: int) -> int:
        """Return how many micro-batches this process lacks: those that hold shards must all call the model equally often."""
        return self.world.largest(batches) - batches if self.policy.placement.sharded else 0

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, of ``steps``."""
        return scheduled(self.peak, step, steps, self.settings)

    # -- gradients -------------------------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Drop all gradients, before the first micro-batch of an update."""
        self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss."""
        torch.autograd.backward(loss)
        self.master_weights.grads_to_master()

    def backward_by_turn(self, loss_K: Tensor, report: Callable[[int, Sequence[Tensor | None]], None]) -> None:
        """Add the gradient of the sum of the turns' losses [K]; ``report`` gets each turn's gradients, one per parameter.

        Every turn takes a full backward pass. `torch.autograd.grad` would bypass a sharded model's hooks, and most of the
        gradients would be missing.
        """
        parameters = self.parameters
        for k in range(len(loss_K)):
            before = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            torch.autograd.backward(loss_K[k], retain_graph=k + 1 < len(loss_K))
            report(k, [parameter.grad for parameter in parameters])
            for parameter, total in zip(parameters, before, strict=True):
                if parameter.grad is None:
                    parameter.grad = total
                else:  # a copy: clipping scales it in place, and `report` may keep the turn's gradient
                    parameter.grad = parameter.grad.clone() if total is None else total + parameter.grad
        self.master_weights.grads_to_master()

    # -- the update ------------------------------------------------------------------------------------------------

    def update(self, rate: float, where: str) -> float:
        """Clip and check the gradient, take a step at learning rate ``rate``; return the norm before clipping.

        ``where`` names the step in messages.

        Raises:
            TrainingError: a trainable parameter has no gradient, or the norm is not finite. The weights are unchanged.
        """
        self.add_up()
        self.check_complete(where)
        norm = float(torch.nn.utils.clip_grad_norm_(self.master_weights.parameters, self.settings.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"{where}: the gradient's norm is {norm}; nothing was updated. "
                "Lower optimizer.learning_rate or use model.dtype = 'float32'; the last checkpoint is intact."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.master_weights.master_to_model()
        return norm

    def add_up(self) -> None:
        """Add up the gradients of all processes. One that had no episodes adds zeros. Those of shards are added up already."""
        masters = [master for master in self.master_weights.parameters if not is_shard(master)]
        if self.world.size == 1 or not masters:
            return
        present = torch.tensor([master.grad is not None for master in masters], dtype=torch.float64)
        self.world.sum([present])
        some = [master for master, count in zip(masters, present.tolist(), strict=True) if count]
        for master in some:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        self.world.sum([master.grad for master in some if master.grad is not None])

    def check_complete(self, where: str) -> None:
        """Reject a step in which a trainable parameter has no gradient: it would silently never change.

        Raises:
            TrainingError: some parameters have none; the message names up to three.
        """
        trained = zip(self.parameters, self.master_weights.parameters, strict=True)
        missing = {id(weight) for weight, master in trained if master.grad is None}
        if not missing:
            return
        names = [name for name, parameter in self.policy.model.named_parameters() if id(parameter) in missing]
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        raise TrainingError(
            f"{where}: {len(missing)} of {len(self.master_weights.parameters)} trainable parameters have no gradient "
            f"({shown}), so they would never be trained; nothing was updated. Freeze what takes no part in the model's "
            "logits (requires_grad_(False))."
        )

    # -- state -----------------------------------------------------------------------------------------------------

    def weights(self) -> list[Tensor]:
        """Return copies of the trained parameters, in float32 or wider, for `restart`."""
        return [weight.detach().clone() for weight in self.master_weights.parameters]

    @torch.no_grad()
    def restart(self, weights: Sequence[Tensor]) -> None:
        """Restore these weights and create a fresh optimizer."""
        for weight, first in zip(self.master_weights.parameters, weights, strict=True):
            weight.copy_(first)
        self.master_weights.master_to_model()
        self.optimizer = self._new_optimizer()

    def snapshot(self) -> Snapshot:
        """Return a copy of all that an update changes: the trained parameters, the optimizer's moments and its count."""
        moments = [self.optimizer.state.get(weight, {}) for weight in self.master_weights.parameters]
        return Snapshot(self.weights(), [{name: value.clone() for name, value in each.items()} for each in moments])

    @torch.no_grad()
    def put_back(self, before: Snapshot) -> None:
        """Undo the updates since `snapshot` returned ``before``. AdamW begins with moments and a count of 0."""
        parameters = self.master_weights.parameters
        for weight, value, moments in zip(parameters, before.weights, before.moments, strict=True):
            weight.copy_(value)
            for name, moment in self.optimizer.state.get(weight, {}).items():
                moment.copy_(moments[name]) if moments else moment.zero_()
        self.master_weights.master_to_model()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores in addition to the policy's weights. For a sharded policy it holds shards."""
        return {"optimizer": self.optimizer.state_dict(), "masters": self.master_weights.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, as whole tensors, for a policy that has the checkpoint's weights."""
        optimizer, masters = dict(state["optimizer"]), self.master_weights.parameters
        optimizer["state"] = {
            i: {name: like(value, masters[i]) for name, value in moments.items()}
            for i, moments in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)
        self.master_weights.load_state_dict(state["masters"])
