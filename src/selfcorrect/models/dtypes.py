"""Dtypes of weights and computation."""

from __future__ import annotations

import torch

from selfcorrect.types import Dtype

DTYPES: dict[str, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT64: torch.float64,
}

ROUNDED = (torch.bfloat16, torch.float16)
