"""Supervised training on chosen turns of episodes, on the same rows and scores as reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.batch import MicroBatch, filler, micro_batch_tokens, micro_batches, pack
from selfcorrect.training.learner import Learner
from selfcorrect.training.sample import TrainingSample
from selfcorrect.training.scoring import score


@dataclass(frozen=True, slots=True)
class Fit:
    """The fit of a batch: mean negative log-likelihood per token, in nats, and the fraction of rows known outright.

    A row is known outright if every scored token has a probability above 1/2, so that greedy decoding writes it.
    """

    loss: float
    known: float


def supervised_backward(
    model: LanguageModel,
    batches: Sequence[MicroBatch],
    *,
    backward: Callable[[Tensor], None] = torch.autograd.backward,
    tokens: int | None = None,
) -> list[Fit]:
    """Add the gradient of the mean negative log-likelihood per scored token of all rows; return the fit of each batch.

    Each batch's sum is divided by the tokens of all batches, so the split does not change the gradient. ``backward`` adds
    the gradient of a batch's loss: `Learner.backward`, or autograd's. ``tokens`` is the number of scored tokens in the
    batches of all processes; unset = those of ``batches``.
    """
    tokens = tokens or sum(len(rows.logprobs_S) for rows in batches)
    fits = []
    for rows in batches:
        logprobs_S = score(model, rows, 1.0).logprobs_S
        backward(-logprobs_S.sum() / tokens)
        if not len(logprobs_S):
            fits.append(Fit(0.0, 0.0))
            continue
        doubtful_S = logprobs_S.detach() <= math.log(0.5)
        doubtful_B = torch.zeros(len(rows.tokens_BT)).index_add(0, rows.scored[0].cpu(), doubtful_S.float().cpu())
        fits.append(Fit(-float(logprobs_S.detach().mean()), float((doubtful_B == 0).float().mean())))
    return fits


def supervised_batches(learner: Learner, samples: Sequence[TrainingSample]) -> list[MicroBatch]:
    """Pack the samples into micro-batches on the policy's device, as many as every process must have."""
    policy = learner.policy
    budget = micro_batch_tokens(learner.settings.micro_batch_tokens, policy.device)
    batches = micro_batches([len(sample) for sample in samples], budget)
    packed = [pack(samples, places, pad_id=policy.pad_id) for places in batches]
    packed += [filler(pad_id=policy.pad_id)] * learner.missing(len(packed))
    return [rows.to(policy.device) for rows in packed]


def supervised_gradient(learner: Learner, samples: Sequence[TrainingSample], *, rows: int) -> Fit:
    """Replace the learner's gradient by that of the samples of all processes; return their fit.

    ``samples`` are those of this process, ``rows`` the number in all of them.
    """
    learner.zero_grad()
    batches, world = supervised_batches(learner, samples), learner.world
    tokens = int(world.total(sum(len(batch.logprobs_S) for batch in batches)))
    fits = supervised_backward(learner.policy, batches, backward=learner.backward, tokens=tokens)
    losses = sum(fit.loss * len(batch.logprobs_S) for fit, batch in zip(fits, batches, strict=True))
    known = sum(fit.known * len(batch.tokens_BT) for fit, batch in zip(fits, batches, strict=True))
    return Fit(world.total(losses) / tokens, world.total(known) / rows)
