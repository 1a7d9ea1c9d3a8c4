"""Plane waves of mass: what a random field is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.mass.profile import Deflection


def plane_wave(x: Tensor, y: Tensor, kappa: Tensor, k_x: Tensor, k_y: Tensor, phase: Tensor) -> Deflection:
    """Σ over N waves of κ = kappa · cos(k·θ + phase): α = Σ 2 kappa k/k² sin(k·θ + phase) (from ∇²ψ = 2κ).

    On a grid, x a row and y a column, sin(a + b) = sin a cos b + cos a sin b makes the sum two products of matrices:
    hundreds of waves cost what a few would.

    Args:
        k_x, k_y: (B, N, 1, 1) [1/arcsec], like the other parameters.

    Returns:
        (B, 1, H, W).
    """
    strength = 2 * kappa / (k_x * k_x + k_y * k_y)
    both = torch.stack([k_x * strength, k_y * strength], 1)  # (B, 2, N, 1, 1)
    if x.shape[-2] > 1 or y.shape[-1] > 1:
        wave = (torch.sin(k_x * x + k_y * y + phase)[:, None] * both).sum(2)
        return wave[:, :1], wave[:, 1:]
    along, across = (k_x * x)[..., 0, :], (k_y * y + phase)[..., 0]
    row = torch.cat([torch.sin(along), torch.cos(along)], 1)  # (B, 2N, W)
    column = torch.cat([torch.cos(across), torch.sin(across)], 1)[:, None] * torch.cat([both, both], 2)[..., 0]
    wave = column.transpose(-1, -2) @ row[:, None]
    return wave[:, :1], wave[:, 1:]


def plane_wave_potential(x: Tensor, y: Tensor, kappa: Tensor, k_x: Tensor, k_y: Tensor, phase: Tensor) -> Tensor:
    """ψ = −2 kappa/k² cos(k·θ + phase)."""
    return torch.cos(k_x * x + k_y * y + phase) * (-2 * kappa / (k_x * k_x + k_y * k_y))
