"""Number formats of weights and computation."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

ROUNDED = (torch.bfloat16, torch.float16)
