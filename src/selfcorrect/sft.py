"""Supervised training on chosen turns of episodes, on the same rows and scores as reinforcement learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfcorrect.batch import Rows
from selfcorrect.modeling import LanguageModel
from selfcorrect.policy import score


def supervised_backward(model: LanguageModel, batches: Sequence[Rows]) -> list[float]:
    """Add the gradient of the mean negative log-likelihood per scored token of all rows.

    Returns each batch's own mean, in nats.
    """
    tokens = sum(len(rows.logprobs_S) for rows in batches)
    means = []
    for rows in batches:
        loss = -score(model, rows, 1.0).logprobs_S.sum()
        torch.autograd.backward(loss / tokens)
        means.append(float(loss.detach()) / len(rows.logprobs_S))
    return means
