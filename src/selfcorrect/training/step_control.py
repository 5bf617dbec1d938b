"""How far a step may lead: `optimizer.kl_stop` and `optimizer.kl_control` (docs/method.md, "Control of the step")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfcorrect.distributed.world import World
from selfcorrect.method.step_control import divergence, goes_too_far, next_factor
from selfcorrect.training.batch import MicroBatch
from selfcorrect.training.learner import Learner, Snapshot
from selfcorrect.training.scoring import score_reference
from selfcorrect.training.stage_trainer import StageState
from selfcorrect.training.step_metrics import StepTotals


@dataclass(slots=True)
class StepUpdates:
    """The updates of a step.

    Attributes:
        totals: the sums of every pass over the rollout; with `kl_stop`, the last pass may have led to no update.
        norms: the gradient's norm at every update, before clipping.
        kl: with `kl_control`, how far the updates led from the policy before them, in nats per token.
        undone: whether the learner is as it was before them.
    """

    totals: list[StepTotals] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    kl: float = 0.0
    undone: bool = False


class StepControl:
    """A control that measures how far a step leads, ends its updates early, undoes them, and adapts the learning rate.

    Between steps it keeps nothing: the factor of the learning rate is part of `StageState`. The processes of a run add up what
    they measure, so all decide alike.

    Args:
        learner: the owner of the weights and of the settings.
        temperature: that of sampling.
        world: the processes that share a step.
    """

    def __init__(self, learner: Learner, temperature: float, world: World) -> None:
        self.learner, self.temperature, self.world = learner, temperature, world
        self.stop, self.settings = learner.settings.kl_stop, learner.settings.kl_control
        self._before: Snapshot | None = None

    def begin(self) -> StepUpdates:
        """Begin a step: keep what its updates change if they may be undone."""
        if self.settings is not None and self.settings.limit is not None:
            self._before = self.learner.snapshot()
        return StepUpdates()

    def ends(self, updates: StepUpdates) -> bool:
        """Return whether the last pass, before which updates were taken, found the policy too far from where the step began."""
        return self.stop is not None and bool(updates.norms) and updates.totals[-1].divergence() > self.stop

    def end(self, updates: StepUpdates, batches: Sequence[MicroBatch], old_logprobs: Sequence[Tensor]) -> None:
        """Measure how far the updates led, and undo them if that is too far; without `kl_control`, do nothing.

        ``old_logprobs`` are those of the policy before the step's first update [S], one for each of this process's
        micro-batches. Where the last pass led to no update, it has measured the KL already.
        """
        if self.settings is None:
            return
        stopped = len(updates.totals) > len(updates.norms)
        updates.kl = updates.totals[-1].divergence() if stopped else self._measured(batches, old_logprobs)
        self.learner.policy.placement.release()
        before, self._before = self._before, None
        if before is not None and goes_too_far(updates.kl, self.settings):
            self.learner.put_back(before)
            updates.undone = True

    def _measured(self, batches: Sequence[MicroBatch], old_logprobs: Sequence[Tensor]) -> float:
        policy = self.learner.policy
        total = torch.zeros(2, dtype=torch.float64, device=policy.device)
        for rows, old_S in zip(batches, old_logprobs, strict=True):
            new_S = score_reference(policy, rows, self.temperature).logprobs_S
            total += torch.stack([divergence(old_S, new_S).sum(), total.new_tensor(len(new_S))])
        summed = total.cpu()
        self.world.sum([summed])
        return float(summed[0]) / max(1.0, float(summed[1]))

    def metrics(self, updates: StepUpdates, state: StageState) -> dict[str, Any]:
        """Return the metrics of a step that is over, and adapt the factor of the learning rate in ``state``."""
        found: dict[str, Any] = {} if self.stop is None else {"approx_kl": updates.totals[-1].divergence()}
        if self.settings is not None:
            kl_step = updates.kl if math.isfinite(updates.kl) else None
            found |= {"kl_step": kl_step, "lr_factor": state.lr_factor, "undone": int(updates.undone)}
            state.lr_factor = next_factor(state.lr_factor, updates.kl, self.settings)
        return found
