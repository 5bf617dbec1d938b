"""Supervised training on chosen turns of episodes, on the same rows and scores as reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfcorrect.models.language_model import LanguageModel
from selfcorrect.training.batch import MicroBatch
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
