"""Compact masses: a point, and a point of finite size."""

from __future__ import annotations

import torch
from torch import Tensor


def point_mass(r2: Tensor, theta_E2: Tensor) -> Tensor:
    """Point mass: α = θ_E² r/|r|²; `theta_E2` is θ_E² [arcsec²], linear in mass. Returns α/r."""
    return theta_E2 / r2


def point_mass_potential(r2: Tensor, theta_E2: Tensor) -> Tensor:
    """ψ = θ_E² ln r."""
    return 0.5 * theta_E2 * torch.log(r2)


def plummer(r2: Tensor, theta_E2: Tensor, r_s: Tensor) -> Tensor:
    """Plummer's sphere of total θ_E² and scale r_s, κ = θ_E² r_s²/(r² + r_s²)²: α/r = θ_E²/(r² + r_s²).

    Plummer (1911), projected: ρ ∝ (1 + r²/r_s²)^(−5/2) has the surface density ∝ (1 + R²/r_s²)^(−2).
    """
    return theta_E2 / (r2 + r_s * r_s)


def plummer_potential(r2: Tensor, theta_E2: Tensor, r_s: Tensor) -> Tensor:
    """ψ = ½ θ_E² ln(1 + r²/r_s²)."""
    return 0.5 * theta_E2 * torch.log1p(r2 / r_s**2)
