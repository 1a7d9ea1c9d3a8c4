"""From the mass of a dark halo to the parameters that deflect, and back. Arrays in, arrays out; no randomness.

Masses in Msun, angles in arcsec. M200 lies within the radius inside which the mean density is 200 ρ_crit(z).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from astropy import constants
from numpy.typing import ArrayLike, NDArray

from deeplense.lensing.cosmology import ARCSEC, G_OVER_C2, Distances, expansion2
from deeplense.lensing.mass import MASS
from deeplense.lensing.mass.cored import SOLITON_A
from deeplense.lensing.mass.nfw import G_AT_R_S

Array = NDArray[np.float64]
C_KM_S = float(constants.c.to("km/s").value)
SOLITON_CORE = 0.239320  # mass within the core radius / total mass, for ρ ∝ (1 + a r²)^−8


def rho_crit(z: ArrayLike, H0: float = 70.0, Om0: float = 0.3, w0: float = -1.0) -> Array:
    """Critical density 3H²/(8πG) of a flat universe without radiation [Msun/Mpc³]."""
    return np.asarray(3 * (H0 / C_KM_S) ** 2 * expansion2(_array(z), Om0, w0) / (8 * np.pi * G_OVER_C2))


def nfw_parameters(
    m200: ArrayLike,
    c: ArrayLike,
    z: ArrayLike,
    distances: Distances,
    H0: float = 70.0,
    Om0: float = 0.3,
    w0: float = -1.0,
) -> tuple[Array, Array]:
    """R_s and alpha_Rs of `nfw` (and, untruncated, of `tnfw` and `cnfw`) from mass and concentration.

    r200³ = 3 M200/(800π ρ_crit), R_s = r200/c, M200 = M_s [ln(1+c) − c/(1+c)] with M_s = 4π ρ_s R_s³ (Navarro, Frenk &
    White 1997); inside R_s in projection lies M_s (1 − ln 2) (Wright & Brainerd 2000).

    Returns:
        R_s, alpha_Rs [arcsec].
    """
    m200, c = _array(m200), _array(c)
    r200 = (3 * m200 / (800 * np.pi * rho_crit(z, H0, Om0, w0))) ** (1 / 3)  # Mpc
    R_s = r200 / c / distances.D_l / ARCSEC
    return R_s, distances.theta_E2_per_mass * scale_mass(m200, c) * G_AT_R_S / R_s


def nfw_mass(
    R_s: ArrayLike,
    alpha_Rs: ArrayLike,
    z: ArrayLike,
    distances: Distances,
    H0: float = 70.0,
    Om0: float = 0.3,
    w0: float = -1.0,
) -> tuple[Array, Array]:
    """M200 and concentration from R_s and alpha_Rs: the inverse of `nfw_parameters`.

    Newton's method in ln c on c³/μ(c) = 3 M_s/(800π ρ_crit R_s³), whose logarithm is nearly straight.
    """
    R_s, alpha_Rs = _array(R_s), _array(alpha_Rs)
    m_s = alpha_Rs * R_s / (distances.theta_E2_per_mass * G_AT_R_S)
    target = np.log(3 * m_s / (800 * np.pi * rho_crit(z, H0, Om0, w0) * (R_s * distances.D_l * ARCSEC) ** 3))
    log_c = np.full_like(target, np.log(10.0))
    for _ in range(50):
        c = np.exp(log_c)
        mu = _mu(c)
        log_c = log_c - (3 * log_c - np.log(mu) - target) / (3 - (c / (1 + c)) ** 2 / mu)
    c = np.exp(log_c)
    return m_s * _mu(c), c


def scale_mass(m200: ArrayLike, c: ArrayLike) -> Array:
    """M_s = 4π ρ_s R_s³ = M200/(ln(1+c) − c/(1+c)) [Msun]."""
    return _array(m200) / _mu(_array(c))


def radius_of_overdensity(c: ArrayLike, delta: float) -> Array:
    """Radius/R_s inside which an NFW halo has the mean density delta·ρ_crit: 200 μ(x)/x³ = delta μ(c)/c³.

    Args:
        c: concentration c200.
    """
    c = _array(c)
    x = np.copy(c)
    for _ in range(12):  # a contraction: μ is nearly a logarithm
        x = c * (200 / delta * _mu(x) / _mu(c)) ** (1 / 3)
    return np.asarray(x)


def tnfw_total_mass(m_s: ArrayLike, tau: ArrayLike) -> Array:
    """Mass of a truncated halo, M_s τ²/(τ²+1)² [(τ²−1) ln τ + τπ − (τ²+1)] (Baltz, Marshall & Oguri 2009, eq. A.4).

    Args:
        m_s: `scale_mass` of the halo before truncation. tau: r_trunc/R_s.
    """
    tau = _array(tau)
    t2 = tau * tau
    return _array(m_s) * t2 / (t2 + 1) ** 2 * ((t2 - 1) * np.log(tau) + tau * np.pi - (t2 + 1))


def projected_mass(profile: str, r: ArrayLike, params: Mapping[str, ArrayLike], distances: Distances) -> Array:
    """Mass in the cylinder of radius r [arcsec] around a circular deflector: r α(r) in units of θ_E²/M [Msun].

    Args:
        profile: a circular entry of `MASS`. params: its parameters but for the centre; they broadcast with r.
    """
    entry = MASS[profile]
    if not entry.circular:
        raise ValueError(f"{profile} is not circular")
    r2 = torch.as_tensor(_array(r) ** 2)
    ratio: Any = entry.function(r2, **{k: torch.as_tensor(_array(v)) for k, v in params.items()})
    return np.asarray((r2 * ratio).numpy()) / distances.theta_E2_per_mass


def soliton_kappa_0(mass: ArrayLike, theta_c: ArrayLike, distances: Distances) -> Array:
    """kappa_0 of `soliton` from its total mass: 2 κ_0 θ_c²/(13 a) = θ_E² = M · 4G/c² D_ls/(D_l D_s).

    Core–halo relations (Schive et al. 2014) give the mass within the core radius: divide it by `SOLITON_CORE`.
    """
    return 6.5 * SOLITON_A * distances.theta_E2_per_mass * _array(mass) / _array(theta_c) ** 2


def _mu(c: Array) -> Array:
    return np.log1p(c) - c / (1 + c)


def _array(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)
