"""Profiles with a core: self-interacting and fuzzy dark matter."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from deeplense.lensing.mass.radial import EDGE, log1p, mean_and_rest, outside, steepness, table

ALMOST = 0.4  # |r_core/R_s − 1| below which the closed form of `cnfw`, 0/0 twice at 1, is replaced by an integral
NODES = tuple(zip(*(v.tolist() for v in np.polynomial.legendre.leggauss(6)), strict=True))
PANELS, WIDTH = 14, 1.25
PANEL_NODES = tuple(zip(*(v.tolist() for v in np.polynomial.legendre.leggauss(6)), strict=True))
SOLITON_A = 2 ** (1 / 8) - 1  # 0.0905: the density is half at the core radius
SMALLEST_CORE = {torch.float64: 1e-14}  # of r_core/R_s, far inside any pixel; float32: 1e-9


def cnfw(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_core: Tensor) -> Tensor:
    """Cored NFW, ρ ∝ 1/((r_core + r)(R_s + r)²), deflecting by alpha_Rs at R_s, as lenstronomy's CNFW. Returns α/r.

    For halos of self-interacting dark matter. Its limit r_core → 0 is `nfw`.
    """
    b = (r_core / R_s).clamp_min(SMALLEST_CORE.get(r2.dtype, 1e-9))
    X = (r2 * (1 / R_s**2)).add_(table(r2).floor)
    return _mean(X, b) * (alpha_Rs / (R_s * _mean(torch.ones_like(b), b)))


def cnfw_potential(r2: Tensor, R_s: Tensor, alpha_Rs: Tensor, r_core: Tensor) -> Tensor:
    """∫ α dr from the centre, which has no closed form (nor has lenstronomy's): Gauss's nodes in panels of ln r."""
    # s = ln(r/r'): half a panel where α turns, and so far that what is left is below 1e-15 of a core's ψ
    total = torch.zeros_like(r2 * R_s)
    for panel in range(PANELS):
        for node, weight in PANEL_NODES:
            shrunk = math.exp(-2 * WIDTH * (panel + 0.5 * (1 + node)))
            total = total + (0.5 * WIDTH * weight * shrunk) * cnfw(r2 * shrunk, R_s, alpha_Rs, r_core)
    return total * r2


def _mean(X: Tensor, b: Tensor) -> Tensor:
    """Mean convergence inside x of ρ = 1/((b + x)(1 + x)²), in units of 4/Σ_cr."""
    almost = (b - 1).abs() < ALMOST
    safe = torch.where(almost, torch.full_like(b, 0.5), b)
    mean = _closed(X, safe)
    if torch.compiler.is_compiling() or bool(almost.any()):  # a compiled graph cannot ask
        return torch.where(almost, _integral(X, b), mean)
    return mean


def _closed(X: Tensor, b: Tensor) -> Tensor:
    """Integral of κ in closed form, arranged twice: for the inside (no x⁻² to lose) and the outside (no x² ln x)."""
    x = torch.sqrt(X)
    log, log_b = -torch.log(0.5 * x), torch.log(b)
    X_b = X / b**2
    G, E = mean_and_rest(X, x, log)
    G_b, E_b = mean_and_rest(X_b, x / b, log + log_b)
    near = (1 - X_b) * G_b + (1 - 2 * b + b * X) * G - (1 - b) * log - log_b
    far = (b * b - X) * E_b + (1 - 2 * b + b * X) * E - (1 - b) ** 2 * log - b * b * log_b
    far = (far + 0.5 * torch.pi * (1 - b) * (1 / (1 + x) - b)) / X
    return torch.lerp(near, far, outside(X, (b.detach() * EDGE).clamp_min(EDGE) ** 2)) / (1 - b) ** 2


def _integral(X: Tensor, b: Tensor) -> Tensor:
    """The same near b = 1: 1/((b + x)(1 + x)²) = ∫₀¹ (1−t) 2/(x + c)³ dt with c = 1 + t (b−1) (Hermite, Genocchi)."""
    b = b.clamp(1 - ALMOST, 1 + ALMOST)
    total = torch.zeros_like(X * b)
    for node, weight in NODES:
        t = 0.5 * (1 + node)
        c = 1 + t * (b - 1)
        Z = X / c**2
        z = torch.sqrt(Z)
        total = total + weight * (1 - t) / c**2 * steepness(Z, z, -torch.log(0.5 * z))
    return total


def soliton(r2: Tensor, kappa_0: Tensor, theta_c: Tensor) -> Tensor:
    """Soliton of fuzzy dark matter, ρ ∝ (1 + a r²/θ_c²)^−8, κ = κ_0 (1 + a r²/θ_c²)^−7.5 (Schive et al. 2014, eq. 3).

    α/r = 2 κ_0/(13 t) [1 − (1 + t)^−6.5], t = a r²/θ_c²; as lenstronomy's Uldm with slope 8.
    """
    t = (r2 * (SOLITON_A / theta_c**2)).add_(table(r2).floor)
    half = torch.tanh(log1p(t) * -3.25)  # e^{2y} − 1 = 2 tanh y/(1 − tanh y), which vectorises as expm1 does not
    return half / (t * (1 - half)) * (kappa_0 * (-4 / 13))


def soliton_potential(r2: Tensor, kappa_0: Tensor, theta_c: Tensor) -> Tensor:
    """∫ α dr: with u² = 1 + t, ψ = 2 κ_0 θ_c²/(13 a) [ln((u+1)/2) + Σ (1 − u^−k)/k, k = 1, 3, … 11]."""
    half_log = 0.5 * log1p(r2 * (SOLITON_A / theta_c**2))  # ln u
    total = log1p(0.5 * torch.expm1(half_log))
    for k in range(1, 12, 2):
        total = total - torch.expm1(-k * half_log) / k
    return kappa_0 * theta_c**2 * (2 / (13 * SOLITON_A)) * total
