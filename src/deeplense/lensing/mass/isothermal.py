"""Isothermal: flat rotation curves, the classic lens galaxy."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.ellipse import axis_ratio, direction
from deeplense.lensing.mass.profile import Deflection

SERIES = 1e-6  # of f² = 1 − q²: below, the series; above, the closed form keeps all its digits


def sie(
    x: Tensor, y: Tensor, theta_E: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Deflection:
    """Singular isothermal ellipsoid, κ = ½ θ_E / sqrt(q x'² + y'²/q) (Kormann, Schneider & Bartelmann 1994, eq. 27).

    α_x' = θ_E √q atan(f w)/f and α_y' = θ_E √q atanh(f z)/f with (w, z) = (x', y')/ψ; near q = 1, where f → 0, by the
    series of atan and atanh.
    """
    q = axis_ratio(e1, e2)
    c, s = direction(e1, e2)
    dx, dy = x - center_x, y - center_y
    qu, v = (q * c) * dx + (q * s) * dy, c * dy - s * dx
    inverse_psi = torch.rsqrt(torch.addcmul(qu * qu, v, v).clamp_min(torch.finfo(v.dtype).tiny))
    f2 = 1 - q * q
    f = torch.sqrt(f2.clamp_min(SERIES))
    strength = theta_E * torch.sqrt(q) / f
    t, z = (f / q) * qu * inverse_psi, f * v * inverse_psi
    # |f z| < 1 in exact arithmetic only
    alpha_u = strength * torch.atan(t)
    alpha_v = strength * torch.atanh(z.clamp(-1 + 1e-7, 1 - 1e-7) if z.dtype == torch.float32 else z)
    if torch.compiler.is_compiling() or bool((f2 < SERIES).any()):  # a graph has both
        w, z = (qu / q) * inverse_psi, v * inverse_psi
        tw, tz, unit = f2 * w * w, f2 * z * z, theta_E * torch.sqrt(q)
        alpha_u = torch.where(f2 < SERIES, unit * w * (1 - tw * (1 / 3 - tw * (1 / 5 - tw / 7))), alpha_u)
        alpha_v = torch.where(f2 < SERIES, unit * z * (1 + tz * (1 / 3 + tz * (1 / 5 + tz / 7))), alpha_v)
    return c * alpha_u - s * alpha_v, s * alpha_u + c * alpha_v


def sie_potential(
    x: Tensor, y: Tensor, theta_E: Tensor, e1: Tensor, e2: Tensor, center_x: Tensor, center_y: Tensor
) -> Tensor:
    """ψ = r·α of `sie`, which is homogeneous of degree 1 around its centre (Euler)."""
    alpha_x, alpha_y = sie(x, y, theta_E, e1, e2, center_x, center_y)
    return (x - center_x) * alpha_x + (y - center_y) * alpha_y
