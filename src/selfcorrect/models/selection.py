"""Rows of a tensor by index, with gradients that do not depend on how busy the cores are.

Where an index occurs twice, the gradients of its copies add up. Behind ``tensor[index]``, the threads of a CPU add them
in the order in which they arrive, so the last bits of a float32 sum change from run to run; one lock for each element
also makes it slow. The backward pass of an embedding adds them in the order of the indices, on a CPU and on a GPU.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rows_at(tensor: Tensor, index: Tensor) -> Tensor:
    """Return ``tensor[index]`` for a tensor [T, ...] and indices of any shape, none negative: [*index.shape, ...]."""
    table_TX = tensor.reshape(len(tensor), -1)
    return functional.embedding(index, table_TX).view(*index.shape, *tensor.shape[1:])


def tokens_at(hidden_BTD: Tensor, row_S: Tensor, position_S: Tensor) -> Tensor:
    """Return ``hidden_BTD[row_S, position_S]``, [S, D]; no position may be negative."""
    return rows_at(hidden_BTD.flatten(0, 1), row_S * hidden_BTD.shape[1] + position_S)
