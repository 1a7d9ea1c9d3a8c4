"""What lies outside the image, or all over it: shear and uniform sheets."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.mass.profile import Deflection


def shear(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    """External shear: α = (γ1 x + γ2 y, γ2 x − γ1 y)."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def shear_potential(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Tensor:
    """ψ = ½ γ1 (x² − y²) + γ2 x y."""
    return 0.5 * gamma1 * (x * x - y * y) + gamma2 * x * y


def mass_sheet(x: Tensor, y: Tensor, kappa: Tensor, center_x: Tensor, center_y: Tensor) -> Deflection:
    """Uniform convergence: α = κ (x − x_c, y − y_c); negative to compensate the mean mass of a population."""
    # expanded, because a row of x alone would give α_x the shape of a row
    dx, dy = (x - center_x) + 0 * y, (y - center_y) + 0 * x
    return kappa * dx, kappa * dy


def mass_sheet_potential(x: Tensor, y: Tensor, kappa: Tensor, center_x: Tensor, center_y: Tensor) -> Tensor:
    """ψ = ½ κ r²."""
    dx, dy = x - center_x, y - center_y
    return 0.5 * kappa * (dx * dx + dy * dy)


def square_sheet(
    x: Tensor, y: Tensor, kappa: Tensor, half_width: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Uniform convergence inside a square, none outside: minus the mean of halos that fill an image.

    α_x = κ/π Σ ± H(u, w) over the corners, u = x − x_c ± a, w = y − y_c ± a, H = ½ w ln(u² + w²) + u atan(w/u): the
    integral of the point mass over the square.
    """
    dx, dy = (x - center_x) + 0 * y, (y - center_y) + 0 * x
    u, w = (dx + half_width, dx - half_width), (dy + half_width, dy - half_width)
    alpha_x = _corner(u[0], w[0]) - _corner(u[0], w[1]) - _corner(u[1], w[0]) + _corner(u[1], w[1])
    alpha_y = _corner(w[0], u[0]) - _corner(w[0], u[1]) - _corner(w[1], u[0]) + _corner(w[1], u[1])
    return kappa / torch.pi * alpha_x, kappa / torch.pi * alpha_y


def square_sheet_potential(
    x: Tensor, y: Tensor, kappa: Tensor, half_width: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """ψ = κ/2π Σ ± K(u, w) over the corners, K = u w [ln(u² + w²) − 3] + u² atan(w/u) + w² atan(u/w): the integral of
    a point mass's ½ ln r² over the square."""
    dx, dy = x - center_x, y - center_y
    total = torch.zeros_like(dx + dy)
    for sign, u, w in (
        (1, dx + half_width, dy + half_width),
        (-1, dx + half_width, dy - half_width),
        (-1, dx - half_width, dy + half_width),
        (1, dx - half_width, dy - half_width),
    ):
        tiny = torch.finfo(u.dtype).tiny
        log = torch.log(u * u + w * w + tiny)
        angle = torch.atan2(w.abs(), u.abs() + tiny)
        even = u * u * angle + w * w * (0.5 * torch.pi - angle)  # of |u| and |w|
        total = total + sign * (u * w * (log - 3) + torch.sign(u * w) * even)
    return kappa / (2 * torch.pi) * total


def _corner(u: Tensor, w: Tensor) -> Tensor:
    tiny = torch.finfo(u.dtype).tiny
    # u atan(w/u) is even in u and 0 at u = 0
    return 0.5 * w * torch.log(u * u + w * w + tiny) + u.abs() * torch.atan2(w, u.abs() + tiny)
