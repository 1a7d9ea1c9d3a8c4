"""Subhalos of cold dark matter: truncated NFW halos of the lens galaxy, from 10⁷ M☉ up, hundreds an image.

The other halo families are this one with something changed: `warm.py`, `self_interacting.py`, `fuzzy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from deeplense.errors import UserError
from deeplense.lensing import halo
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure import galaxy
from deeplense.sim.substructure.base import (
    Array,
    Halos,
    Host,
    Substructure,
    Truth,
    log10_or_nan,
    tensors,
    together,
)

MOST = 20_000  # halos that an image may hold
PIVOT = 1e8  # Msun, m0 of the mass function


@dataclass
class ColdDarkMatter:
    """d²N/dm dA = Σ_sub/m0 (m/m0)^α F(M_host, z), m0 = 10⁸ M☉ (Gilman et al. 2020, arXiv 1908.06983, eq. 4).

    log10 F = 0.88 log10(M_host/10¹³) + 1.7 log10(z + 0.5): their values, those of older pyHalo and of paltas.
    A Poisson number of halos lies uniformly in the image; masses are M200 at the lens before stripping;
    concentrations and truncation as in `galaxy.py`. A negative sheet of mass takes away the mean that the halos add,
    because the macro lens already holds it.

    Attributes:
        sigma_sub: prior of Σ_sub [kpc⁻²]. log10_m_host: prior of log10 of the host's M200 [Msun].
        mass: range of M200 [Msun]. slope: α. scatter: of log10 of the concentration [dex].
        compensate: add the mass sheet.
    """

    sigma_sub: Spec = 0.025
    log10_m_host: Spec = 13.0
    mass: list[float] = field(default_factory=lambda: [1e7, 1e10])
    slope: float = -1.9
    scatter: float = 0.11
    compensate: bool = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._sigma_sub = Prior.parse(self.sigma_sub, f"{name}.sigma_sub")
        self._log10_m_host = Prior.parse(self.log10_m_host, f"{name}.log10_m_host")
        if len(self.mass) != 2 or not 0 < self.mass[0] < self.mass[1]:
            raise UserError(f"{name}.mass is {self.mass}; give [low, high] in Msun with 0 < low < high")
        if self.slope >= -1:
            raise UserError(f"{name}.slope is {self.slope}; a subhalo mass function falls steeper than -1")

    def truth(self) -> list[Truth]:
        return [
            Truth("sigma_sub", "1/kpc^2", self.sigma_sub),
            Truth("log10_m_host", "log10(Msun)", self.log10_m_host),
            *self.particle(),
            Truth("n_sub", ""),
            Truth("log10_m_sub", "log10(Msun)"),
            Truth("f_sub", ""),
        ]

    def sample(self, rng: Generator, host: Host) -> Substructure:
        n = len(host)
        sigma_sub = np.maximum(self._sigma_sub.sample(rng, (n, 1)), 0)
        log10_m_host = self._log10_m_host.sample(rng, (n, 1))
        particle = self.draw_particle(rng, n)
        area = (2 * host.half_width * host.distances.kpc_per_arcsec) ** 2
        expected = self.number_density(sigma_sub, log10_m_host, host.z_lens) * area
        if (expected > MOST).any():
            raise UserError(
                f"{type(self).__name__}: about {expected.max():.0f} halos an image, more than {MOST}; "
                f"raise the lower end of mass (it is {self.mass[0]:g}) or lower sigma_sub"
            )
        number = rng.poisson(expected)
        shape = (n, max(1, int(number.max(initial=0))))
        mass = Prior("power_law", (*self.mass, self.slope)).sample(rng, shape)
        drawn = {
            "mass": mass,
            "center_x": rng.uniform(-host.half_width, host.half_width, shape),
            "center_y": rng.uniform(-host.half_width, host.half_width, shape),
            "quantile": rng.random(shape),
            "spread": 10 ** (self.scatter * rng.standard_normal(shape)),
        }
        exists = (np.arange(shape[1]) < number) & (rng.random(shape) < self.survival(mass, particle))
        drawn, mask = together(drawn, exists)
        r = np.hypot(drawn["center_x"] - host.center_x, drawn["center_y"] - host.center_y)
        main = galaxy.MainHalo.of(log10_m_host, host)
        depth = main.radius_3d(r * host.distances.kpc_per_arcsec, drawn.pop("quantile"))
        rows = drawn | self.rows(drawn["mass"], depth, drawn.pop("spread"), particle, host)
        components = self.components(rows, mask, particle, host, main, rng)
        if self.compensate:
            kappa = -self.mean_density(expected / area, main, particle, host) / host.distances.sigma_cr
            square = {"kappa": kappa, "half_width": np.full_like(kappa, host.half_width)}
            middle = {"center_x": np.zeros_like(kappa), "center_y": np.zeros_like(kappa)}
            components.append(Component("square_sheet", tensors(square | middle)))
        bound = rows["bound"] * mask
        total = 2 * np.pi * (host.theta_E * host.distances.kpc_per_arcsec) ** 2 * host.distances.sigma_cr
        truth = {
            "sigma_sub": sigma_sub,
            "log10_m_host": log10_m_host,
            **particle,
            "n_sub": mask.sum(1).astype(float),
            "log10_m_sub": log10_or_nan(bound.sum(1)),
            "f_sub": (bound * (r < 2 * host.theta_E)).sum(1) / total[:, 0],
        }
        columns = {
            "mass": rows["mass"],
            "x": rows["center_x"],
            "y": rows["center_y"],
            "z": host.z_lens * np.ones(mask.shape),
            "concentration": rows["concentration"],
        }
        return Substructure(components, {k: np.reshape(v, n) for k, v in truth.items()}, Halos(columns, mask))

    def number_density(self, sigma_sub: Array, log10_m_host: Array, z_lens: Array) -> Array:
        """Subhalos of `mass` per kpc² before suppression: the integral of the mass function."""
        k = self.slope + 1
        low, high = self.mass[0] / PIVOT, self.mass[1] / PIVOT
        host = 10 ** (0.88 * (log10_m_host - 13) + 1.7 * np.log10(z_lens + 0.5))
        return np.asarray(sigma_sub * host * (high**k - low**k) / k)

    def rows(
        self, mass: Array, depth: Array, spread: Array, particle: dict[str, Array], host: Host
    ) -> dict[str, Array]:
        """Mass, R_s, alpha_Rs, r_trunc [arcsec], concentration, bound mass [Msun] of halos.

        Args:
            mass: M200 [Msun]. depth: distance from the host's centre [kpc]. spread: factor on the concentration.
        """
        c = galaxy.concentration(mass, host.z_lens, host.H0) * spread * self.softening(mass, particle)
        R_s, alpha_Rs = halo.nfw_parameters(mass, c, host.z_lens, host.distances, host.H0, host.Om0)
        r_trunc = galaxy.truncation(mass, depth) / host.distances.kpc_per_arcsec
        bound = halo.tnfw_total_mass(halo.scale_mass(mass, c), r_trunc / R_s)
        sizes = {"R_s": R_s, "alpha_Rs": alpha_Rs, "r_trunc": r_trunc}
        return {"mass": mass, **sizes, "concentration": c, "bound": bound}

    def mean_density(self, density: Array, main: galaxy.MainHalo, particle: dict[str, Array], host: Host) -> Array:
        """(n, 1) mean surface density of bound mass [Msun/kpc²], by quadrature over mass and depth.

        Args:
            density: halos per kpc² before suppression.
        """
        mass, share = galaxy.log_quadrature(self.mass, self.slope)
        quantiles = (np.arange(8) + 0.5) / 8
        r = 0.765 * host.half_width * host.distances.kpc_per_arcsec  # mean distance from the middle of a square
        mean = np.zeros((len(host), 1))
        for quantile in quantiles:
            depth = main.radius_3d(r * np.ones((len(host), 1)), np.full((len(host), 1), quantile))
            bound = self.rows(mass, depth, np.ones(1), particle, host)["bound"]
            mean += (share * self.survival(mass, particle) * bound).sum(1, keepdims=True) / len(quantiles)
        return density * mean

    # what the other families change

    def particle(self) -> list[Truth]:
        """Parameters of the dark matter itself."""
        return []

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        """Name -> (n, 1) of `particle`."""
        return {}

    def survival(self, mass: Array, particle: dict[str, Array]) -> Array:
        """Share of the halos of this mass that exists."""
        return np.ones(np.broadcast_shapes(mass.shape, (1, 1)))

    def softening(self, mass: Array, particle: dict[str, Array]) -> Any:
        """Factor on the concentration."""
        return 1.0

    def components(
        self,
        rows: dict[str, Array],
        mask: Array,
        particle: dict[str, Array],
        host: Host,
        main: galaxy.MainHalo,
        rng: Generator,
    ) -> list[Component]:
        """The deflectors."""
        names = ("R_s", "alpha_Rs", "r_trunc", "center_x", "center_y")
        return [Component("tnfw", tensors({k: rows[k] for k in names}), torch.from_numpy(mask))]
