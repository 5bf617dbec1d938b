"""Dtypes of weights and computation."""

from __future__ import annotations

import torch

from selfcorrect.models.cpu.instructions import has_bfloat16
from selfcorrect.types import Dtype

DTYPES: dict[str, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT64: torch.float64,
}

ROUNDED = (torch.bfloat16, torch.float16)


def fast_dtype(device: str) -> Dtype:
    """Return bfloat16 if the device multiplies matrices in it, else float32: an emulation is slower than float32."""
    cuda = torch.device(device).type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else has_bfloat16()
    return Dtype.BFLOAT16 if native else Dtype.FLOAT32
