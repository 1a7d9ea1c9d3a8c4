"""What lies outside the image: shear and a uniform sheet."""

from __future__ import annotations

from torch import Tensor

from deeplense.lensing.mass.profile import Deflection


def shear(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    """External shear: α = (γ1 x + γ2 y, γ2 x − γ1 y)."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def mass_sheet(x: Tensor, y: Tensor, kappa: Tensor, center_x: Tensor, center_y: Tensor) -> Deflection:
    """Uniform convergence: α = κ (x − x_c, y − y_c); negative to compensate the mean mass of a population."""
    # expanded, because a row of x alone would give α_x the shape of a row
    dx, dy = (x - center_x) + 0 * y, (y - center_y) + 0 * x
    return kappa * dx, kappa * dy
