"""Cold dark matter: the NFW profile, and the same truncated by tides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeplense.lensing.mass.radial import HALF_PI, inner, log1p, mean_and_rest, outer, outside, table

G_AT_R_S = 1 - math.log(2)  # G of `radial` at r = R_s


def nfw(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor) -> Tensor:
    """NFW profile, ρ = ρ_s/(x (1+x)²), deflecting by alpha_Rs at R_s (Wright & Brainerd 2000, eq. 13). Returns α/r."""
    X = (r2 * (1 / R_s**2)).add_(table(r2).floor)
    log = torch.log(X).mul_(-0.5).add_(math.log(2))
    y = torch.reciprocal(1 + torch.sqrt(X))
    far = (outer(y).add_(y, alpha=HALF_PI) - log) / X
    return torch.lerp(inner(X, log), far, outside(X)) * (alpha_Rs / (R_s * G_AT_R_S))


def nfw_potential(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor) -> Tensor:
    """ψ ∝ ½ [ln²(x/2) − arccosh²(1/x)], 0 at the centre (Meneghetti, Bartelmann & Moscardini 2003, eq. 8)."""
    X = r2 * (1 / R_s**2) + table(r2).floor
    G, F, log = _shapes(X)
    # arccosh² = (1 − X) F², and F = X G + ln(2/x), so that the squares of the logarithm cancel before they are summed
    half = 0.5 * X * (F * F - G * (2 * log + X * G))
    return half * (alpha_Rs * R_s / G_AT_R_S)


def _shapes(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G and F of `radial`, and ln(2/x)."""
    log = math.log(2) - 0.5 * torch.log(X)
    G, _ = mean_and_rest(X, torch.sqrt(X), log)
    return G, X * G + log, log


def tnfw(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_trunc: Tensor) -> Tensor:
    """Truncated NFW, ρ = ρ_s/(x (1+x)²) τ²/(x² + τ²), τ = r_trunc/R_s (Baltz, Marshall & Oguri 2009, eq. A.18, n = 1).

    alpha_Rs is what the halo would deflect at R_s without the truncation. With h = sqrt(X + τ²), D = h + τ,
    A = ln(D/2τ), B = asinh(τ/x) and F, G, E of `radial`, their equation divided by X without differences of large
    numbers, neither at the centre nor far out, is
    α/r ∝ τ²/(τ²+1)² {(τ²−1) [G − A/X − B/(τD)] + 2E + π (1/(1+x) − 1/D)}. Returns α/r.
    """
    tau = r_trunc / R_s
    t2 = tau * tau
    c = t2 - 1
    X = (r2 * (1 / R_s**2)).add_(table(r2).floor)
    x, h = torch.sqrt(X), torch.sqrt(X + t2)
    inverse_X, inverse_D, y = torch.reciprocal(X), torch.reciprocal(h + tau), torch.reciprocal(1 + x)
    beyond = t2 / (h + x)  # h − x
    A = log1p(X * inverse_D * (0.5 / tau))
    B = log1p((beyond + tau) / x)
    log = (B - A).sub_(torch.log(tau))  # ln(2/x)
    # (τ²−1) G + 2E, from G inside and from E outside; sums in place, because passes over the pixels are what costs
    near = (2 * log).sub_(y, alpha=2 * HALF_PI).addcmul_(torch.add(c, X, alpha=2), inner(X, log))
    E, ratio = outer(y), c * inverse_X
    far = (2 * E).addcmul_(ratio, (E - log).add_(y, alpha=HALF_PI))
    rest = (B * (-c / tau)).addcmul_(beyond + (tau - 1), y, value=2 * HALF_PI)
    total = torch.lerp(near, far, outside(X)).addcmul_(inverse_D, rest).addcmul_(ratio, A, value=-1)
    return total * (alpha_Rs / (R_s * G_AT_R_S) * t2 / (t2 + 1) ** 2)


def tnfw_potential(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_trunc: Tensor) -> Tensor:
    """ψ of `tnfw` (Baltz, Marshall & Oguri 2009, eq. A.20, n = 1), 0 at the centre.

    With h = sqrt(X + τ²), L = ln(x/(τ + h)): ψ ∝ τ²/(2(τ²+1)²) {2π [τ − h + τ ln((τ+h)/2τ)] + (τ²−1)/τ · 2h L
    + (τ²−1) [L² − (1−X) F²] + 4 (X−1) F + [(τ²−1) ln τ − τ² − 1] ln X + constant}.
    """
    tau = r_trunc / R_s
    t2 = tau * tau
    c, X = t2 - 1, r2 * (1 / R_s**2) + table(r2).floor
    _, F, log = _shapes(X)
    h, log_tau = torch.sqrt(X + t2), torch.log(tau)
    L = math.log(2) - log - torch.log(tau + h)
    total = 2 * torch.pi * (tau - h + tau * (torch.log(tau + h) - math.log(2) - log_tau))
    total = total + c / tau * 2 * h * L + c * (L * L - (1 - X) * F * F) + 4 * (X - 1) * F
    total = total + 2 * (c * log_tau - t2 - 1) * (math.log(2) - log)
    at_0 = c * log_tau * (2 * math.log(2) + log_tau) + 2 * (log_tau - math.log(2)) - 2 * t2 * (math.log(2) + log_tau)
    return (total - at_0) * (0.5 * t2 / (t2 + 1) ** 2 * alpha_Rs * R_s / G_AT_R_S)


def ctnfw(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_trunc: Tensor, r_core: Tensor) -> Tensor:
    """`tnfw` with a core: its deflection α/r at √(r² + r_core²). Returns α/r.

    The projected mass r²/(r² + r_core²) M(√(r² + r_core²)) grows as r² inside r_core and ends at the total mass of
    the halo without a core, which the untruncated `cnfw` does not have. alpha_Rs is still that of the plain NFW halo.
    """
    return tnfw(r2 + r_core * r_core, R_s, alpha_Rs, r_trunc)


def ctnfw_potential(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_trunc: Tensor, r_core: Tensor) -> Tensor:
    """That of `tnfw` at √(r² + r_core²), since r dr is the same."""
    return tnfw_potential(r2 + r_core * r_core, R_s, alpha_Rs, r_trunc)
