"""How many dark halos there are along the way: variance of the linear density field, its growth, halo mass function.

Masses in Msun, comoving lengths in Mpc (no h). Flat wCDM without radiation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.special import hyp2f1

from deeplense.lensing.halo import rho_crit

Array = NDArray[np.float64]
DELTA_C = 1.686  # linear overdensity at collapse
T_CMB = 2.7255  # K
ST_A, ST_P, ST_NORM = 0.707, 0.3, 0.3222  # Sheth & Tormen 1999
MASSES = (1e4, 1e16)  # Msun, of the table of σ(M)


@dataclass(frozen=True)
class Structure:
    """Linear structure of a universe, with the halos that Sheth & Tormen (1999, astro-ph/9901122) find in it.

    Against colossus 1.4.0 ("sheth99", EH98 no-wiggle, the same parameters), 10⁶-10¹⁰ M☉ and z = 0 to 3: σ(M) and D(z)
    agree to 1.2e-4 and 2e-5, dn/dlnM to 8e-4.

    Attributes:
        sigma8: σ of spheres of 8 Mpc/h at z = 0. n_s: spectral index.
    """

    H0: float = 70.0
    Om0: float = 0.3
    Ob0: float = 0.05
    sigma8: float = 0.82
    n_s: float = 0.96
    w0: float = -1.0

    @property
    def rho_m(self) -> float:
        """Mean comoving density of matter [Msun/Mpc³]."""
        return float(self.Om0 * rho_crit(0.0, self.H0, self.Om0))

    def transfer(self, k: Array) -> Array:
        """Transfer function without wiggles at k [1/Mpc] (Eisenstein & Hu 1998, astro-ph/9709112, eqs. 26, 28-31)."""
        h = self.H0 / 100
        m, b, f = self.Om0 * h * h, self.Ob0 * h * h, self.Ob0 / self.Om0
        s = 44.5 * np.log(9.83 / m) / np.sqrt(1 + 10 * b**0.75)  # sound horizon, Mpc
        alpha = 1 - 0.328 * np.log(431 * m) * f + 0.38 * np.log(22.3 * m) * f * f
        gamma = self.Om0 * h * (alpha + (1 - alpha) / (1 + (0.43 * k * s) ** 4))
        q = k / h * (T_CMB / 2.7) ** 2 / gamma
        L, C = np.log(2 * np.e + 1.8 * q), 14.2 + 731 / (1 + 62.5 * q)
        return np.asarray(L / (L + C * q * q))

    def sigma_R(self, radius: ArrayLike) -> Array:
        """σ at z = 0 in spheres of comoving radius [Mpc], by quadrature over ln k."""
        raw = _raw_sigma(self, np.append(np.ravel(radius), 8 / (self.H0 / 100)))
        return np.asarray(self.sigma8 * (raw[:-1] / raw[-1]).reshape(np.shape(radius)))

    def sigma(self, mass: ArrayLike) -> Array:
        """σ at z = 0 of the mean sphere of this mass [Msun]."""
        return np.asarray(np.exp(_table(self)(np.log(mass))))

    def growth(self, z: ArrayLike) -> Array:
        """D(z), linear growth with D(0) = 1; from a table that is right to 1e-9 in flat ΛCDM."""
        return np.asarray(_growth(self.Om0, self.w0)(1 / (1 + np.asarray(z, dtype=float))))

    def mass_function(self, mass: ArrayLike, z: ArrayLike) -> Array:
        """dn/dM [1/(Msun Mpc³), comoving]: ρ_m/M² f(ν) |d ln σ/d ln M|, ν = 1.686/(σ D), with
        f = A √(2a/π) ν (1 + (aν²)^−p) exp(−aν²/2), A, a, p = 0.3222, 0.707, 0.3 (Sheth & Tormen 1999, eq. 10)."""
        mass = np.asarray(mass, dtype=float)
        table, log = _table(self), np.log(mass)
        nu = DELTA_C / (np.exp(table(log)) * self.growth(z))
        x = ST_A * nu * nu
        f = ST_NORM * np.sqrt(2 * ST_A / np.pi) * nu * (1 + x**-ST_P) * np.exp(-x / 2)
        return np.asarray(self.rho_m / mass**2 * f * np.abs(table(log, 1)))


def _raw_sigma(structure: Structure, radius: Array) -> Array:
    """σ of an unnormalised spectrum k^n_s T²."""
    log_k = np.linspace(np.log(1e-5), np.log(1e5), 8192)
    k = np.exp(log_k)
    power = k ** (structure.n_s + 3) * structure.transfer(k) ** 2
    x = k * radius[:, None]
    window = np.where(x < 1e-2, 1 - x * x / 10, 3 * (np.sin(x) - x * np.cos(x)) / x**3)
    return np.asarray(np.sqrt(np.trapezoid(power * window**2, log_k, axis=1)))


@lru_cache
def _table(structure: Structure) -> CubicSpline:
    """ln σ of ln M."""
    log = np.linspace(np.log(MASSES[0]), np.log(MASSES[1]), 128)
    radius = (3 * np.exp(log) / (4 * np.pi * structure.rho_m)) ** (1 / 3)
    return CubicSpline(log, np.log(structure.sigma_R(radius)))


@lru_cache
def _growth(Om0: float, w: float) -> CubicSpline:
    """D of a = 1/(1 + z): a ₂F₁(−1/3w, (w−1)/2w; 1−5/6w; −a^(−3w) Ω_w/Ω_m), exact for a constant w (Silveira & Waga
    1994); in flat ΛCDM a ₂F₁(1/3, 1; 11/6; −a³ Ω_Λ/Ω_m)."""
    a = np.linspace(0, 1, 1024)
    D = a * hyp2f1(-1 / (3 * w), (w - 1) / (2 * w), 1 - 5 / (6 * w), -(a ** (-3 * w)) * (1 - Om0) / Om0)
    return CubicSpline(a, D / D[-1])
