"""Elliptical power law of any slope."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.ellipse import axis_ratio, direction
from deeplense.lensing.mass.profile import Deflection

TERMS = 34  # of the angular series; what is left out is below 2e-9 of α at q = 0.3, and its gradient below 2e-7
FLOOR = 1e-9  # arcsec, of the elliptical radius, as in lenstronomy


def epl(
    x: Tensor, y: Tensor, theta_E: Tensor, gamma: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Elliptical power law, κ = (3 − γ)/2 (θ_E/sqrt(q x'² + y'²/q))^(γ−1) (Tessore & Metcalf 2015, eqs. 13, 23-29).

    γ is the slope of the density in three dimensions, 1.1 < γ < 2.9; γ = 2 is the `sie`. With t = γ − 1, b = θ_E √q,
    f = (1−q)/(1+q), R e^{iφ} = q x' + i y' and w = −f e^{2iφ}:
    α = 2b/(1+q) (b/R)^{t−1} e^{iφ} Σ_n w^n Π_{k≤n} (2k − 2 + t)/(2k + 2 − t).
    """
    q = axis_ratio(e1, e2)
    c, s = direction(e1, e2)
    dx, dy = x - center_x, y - center_y
    u, v = (q * c) * dx + (q * s) * dy, c * dy - s * dx
    R2 = torch.addcmul(u * u, v, v).clamp_min(FLOOR**2)
    inverse_R = torch.rsqrt(R2)
    cos, sin = u * inverse_R, v * inverse_R
    t, f = gamma - 1, (1 - q) / (1 + q)
    # Clenshaw's recurrence sums the cosine and the sine series at once, in two passes a term
    cos2, sin2 = (cos - sin) * (cos + sin), 2 * cos * sin
    twice = 2 * cos2
    coefficients = [torch.ones_like(t * f)]
    for n in range(1, TERMS):
        coefficients.append(coefficients[-1] * (-f * (2 * n - 2 + t) / (2 * n + 2 - t)))
    later, last = torch.zeros_like(twice), torch.zeros_like(twice)
    for coefficient in reversed(coefficients[1:]):
        later, last = last, twice * last + (coefficient - later)
    real, imaginary = coefficients[0] + cos2 * last - later, sin2 * last
    b = theta_E * torch.sqrt(q)
    # θ_E apart from the power: a masked lens, θ_E = 0, must give 0 and a finite gradient for every slope
    strength = 2 / (1 + q) * b * (b.clamp_min(1e-30) * inverse_R) ** (t - 1)
    alpha_u, alpha_v = strength * (cos * real - sin * imaginary), strength * (sin * real + cos * imaginary)
    return c * alpha_u - s * alpha_v, s * alpha_u + c * alpha_v


def epl_potential(
    x: Tensor, y: Tensor, theta_E: Tensor, gamma: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """ψ = r·α/(3 − γ) of `epl`, homogeneous of that degree (Tessore & Metcalf 2015, eq. 15)."""
    alpha_x, alpha_y = epl(x, y, theta_E, gamma, e1, e2, center_x, center_y)
    return ((x - center_x) * alpha_x + (y - center_y) * alpha_y) / (3 - gamma)
