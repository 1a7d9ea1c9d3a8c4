"""Elliptical galaxies in front of star-forming ones, as they are on the sky: what galaxy-scale lenses are made of.

A lens's velocity dispersion decides its Einstein radius (with the redshifts), light and halo; a source's magnitude
decides its redshift and size. docs/populations.md says where each law comes from, and compares with observed lenses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.random import Generator
from scipy.special import ndtr, ndtri

from deeplense.errors import UserError, nearest
from deeplense.lensing.cosmology import ARCSEC, comoving_distance, redshift_at
from deeplense.recipe import Prior as Spec
from deeplense.recipe import Range
from deeplense.sim.priors import Prior
from deeplense.sim.sky import galaxies
from deeplense.sim.sky.base import Array, Drawn, Setting
from deeplense.sim.substructure.base import Truth

FARTHEST = 8.0  # redshift of a source
TRIES, AT_ONCE = 200, 8  # rounds of pairs of lens and source, and pairs for each that is wanted
CENTER = ("center_x", "center_y")
MOST_ELLIPTICAL = 0.6  # |e| of the light


@dataclass
class Ellipticals:
    """Lenses and sources by their numbers on the sky, each pair weighed by its cross-section θ_E².

    Attributes:
        sigma_v: prior of the velocity dispersion [km/s]; when null, the velocity function of Choi, Park & Vogeley
            (2007) within `sigma_range`.
        z_lens: prior; when null, as many lenses in every comoving volume within `z_range`.
        z_source: prior; when null, by the source's magnitude (LSST Science Book). A prior is not weighed by θ_E².
        magnitudes: of the sources in the first band, dn/dm ∝ 10^{slope · m}. colour: prior of i less that band.
        reach: the source lies anywhere within `reach` Einstein radii of the lens.
        misalignment: between light and mass [degrees, rms]. roundness: scatter of q of the light over that of the mass.
        host_scatter: of log10 of the host's M200 [dex]. host_range: of log10 M200 [Msun]; clusters, with tens of
            thousands of subhalos in an image, are left out.
    """

    sigma_v: Spec | None = None
    sigma_range: list[Annotated[float, Range(10, 1000)]] = field(default_factory=lambda: [100.0, 500.0])
    z_lens: Spec | None = None
    z_range: list[Annotated[float, Range(0, 5, "(]")]] = field(default_factory=lambda: [0.05, 1.5])
    z_source: Spec | None = None
    magnitudes: list[Annotated[float, Range(10, 35)]] = field(default_factory=lambda: [20.0, 26.0])
    slope: Annotated[float, Range(-2, 2)] = 0.3
    colour: Spec = 0.0
    reach: Annotated[float, Range(0, 10, "(]")] = 1.1
    misalignment: Annotated[float, Range(0, 90)] = 10.0
    roundness: Annotated[float, Range(0, 1)] = 0.11
    host_scatter: Annotated[float, Range(0, 2, "(]")] = 0.3
    host_range: list[Annotated[float, Range(5, 17)]] = field(default_factory=lambda: [11.5, 13.6])

    def __post_init__(self) -> None:
        where = "simulation.sky"
        for key in ("sigma_range", "z_range", "magnitudes", "host_range"):
            ends = getattr(self, key)
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise UserError(f"{where}.{key} is {ends}; give [low, high] with low < high")
        self._colour = Prior.parse(self.colour, f"{where}.colour")
        self._sigma, self._z_lens, self._z_source = (
            None if spec is None else Prior.parse(spec, f"{where}.{key}")
            for key, spec in (("sigma_v", self.sigma_v), ("z_lens", self.z_lens), ("z_source", self.z_source))
        )
        for key, prior, low in (("sigma_v", self._sigma, 0), ("z_lens", self._z_lens, 0)):
            if prior is not None and prior.bounds[0] <= low:
                raise UserError(f"{where}.{key} reaches {prior.bounds[0]:g}; it must be above {low}")

    def truth(self) -> list[Truth]:
        """See `sky.base`."""
        center = {
            f"{section}.{k}": (k[-1], tuple(f"{section}.{c}" for c in CENTER))
            for section in ("source", "lens_light")
            for k in CENTER
        }
        shape = {f"lens_light.{k}": ("spin2", ("lens_light.e1", "lens_light.e2")) for k in ("e1", "e2")}
        return [
            Truth("lens.theta_E", "arcsec"),
            Truth("z_lens", "", self.z_lens),
            Truth("z_source", "", self.z_source),
            Truth("sigma_v", "km/s", self.sigma_v),
            Truth("log10_m_host", "log10(Msun)"),
            *(Truth(f"{s}.{k}", u) for s in ("source", "lens_light") for k, u in _SIZES.items()),
            *(Truth(k, "arcsec", None, *turn) for k, turn in center.items()),
            *(Truth(k, "", None, *turn) for k, turn in shape.items()),
        ]

    def draw(self, rng: Generator, drawn: Drawn, setting: Setting) -> dict[str, Array]:
        """See `sky.base`."""
        n = len(drawn["lens.center_x"])
        H0, Om0, w0 = setting.H0, setting.Om0, setting.w0
        z_lens, z_source, magnitude, i = self._pairs(rng, n, H0, Om0, w0)
        if self._sigma is None:
            sigma = galaxies.velocity_dispersions(rng, n, *self.sigma_range)
        else:
            sigma = self._sigma.sample(rng, (n,))
        theta_E = galaxies.einstein_radius(sigma, galaxies.distance_ratio(z_lens, z_source, H0, Om0, w0))
        absolute, size = galaxies.early_type(rng, sigma)
        wavelength = _wavelength(setting.band)
        away, phase = self.reach * theta_E * np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
        e1, e2 = self._light_follows_mass(rng, drawn["lens.e1"], drawn["lens.e2"])
        source_size = galaxies.star_forming_size(rng, i, z_source, H0, Om0, w0)
        return {
            "lens.theta_E": theta_E,
            "z_lens": z_lens,
            "z_source": z_source,
            "sigma_v": sigma,
            "log10_m_host": self._host(rng, galaxies.log10_host_mass(sigma, z_lens, Om0, w0)),
            "source.magnitude": magnitude,
            "source.R_sersic": source_size / _kpc_per_arcsec(z_source, H0, Om0, w0),
            "source.center_x": drawn["lens.center_x"] + away * np.cos(phase),
            "source.center_y": drawn["lens.center_y"] + away * np.sin(phase),
            "lens_light.magnitude": galaxies.early_type_magnitude(absolute, z_lens, wavelength, H0, Om0, w0),
            "lens_light.R_sersic": size / _kpc_per_arcsec(z_lens, H0, Om0, w0),
            "lens_light.e1": e1,
            "lens_light.e2": e2,
            "lens_light.center_x": drawn["lens.center_x"],
            "lens_light.center_y": drawn["lens.center_y"],
        }

    def _pairs(self, rng: Generator, n: int, H0: float, Om0: float, w0: float) -> tuple[Array, ...]:
        """z_lens, z_source, magnitude, i of n lenses with their sources."""
        found: list[tuple[Array, ...]] = []
        m = AT_ONCE * n
        for _ in range(TRIES):
            z_lens = self._volume(rng, m, H0, Om0, w0) if self._z_lens is None else self._z_lens.sample(rng, (m,))
            magnitude = self._counts(rng, m)
            i = magnitude + self._colour.sample(rng, (m,))
            if self._z_source is None:
                z_source = galaxies.source_redshifts(rng, i)
                # σ⁴ is in its own distribution, (D_ls/D_s)² is not
                keep = rng.random(m) < galaxies.distance_ratio(z_lens, z_source, H0, Om0, w0) ** 2
            else:
                z_source = self._z_source.sample(rng, (m,))
                keep = z_source > z_lens
            keep &= z_source < FARTHEST
            found.append(tuple(column[keep] for column in (z_lens, z_source, magnitude, i)))
            if sum(len(columns[0]) for columns in found) >= n:
                return tuple(np.concatenate(columns)[:n] for columns in zip(*found, strict=True))
        raise UserError("simulation.sky: hardly any source lies behind its lens; lower z_lens or raise z_source")

    def _volume(self, rng: Generator, n: int, H0: float, Om0: float, w0: float) -> Array:
        near, far = comoving_distance(np.array(self.z_range), H0, Om0, w0) ** 3
        return redshift_at((near + (far - near) * rng.random(n)) ** (1 / 3), H0, Om0, w0)

    def _counts(self, rng: Generator, n: int) -> Array:
        (bright, faint), u = self.magnitudes, rng.random(n)
        if abs(self.slope) < 1e-9:
            return bright + (faint - bright) * u
        k = self.slope * np.log(10)
        return np.asarray(faint + np.log1p((1 - u) * np.expm1(-k * (faint - bright))) / k)

    def _host(self, rng: Generator, mean: Array) -> Array:
        low, high = (ndtr((end - mean) / self.host_scatter) for end in self.host_range)
        drawn = mean + self.host_scatter * ndtri(low + (high - low) * rng.random(mean.shape))
        return np.asarray(np.clip(drawn, self.host_range[0], self.host_range[1]))  # where no digits are left

    def _light_follows_mass(self, rng: Generator, e1: Array, e2: Array) -> tuple[Array, Array]:
        e = np.hypot(e1, e2)
        q = (1 - e) / (1 + e) * (1 + self.roundness * rng.standard_normal(e.shape))
        q = np.where(q > 1, 1 / q, np.maximum(q, (1 - MOST_ELLIPTICAL) / (1 + MOST_ELLIPTICAL)))
        turn = np.arctan2(e2, e1) + 2 * np.deg2rad(self.misalignment) * rng.standard_normal(e.shape)
        e = (1 - q) / (1 + q)
        return e * np.cos(turn), e * np.sin(turn)


_SIZES = {"magnitude": "AB mag", "R_sersic": "arcsec"}


def _kpc_per_arcsec(z: Array, H0: float, Om0: float, w0: float) -> Array:
    return comoving_distance(z, H0, Om0, w0) / (1 + z) * 1e3 * ARCSEC


def _wavelength(band: str) -> float:
    if band not in galaxies.WAVELENGTH:
        raise UserError(f"simulation.sky: no wavelength of band '{band}'; {nearest(band, galaxies.WAVELENGTH)}")
    return galaxies.WAVELENGTH[band]
