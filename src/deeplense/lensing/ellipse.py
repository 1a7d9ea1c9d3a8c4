"""Ellipticities (e1, e2) ⇄ axis ratio and angle, in lenstronomy's convention."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_ratio(e1: Tensor, e2: Tensor) -> Tensor:
    """q = (1 − c)/(1 + c) with c = |e|."""
    c = torch.sqrt(e1 * e1 + e2 * e2)
    return (1 - c) / (1 + c)


def direction(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
    """(cos φ, sin φ) of the major axis, φ = ½ atan2(e2, e1)."""
    phi = 0.5 * torch.atan2(e2, e1)
    return torch.cos(phi), torch.sin(phi)
