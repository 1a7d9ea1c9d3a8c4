"""The host halo, and what it does to its subhalos: concentration, place, tidal truncation. Lengths in kpc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deeplense.lensing import halo
from deeplense.sim.substructure.base import Array, Host

STEPS = 256  # along the line of sight
TIDAL_CORE = 0.5  # of the host's scale radius: inside, subhalos are as many a volume everywhere
FIELD = 50  # overdensity over ρ_crit at the truncation of a halo outside any other
REACH = 2.0  # truncation radii of a subhalo at 50 kpc, by which the disc of their centres is wider
CHORDS = 4  # of the quadrature over two discs' overlap
HERMITE = np.polynomial.hermite_e.hermegauss(3)  # nodes and weights of a normal distribution


def concentration(mass: Array, z: Array, H0: float) -> Array:
    """Median c200 of field halos, log10 c = a + b log10(M200 h/10¹² M☉) (Dutton & Macciò 2014, 1402.7073, eq. 8)."""
    a = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21)
    b = -0.101 + 0.026 * z
    return np.asarray(10 ** (a + b * np.log10(mass * H0 / 100 / 1e12)))


def truncation(mass: Array, depth: Array) -> Array:
    """Tidal truncation radius 1.4 kpc (M200/10⁷ M☉)^{1/3} (r/50 kpc)^{2/3} (Gilman et al. 2020, 1908.06983, eq. 7)."""
    return np.asarray(1.4 * (mass / 1e7) ** (1 / 3) * (depth / 50) ** (2 / 3))


def scatter_quadrature(scatter: float) -> list[tuple[float, float]]:
    """Factors on the concentration, and their shares, that stand for a normal scatter [dex]."""
    nodes, weights = HERMITE
    return [(10 ** (scatter * x), w) for x, w in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True)]


def share_seen(radius: Array, half_width: float) -> Array:
    """Share of a circle's area that lies in the square of this half width around its centre."""
    R, w = radius, np.minimum(half_width, radius)
    corner = np.pi / 4 - np.arccos(w / R)  # half the angle of the circle in one quadrant that stays inside
    seen = 4 * w * np.sqrt(R * R - w * w) + 4 * R * R * np.maximum(corner, 0)
    return np.where(np.sqrt(2) * w <= R, 4 * w * w, seen) / (np.pi * R * R)


def reach(host: Host, lightest: float) -> tuple[Array, Array]:
    """a, b: subhalos of mass m lie in a disc of radius a + b m^⅓ around the image's middle [arcsec], (n, 1).

    The disc holds the image, and ends `REACH` truncation radii beyond the circle in it, so that halos outside the
    image deflect in it too. A disc's mean deflection is that of a uniform sheet, whatever its radius.
    """
    b = REACH * truncation(np.ones(()), np.full((), 50.0)) / host.distances.kpc_per_arcsec * np.ones((len(host), 1))
    inside = host.half_width * np.ones_like(b)
    return np.maximum(np.sqrt(2) * inside - b * lightest ** (1 / 3), inside), b


def mass_seen(rows: dict[str, Array], host: Host, disc: Array, circle: Array) -> Array:
    """Mean surface density inside a circle over that of an endless population, when truncated halos' centres fill a
    disc around the same point.

    Two discs of radii R and ρ at distance u overlap by A(u), so it is ∫ −A'(u) m(u) du/(πρ²) with m the share of a
    halo's mass inside a cylinder and −A' the chord √{[(u+R)² − ρ²][ρ² − (u−R)²]}/u: Gauss's nodes for √(1 − t²).

    Args:
        rows: R_s, alpha_Rs, r_trunc [arcsec] and bound mass [Msun]. disc, circle: R and ρ [arcsec].
    """
    params = {k: rows[k] for k in ("R_s", "alpha_Rs", "r_trunc")}
    total: Array = np.zeros(())
    for i in range(1, CHORDS + 1):
        angle = i * np.pi / (CHORDS + 1)
        u = disc + circle * np.cos(angle)
        weight = np.sin(angle) ** 2 / (CHORDS + 1) * np.sqrt((u + disc) ** 2 - circle**2) / u
        total = total + weight * halo.projected_mass("tnfw", u, params, host.distances)
    return np.asarray(total / rows["bound"])


def integral(low: float, high: float, slope: float) -> float:
    """∫ m^slope dm."""
    k = slope + 1
    return float(np.log(high / low) if abs(k) < 1e-9 else (high**k - low**k) / k)


def log_quadrature(mass: Sequence[float], slope: float, steps: int = 64) -> tuple[Array, Array]:
    """Masses and the shares of the halos that they stand for, (1, steps): a power law in logarithmic steps."""
    edges = np.geomspace(mass[0], mass[1], steps + 1)
    cumulative = edges ** (slope + 1)
    share = np.diff(cumulative) / (cumulative[-1] - cumulative[0])
    mean = (slope + 1) / (slope + 2) * np.diff(edges ** (slope + 2)) / np.diff(cumulative)
    return mean[None], share[None]


@dataclass(frozen=True)
class MainHalo:
    """NFW halos of the lens galaxies; every array is (n, 1).

    Attributes:
        rho_s: [Msun/kpc³]. r_s, r200: [kpc].
    """

    rho_s: Array
    r_s: Array
    r200: Array

    @classmethod
    def of(cls, log10_m_host: Array, host: Host) -> MainHalo:
        """Of the median concentration at its mass and redshift."""
        mass = 10.0**log10_m_host
        c = concentration(mass, host.z_lens, host.H0)
        r200 = (3 * mass / (800 * np.pi * halo.rho_crit(host.z_lens, host.H0, host.Om0, host.w0))) ** (1 / 3) * 1e3
        r_s = r200 / c
        return cls(halo.scale_mass(mass, c) / (4 * np.pi * r_s**3), r_s, r200)

    def density(self, r: Array) -> Array:
        """[Msun/kpc³] of dark matter."""
        x = r / self.r_s
        return np.asarray(self.rho_s / (x * (1 + x) ** 2))

    def radius_3d(self, r: Array, quantile: Array) -> Array:
        """Distances from the host's centre of subhalos seen at projected radius r [kpc].

        Along the line of sight they follow the host's NFW profile, but are as many a volume everywhere inside half its
        scale radius, where tides destroy them (Gilman et al. 2020, sec. 4.1); `quantile` in (0, 1) is drawn uniformly.
        """
        # the profile is flat over an image, so one column of it, at the mean radius, serves all
        r_mean = r.mean(1, keepdims=True)
        z = self.r200 * np.linspace(0, 1, STEPS) ** 2
        d = np.maximum(np.sqrt(r_mean**2 + z**2) / self.r_s, TIDAL_CORE)
        weight = 1 / (d * (d + 1) ** 2)
        cumulative = np.cumsum((weight[:, 1:] + weight[:, :-1]) / 2 * np.diff(z), axis=1)
        cumulative = np.concatenate([np.zeros((len(z), 1)), cumulative], axis=1) / cumulative[:, -1:]
        depth = np.empty(r.shape)
        for row, q in enumerate(np.broadcast_to(quantile, r.shape)):
            depth[row] = np.interp(q, cumulative[row], z[row])
        return np.asarray(np.sqrt(r**2 + depth**2))

    def column(self, r: Array) -> Array:
        """∫ρ² dz through the halo at projected radius r [kpc], (n, 1) [Msun²/kpc⁵]."""
        z = self.r200 * np.linspace(0, 1, STEPS) ** 2
        square = self.density(np.sqrt(r**2 + z**2)) ** 2
        return np.asarray(2 * np.trapezoid(square, z, axis=1))[:, None]
