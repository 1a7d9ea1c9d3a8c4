"""Deflectors: reduced deflection angles α(x, y) [arcsec] of mass profiles.

To add a profile: write a function `(x, y, **parameters) -> (alpha_x, alpha_y)` in pure torch (of a circular one
`(r², **parameters) -> α/r`), add one line to `MASS`, and one row to the oracle table in `tests/lensing/test_mass.py`.
Coordinates and parameters broadcast, so `x` may be a row and `y` a column of pixels.
Angles are in arcsec, y up, x right; α is reduced, κ = ½∇·α.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deeplense.lensing.ellipse import axis_ratio, direction

Deflection = tuple[Tensor, Tensor]
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
    if bool((f2 < SERIES).any()):
        w, z = (qu / q) * inverse_psi, v * inverse_psi
        tw, tz, unit = f2 * w * w, f2 * z * z, theta_E * torch.sqrt(q)
        alpha_u = torch.where(f2 < SERIES, unit * w * (1 - tw * (1 / 3 - tw * (1 / 5 - tw / 7))), alpha_u)
        alpha_v = torch.where(f2 < SERIES, unit * z * (1 + tz * (1 / 3 + tz * (1 / 5 + tz / 7))), alpha_v)
    return c * alpha_u - s * alpha_v, s * alpha_u + c * alpha_v


def shear(x: Tensor, y: Tensor, gamma1: Tensor, gamma2: Tensor) -> Deflection:
    """External shear: α = (γ1 x + γ2 y, γ2 x − γ1 y)."""
    return gamma1 * x + gamma2 * y, gamma2 * x - gamma1 * y


def point_mass(r2: Tensor, theta_E2: Tensor) -> Tensor:
    """Point mass: α = θ_E² r/|r|²; `theta_E2` is θ_E² [arcsec²], linear in mass. Returns α/r."""
    return theta_E2 / r2


SOFTENING = 1e-9  # arcsec; keeps α finite at the ends of the line


def line_mass(
    x: Tensor,
    y: Tensor,
    theta_E2: Tensor,
    half_length: Tensor,
    angle: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Deflection:
    """Uniform line of total θ_E², half-length L and position angle φ: the vortex (Alexander et al. 2019).

    The integral of the point mass over the line, in its frame (u along, v across), with a = u + L, b = u − L:
    α_u = θ_E²/(4L) ln[(a²+v²)/(b²+v²)], α_v = θ_E²/(2L) [atan(a/v) − atan(b/v)].
    v² is softened by `SOFTENING`², which changes α by less than 10⁻⁶ of itself outside 10⁻⁶ arcsec of the line's ends;
    on the line itself, where α_v jumps, the value is that of v → 0⁺.
    """
    c, s = torch.cos(angle), torch.sin(angle)
    dx, dy = x - center_x, y - center_y
    u, v = c * dx + s * dy, c * dy - s * dx
    far, near = u.abs() + half_length, u.abs() - half_length  # distances to the line's ends along it
    v2 = v * v + SOFTENING**2
    # ln[(a²+v²)/(b²+v²)] is odd in u; log1p keeps the digits that a ratio near one would lose far from a short line
    log_ratio = torch.sign(u) * torch.log1p(4 * u.abs() * half_length / (near * near + v2))
    # atan(a/v) − atan(b/v) as one atan2, without cancellation
    angle_seen = torch.atan2(2 * half_length * v, v2 + far * near)
    alpha_u = theta_E2 / (4 * half_length) * log_ratio
    alpha_v = theta_E2 / (2 * half_length) * angle_seen
    return c * alpha_u - s * alpha_v, s * alpha_u + c * alpha_v


class MassProfile(NamedTuple):
    """A deflector.

    Attributes:
        function: `(x, y, **parameters) -> (alpha_x, alpha_y)`; of a circular profile `(r², **parameters) -> α/r`, and
            `center_x`, `center_y` are dealt with by the ray shooter, which is faster for many of them.
        strength: parameters that switch it off when zero (masked entries of a padded array).
    """

    function: Callable[..., Any]
    strength: tuple[str, ...]
    circular: bool = False


MASS: dict[str, MassProfile] = {
    "sie": MassProfile(sie, ("theta_E",)),
    "shear": MassProfile(shear, ("gamma1", "gamma2")),
    "point_mass": MassProfile(point_mass, ("theta_E2",), circular=True),
    "line_mass": MassProfile(line_mass, ("theta_E2",)),
}
