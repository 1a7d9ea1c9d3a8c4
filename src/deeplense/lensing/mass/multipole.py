"""Angular structure of the macro lens beyond the ellipse."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.mass.profile import Deflection


def multipole(
    x: Tensor, y: Tensor, m: Tensor, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Multipole of order m ≥ 2, ψ = r a_m/(1 − m²) cos m(φ − φ_m) (Xu et al. 2015, eq. B12).

    κ = a_m/(2r) cos m(φ − φ_m): for an isothermal lens of Einstein radius θ_E the isodensity contours change by
    δr/r = a_m/θ_E cos m(φ − φ_m). With φ_m along the major axis, m = 4 is disky (a_m > 0) or boxy (a_m < 0); m = 3 is
    lopsided.
    """
    dx, dy = x - center_x, y - center_y
    centre = (dx == 0) & (dy == 0)
    dx, dy = torch.where(centre, torch.ones_like(dx * dy), dx), torch.where(centre, torch.zeros_like(dx * dy), dy)
    inverse_r = torch.rsqrt(dx * dx + dy * dy)
    cos, sin = dx * inverse_r, dy * inverse_r
    turn = m * (torch.atan2(dy, dx) - phi_m)
    radial = a_m / (1 - m * m) * torch.cos(turn)  # ∂ψ/∂r
    tangential = -m * a_m / (1 - m * m) * torch.sin(turn)  # ∂ψ/∂φ /r
    return radial * cos - tangential * sin, radial * sin + tangential * cos


def multipole_potential(
    x: Tensor, y: Tensor, m: Tensor, a_m: Tensor, phi_m: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """The ψ that `multipole` is the gradient of."""
    dx, dy = x - center_x, y - center_y
    r = torch.sqrt((dx * dx + dy * dy).clamp_min(torch.finfo(dx.dtype).tiny))
    return a_m / (1 - m * m) * r * torch.cos(m * (torch.atan2(dy, dx) - phi_m))
