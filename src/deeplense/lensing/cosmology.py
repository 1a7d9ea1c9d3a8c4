"""Distances, critical surface density, and the Einstein radius of a mass. Flat ΛCDM through astropy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM

ARCSEC = float((1 * units.arcsec).to(units.rad).value)
G_OVER_C2 = float((constants.G / constants.c**2).to(units.Mpc / units.Msun).value)  # Mpc / Msun


@dataclass(frozen=True)
class Distances:
    """Angular-diameter distances [Mpc] to lens, source, and from lens to source."""

    D_l: float
    D_s: float
    D_ls: float

    @property
    def sigma_cr(self) -> float:
        """Critical surface density c²/(4πG) · D_s/(D_l D_ls) [Msun/kpc²]."""
        return self.D_s / (4 * np.pi * G_OVER_C2 * self.D_l * self.D_ls) / 1e6

    @property
    def kpc_per_arcsec(self) -> float:
        """Proper length at the lens of one arcsec [kpc]."""
        return self.D_l * 1e3 * ARCSEC

    @property
    def theta_E2_per_mass(self) -> float:
        """θ_E²/M = 4G/c² · D_ls/(D_l D_s) [arcsec²/Msun]."""
        return 4 * G_OVER_C2 * self.D_ls / (self.D_l * self.D_s) / ARCSEC**2


@lru_cache
def distances(z_lens: float, z_source: float, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05) -> Distances:
    """Angular-diameter distances, D_ls from z_lens to z_source (not a difference).

    Raises:
        ValueError: z_source ≤ z_lens or z_lens ≤ 0.
    """
    cosmology = _cosmology(z_lens, z_source, H0, Om0, Ob0)
    D_l, D_s = (float(cosmology.angular_diameter_distance(z).value) for z in (z_lens, z_source))
    return Distances(D_l, D_s, float(cosmology.angular_diameter_distance(z_lens, z_source).value))


@lru_cache
def luminosity_distances(
    z_lens: float, z_source: float, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05
) -> Distances:
    """The distances that DeepLenseSim uses: luminosity distances, D_ls = D_s − D_l. Wrong; only for `legacy/` recipes.

    Raises:
        ValueError: z_source ≤ z_lens or z_lens ≤ 0.
    """
    cosmology = _cosmology(z_lens, z_source, H0, Om0, Ob0)
    D_l, D_s = (float(cosmology.luminosity_distance(z).value) for z in (z_lens, z_source))
    return Distances(D_l, D_s, D_s - D_l)


def theta_E(mass: float, d: Distances) -> float:
    """Einstein radius [arcsec] of a mass [Msun]: sqrt(4GM/c² · D_ls/(D_l D_s))."""
    return float(np.sqrt(mass * d.theta_E2_per_mass))


def mass(theta_E: float, d: Distances) -> float:
    """Mass [Msun] inside an Einstein radius [arcsec]; the inverse of `theta_E`."""
    return theta_E**2 / d.theta_E2_per_mass


def _cosmology(z_lens: float, z_source: float, H0: float, Om0: float, Ob0: float) -> FlatLambdaCDM:
    if not 0 < z_lens < z_source:
        raise ValueError(f"need 0 < z_lens < z_source, but z_lens = {z_lens} and z_source = {z_source}")
    return FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=Ob0)
