"""Plane waves of mass: what a random field is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.mass.profile import Deflection


def plane_wave(x: Tensor, y: Tensor, kappa: Tensor, k_x: Tensor, k_y: Tensor, phase: Tensor) -> Deflection:
    """κ = kappa · cos(k·θ + phase), so that α = 2 kappa k/k² sin(k·θ + phase) (from ∇²ψ = 2κ); k in 1/arcsec."""
    wave = torch.sin(k_x * x + k_y * y + phase) * (2 * kappa / (k_x * k_x + k_y * k_y))
    return k_x * wave, k_y * wave


def plane_wave_potential(x: Tensor, y: Tensor, kappa: Tensor, k_x: Tensor, k_y: Tensor, phase: Tensor) -> Tensor:
    """ψ = −2 kappa/k² cos(k·θ + phase)."""
    return torch.cos(k_x * x + k_y * y + phase) * (-2 * kappa / (k_x * k_x + k_y * k_y))
