"""A straight line of mass."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplense.lensing.mass.profile import Deflection
from deeplense.lensing.mass.radial import log1p

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
    log_ratio = torch.sign(u) * log1p(4 * u.abs() * half_length / (near * near + v2))
    # atan(a/v) − atan(b/v) as one atan2, without cancellation
    angle_seen = torch.atan2(2 * half_length * v, v2 + far * near)
    alpha_u = theta_E2 / (4 * half_length) * log_ratio
    alpha_v = theta_E2 / (2 * half_length) * angle_seen
    return c * alpha_u - s * alpha_v, s * alpha_u + c * alpha_v


def line_mass_potential(
    x: Tensor,
    y: Tensor,
    theta_E2: Tensor,
    half_length: Tensor,
    angle: Tensor,
    center_x: Tensor,
    center_y: Tensor,
) -> Tensor:
    """ψ = θ_E²/(4L) {a ln(a²+v²) − b ln(b²+v²) − 4L + 2v [atan(a/v) − atan(b/v)]}: the mean of θ_E² ln r along it."""
    c, s = torch.cos(angle), torch.sin(angle)
    dx, dy = x - center_x, y - center_y
    u, v = (c * dx + s * dy).abs(), c * dy - s * dx
    far, near, v2 = u + half_length, u - half_length, v * v + SOFTENING**2
    # a ln(a²+v²) − b ln(b²+v²) with the same care as in the deflection
    log_ratio = log1p(4 * u * half_length / (near * near + v2))
    log = near * log_ratio + 2 * half_length * torch.log(far * far + v2)
    angle_seen = torch.atan2(2 * half_length * v, v2 + far * near)
    return theta_E2 / (4 * half_length) * (log - 4 * half_length + 2 * v * angle_seen)
