"""Flatten gradients to vectors and measure the distance of two of them."""

from __future__ import annotations

from typing import Any

import torch


def gradient(model: Any) -> torch.Tensor:
    """Return all gradients of a model as one vector; a missing gradient counts as zero."""
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts]).double()


def relative_gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())
