"""Distances, critical surface density, and the Einstein radius of a mass. Flat wCDM through astropy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM, FlatwCDM
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

ARCSEC = float((1 * units.arcsec).to(units.rad).value)
G_OVER_C2 = float((constants.G / constants.c**2).to(units.Mpc / units.Msun).value)  # Mpc / Msun
DAYS_PER_MPC = float((1 * units.Mpc / constants.c).to(units.day).value)
FARTHEST = 20.0  # redshift of the last halo along a line of sight


Length = float | NDArray[np.float64]


def expansion2(z: Length, Om0: float = 0.3, w0: float = -1.0) -> Length:
    """E² = (H/H0)² of a flat universe of matter and dark energy of constant w, without radiation."""
    return Om0 * (1 + z) ** 3 + (1 - Om0) * (1 + z) ** (3 * (1 + w0))


@dataclass(frozen=True)
class Distances:
    """Angular-diameter distances [Mpc] to lens, source, and from lens to source; numbers or arrays of one shape."""

    D_l: Length
    D_s: Length
    D_ls: Length

    @property
    def sigma_cr(self) -> Length:
        """Critical surface density c²/(4πG) · D_s/(D_l D_ls) [Msun/kpc²]."""
        return self.D_s / (4 * np.pi * G_OVER_C2 * self.D_l * self.D_ls) / 1e6

    @property
    def kpc_per_arcsec(self) -> Length:
        """Proper length at the lens of one arcsec [kpc]."""
        return self.D_l * 1e3 * ARCSEC

    @property
    def theta_E2_per_mass(self) -> Length:
        """θ_E²/M = 4G/c² · D_ls/(D_l D_s) [arcsec²/Msun]."""
        return 4 * G_OVER_C2 * self.D_ls / (self.D_l * self.D_s) / ARCSEC**2

    def like(self, array: NDArray[np.float64]) -> Distances:
        """The same as arrays of this shape."""
        made = (np.reshape(d, array.shape) if np.size(d) > 1 else np.full(array.shape, d) for d in self._all())
        return Distances(*made)

    def __getitem__(self, row: int) -> Distances:
        """One of them."""
        return Distances(*(float(np.ravel(d)[row]) for d in self._all()))

    def _all(self) -> tuple[Length, Length, Length]:
        return self.D_l, self.D_s, self.D_ls


def distances(
    z_lens: Length, z_source: Length, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05, w0: float = -1.0
) -> Distances:
    """Angular-diameter distances, D_ls from z_lens to z_source (not a difference).

    Raises:
        ValueError: z_source ≤ z_lens or z_lens ≤ 0.
    """
    cosmology = _cosmology(z_lens, z_source, H0, Om0, Ob0, w0)
    D_l, D_s = (_value(cosmology.angular_diameter_distance(z)) for z in (z_lens, z_source))
    return Distances(D_l, D_s, _value(cosmology.angular_diameter_distance(z_lens, z_source)))


def luminosity_distances(
    z_lens: Length, z_source: Length, H0: float = 70.0, Om0: float = 0.3, Ob0: float = 0.05, w0: float = -1.0
) -> Distances:
    """The distances that DeepLenseSim uses: luminosity distances, D_ls = D_s − D_l. Wrong; only for `legacy/` recipes.

    Raises:
        ValueError: z_source ≤ z_lens or z_lens ≤ 0.
    """
    cosmology = _cosmology(z_lens, z_source, H0, Om0, Ob0, w0)
    D_l, D_s = (_value(cosmology.luminosity_distance(z)) for z in (z_lens, z_source))
    return Distances(D_l, D_s, D_s - D_l)


def comoving_distance(z: Length, H0: float = 70.0, Om0: float = 0.3, w0: float = -1.0) -> NDArray[np.float64]:
    """Comoving distance [Mpc] to redshifts below `FARTHEST`, from a spline through astropy's, right to 1e-9."""
    return np.asarray(_comoving(H0, Om0, w0)[0](z))


def redshift_at(distance: Length, H0: float = 70.0, Om0: float = 0.3, w0: float = -1.0) -> NDArray[np.float64]:
    """Redshift at a comoving distance [Mpc]."""
    return np.asarray(_comoving(H0, Om0, w0)[1](distance))


def theta_E(mass: Length, d: Distances) -> Length:
    """Einstein radius [arcsec] of a mass [Msun]: sqrt(4GM/c² · D_ls/(D_l D_s))."""
    return (mass * d.theta_E2_per_mass) ** 0.5


def mass(theta_E: Length, d: Distances) -> Length:
    """Mass [Msun] inside an Einstein radius [arcsec]; the inverse of `theta_E`."""
    return theta_E**2 / d.theta_E2_per_mass


def time_delay_days(d: Distances, z_lens: Length) -> Length:
    """(1 + z_l) D_l D_s/(c D_ls) [days/arcsec²], the time of a Fermat potential of 1 arcsec²."""
    return (1 + z_lens) * d.D_l * d.D_s / d.D_ls * ARCSEC**2 * DAYS_PER_MPC


def _value(distance: units.Quantity) -> Length:
    value: Length = distance.to_value(units.Mpc)
    return value if np.ndim(value) else float(value)


def _cosmology(
    z_lens: Length, z_source: Length, H0: float, Om0: float, Ob0: float, w0: float
) -> FlatLambdaCDM | FlatwCDM:
    if not (np.all(np.less(0, z_lens)) and np.all(np.less(z_lens, z_source))):
        raise ValueError(f"need 0 < z_lens < z_source, but z_lens = {z_lens} and z_source = {z_source}")
    return _flat(H0, Om0, Ob0, w0)


@lru_cache
def _comoving(H0: float, Om0: float, w0: float) -> tuple[CubicSpline, CubicSpline]:
    """Comoving distance of redshift, and the inverse."""
    z = np.expm1(np.linspace(0, np.log1p(FARTHEST), 1025))
    chi = _flat(H0, Om0, 0.05, w0).comoving_distance(z).to_value(units.Mpc)
    return CubicSpline(z, chi), CubicSpline(chi, z)


@lru_cache
def _flat(H0: float, Om0: float, Ob0: float, w0: float) -> FlatLambdaCDM | FlatwCDM:
    if w0 == -1:
        return FlatLambdaCDM(H0=H0, Om0=Om0, Ob0=Ob0)
    return FlatwCDM(H0=H0, Om0=Om0, w0=w0, Ob0=Ob0)
