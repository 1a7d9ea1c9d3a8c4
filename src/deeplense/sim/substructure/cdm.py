"""Subhalos of cold dark matter: truncated NFW halos of the lens galaxy, from 10⁷ M☉ up, hundreds an image.

The other halo families are this one with something changed: `warm.py`, `self_interacting.py`, `fuzzy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator

from deeplense.errors import UserError
from deeplense.lensing import halo
from deeplense.lensing.raytrace import Component
from deeplense.lensing.structure import MASSES, Structure
from deeplense.recipe import Prior as Spec
from deeplense.recipe import Range
from deeplense.sim.priors import Prior
from deeplense.sim.substructure import galaxy
from deeplense.sim.substructure import line_of_sight as los
from deeplense.sim.substructure.base import (
    MOST,
    Array,
    Halos,
    Host,
    Substructure,
    Truth,
    log10_or_nan,
    tensors,
    together,
)

PIVOT = 1e8  # Msun, m0 of the mass function
DEPTHS = 4  # of the quadrature along the line of sight


class Population(NamedTuple):
    """Halos of one origin: their rows (n, N), which exist, as deflectors, and their redshifts."""

    rows: dict[str, Array]
    mask: Array
    components: list[Component]
    z: Array

    def columns(self) -> dict[str, Array]:
        """As `HALO_COLUMNS`."""
        names = {"mass": "mass", "x": "center_x", "y": "center_y", "concentration": "concentration"}
        return {k: self.rows[v] for k, v in names.items()} | {"z": self.z * np.ones(self.mask.shape)}


@dataclass
class ColdDarkMatter:
    """d²N/dm dA = Σ_sub/m0 (m/m0)^α F(M_host, z), m0 = 10⁸ M☉ (Gilman et al. 2020, arXiv 1908.06983, eq. 4).

    log10 F = 0.88 log10(M_host/10¹³) + 1.7 log10(z + 0.5): their values, those of older pyHalo and of paltas.
    A Poisson number of halos lies uniformly in the image; masses are M200 at the lens before stripping;
    concentrations and truncation as in `galaxy.py`. A negative sheet of mass takes away the mean that the halos add,
    because the macro lens already holds it.

    Attributes:
        sigma_sub: prior of Σ_sub [kpc⁻²]. log10_m_host: prior of log10 of the host's M200 [Msun];
            null takes that of the lens galaxy, which a recipe's sky ties to its velocity dispersion.
        mass: range of M200 [Msun]. slope: α. scatter: of log10 of the concentration [dex].
        compensate: add the mass sheet.
        line_of_sight: factor on the abundance of field halos between observer and source, of the same range of masses
            (`line_of_sight.py`); 0 is none, 1 as many as Sheth & Tormen (1999) expect.
        multi_plane: trace rays through planes in which field halos lie; if not, they are projected onto the lens.

    Truth: n_sub, log10_m_sub count subhalos alone; f_sub is their bound mass inside 2 θ_E over all mass there of an
    isothermal lens, 2π θ_E² Σ_cr; where the image does not hold the whole circle, of the part that it holds.
    """

    sigma_sub: Spec = 0.025
    log10_m_host: Spec | None = 13.0
    mass: list[Annotated[float, Range(0, 1e16)]] = field(default_factory=lambda: [1e7, 1e10])
    slope: Annotated[float, Range(-10, 0)] = -1.9
    scatter: Annotated[float, Range(0, 2)] = 0.11
    compensate: bool = True
    line_of_sight: float = 0.0
    multi_plane: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._sigma_sub = Prior.parse(self.sigma_sub, f"{name}.sigma_sub")
        m_host = self.log10_m_host
        self._log10_m_host = None if m_host is None else Prior.parse(m_host, f"{name}.log10_m_host")
        if len(self.mass) != 2 or not 0 < self.mass[0] < self.mass[1]:
            raise UserError(f"{name}.mass is {self.mass}; give [low, high] in Msun with 0 < low < high")
        if self.slope >= -1:
            raise UserError(f"{name}.slope is {self.slope}; a subhalo mass function falls steeper than -1")
        if not 0 <= self.line_of_sight < np.inf:
            raise UserError(f"{name}.line_of_sight is {self.line_of_sight}; give 0 (none), 1 (as expected) or a factor")
        if self.line_of_sight and not MASSES[0] <= self.mass[0] < self.mass[1] <= MASSES[1]:
            raise UserError(f"{name}.mass is {self.mass}; with line_of_sight it must lie in {list(MASSES)} Msun")
        if self.multi_plane and not self.line_of_sight:
            raise UserError(f"{name}.multi_plane is for halos along the line of sight; give line_of_sight above 0")

    def truth(self) -> list[Truth]:
        return [
            Truth("sigma_sub", "1/kpc^2", self.sigma_sub),
            Truth("log10_m_host", "log10(Msun)", self.log10_m_host),
            *self.particle(),
            Truth("n_sub", ""),
            Truth("log10_m_sub", "log10(Msun)"),
            Truth("f_sub", ""),
            *([Truth("n_los", "")] if self.line_of_sight > 0 else []),
        ]

    def sample(self, rng: Generator, host: Host) -> Substructure:
        n = len(host)
        sigma_sub = np.maximum(self._sigma_sub.sample(rng, (n, 1)), 0)
        log10_m_host = host.log10_m_host if self._log10_m_host is None else self._log10_m_host.sample(rng, (n, 1))
        if log10_m_host is None:
            raise UserError(f"{type(self).__name__}.log10_m_host is null, and simulation.sky draws none; give a prior")
        particle = self.draw_particle(rng, n)
        main = galaxy.MainHalo.of(log10_m_host, host)
        area = (2 * host.half_width * host.distances.kpc_per_arcsec) ** 2
        density = self.number_density(sigma_sub, log10_m_host, host.z_lens)
        found = self._subhalos(rng, host, density * area, main, particle)
        components = found.components + self.diffuse(particle, host, main, rng)
        kappa = -self.mean_density(density, main, particle, host) / host.distances.sigma_cr
        bound = found.rows["bound"] * found.mask
        r = np.hypot(found.rows["center_x"] - host.center_x, found.rows["center_y"] - host.center_y)
        total = 2 * np.pi * (host.theta_E * host.distances.kpc_per_arcsec) ** 2 * host.distances.sigma_cr
        inside = total * galaxy.share_seen(2 * host.theta_E, host.half_width)
        truth = {
            "sigma_sub": sigma_sub,
            "log10_m_host": log10_m_host,
            **particle,
            "n_sub": found.mask.sum(1).astype(float),
            "log10_m_sub": log10_or_nan(bound.sum(1)),
            "f_sub": (bound * (r < 2 * host.theta_E)).sum(1) / inside[:, 0],
        }
        columns, mask, planes = found.columns(), found.mask, None
        if self.line_of_sight > 0:
            slices = los.Slices.of(host, self.multi_plane)
            field = self._field(rng, slices, host, particle)
            components += field.components
            mean = los.mean_convergence(slices, host, self._field_density(slices, particle, host))
            if self.multi_plane:
                planes = slices.planes(host)
                sheets = los.in_planes(_sheet(-mean, host), np.broadcast_to(np.arange(mean.shape[1]), mean.shape))
                components += sheets if self.compensate else []
            else:
                kappa = kappa - mean.sum(1, keepdims=True)
            truth["n_los"] = field.mask.sum(1).astype(float)
            columns = {k: np.concatenate([v, field.columns()[k]], axis=1) for k, v in columns.items()}
            mask = np.concatenate([mask, field.mask], axis=1)
        if self.compensate:
            components.append(_sheet(kappa, host))
        return Substructure(components, {k: np.reshape(v, n) for k, v in truth.items()}, Halos(columns, mask), planes)

    def number_density(self, sigma_sub: Array, log10_m_host: Array, z_lens: Array) -> Array:
        """Subhalos of `mass` per kpc² before suppression: the integral of the mass function."""
        k = self.slope + 1
        low, high = self.mass[0] / PIVOT, self.mass[1] / PIVOT
        host = 10 ** (0.88 * (log10_m_host - 13) + 1.7 * np.log10(z_lens + 0.5))
        return np.asarray(sigma_sub * host * (high**k - low**k) / k)

    def _subhalos(
        self, rng: Generator, host: Host, expected: Array, main: galaxy.MainHalo, particle: dict[str, Array]
    ) -> Population:
        """Halos of the lens galaxy, `expected` (n, 1) of them before suppression."""
        self._check_number(expected)
        number = rng.poisson(expected)
        shape = (len(host), max(1, int(number.max(initial=0))))
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
        depth = main.radius_3d(r * host.distances.kpc_per_arcsec, drawn.pop("quantile"))
        rows = drawn | self.rows(drawn["mass"], depth, drawn.pop("spread"), particle, host)
        return Population(rows, mask, self.components(rows, mask, particle, host, rng), host.z_lens)

    def _field(self, rng: Generator, slices: los.Slices, host: Host, particle: dict[str, Array]) -> Population:
        """Halos between observer and source."""
        self._check_number(los.expected(slices, host, self.mass, self.line_of_sight)[0].sum(1))
        drawn, mask = los.draw(rng, slices, host, self.mass, self.line_of_sight)
        shape = mask.shape
        drawn["spread"] = 10 ** (self.scatter * rng.standard_normal(shape))
        drawn, mask = together(drawn, mask & (rng.random(shape) < self.survival(drawn["mass"], particle, field=True)))
        index = drawn.pop("slice")
        plane, beta, behind = slices.pick(index, host)
        rows = drawn | self.rows(drawn["mass"], None, drawn.pop("spread"), particle, plane)
        r = np.hypot(drawn["center_x"] - host.center_x, drawn["center_y"] - host.center_y)
        weight, _ = los.coupling(r, host.theta_E, beta, behind)
        components = [los.project(c, weight, behind) for c in self.components(rows, mask, particle, plane, rng)]
        if self.multi_plane:
            components = [part for c in components for part in los.in_planes(c, index)]
        return Population(rows, mask, components, plane.z_lens)

    def rows(
        self, mass: Array, depth: Array | None, spread: Array, particle: dict[str, Array], host: Host
    ) -> dict[str, Array]:
        """Mass, R_s, alpha_Rs, r_trunc [arcsec], concentration, bound mass [Msun] of halos.

        Args:
            mass: M200 [Msun]. spread: factor on the concentration.
            depth: distance from the host's centre [kpc]; None for a halo in the field, which is truncated where its
                mean density is 50 ρ_crit (Gilman et al. 2020, sec. 4.2).
        """
        c = galaxy.concentration(mass, host.z_lens, host.H0) * spread * self.softening(mass, particle)
        R_s, alpha_Rs = halo.nfw_parameters(mass, c, host.z_lens, host.distances, host.H0, host.Om0)
        if depth is None:
            r_trunc = R_s * halo.radius_of_overdensity(c, galaxy.FIELD)
        else:
            r_trunc = galaxy.truncation(mass, depth) / host.distances.kpc_per_arcsec
        bound = halo.tnfw_total_mass(halo.scale_mass(mass, c), r_trunc / R_s)
        sizes = {"R_s": R_s, "alpha_Rs": alpha_Rs, "r_trunc": r_trunc}
        return {"mass": mass, **sizes, "concentration": c, "bound": bound}

    def mean_density(self, density: Array, main: galaxy.MainHalo, particle: dict[str, Array], host: Host) -> Array:
        """(n, 1) mean surface density of bound mass in the image [Msun/kpc²], by quadrature over mass, depth,
        concentration; less what heavy halos spread beyond the image.

        Args:
            density: halos per kpc² before suppression.
        """
        mass, share = galaxy.log_quadrature(self.mass, self.slope)
        share = share * self.survival(mass, particle)
        # mean distance from the middle of a square
        r = 0.765 * host.half_width * host.distances.kpc_per_arcsec * np.ones((len(host), 1))
        mean = np.zeros((len(host), 1))
        for quantile in (np.arange(DEPTHS) + 0.5) / DEPTHS:
            depth = main.radius_3d(r, np.full((len(host), 1), quantile))
            for spread, part in galaxy.scatter_quadrature(self.scatter):
                rows = self.rows(mass, depth, np.full(1, spread), particle, host)
                bound = rows["bound"] * galaxy.mass_seen(rows, host)
                mean += (share * bound).sum(1, keepdims=True) * part / DEPTHS
        return density * mean

    def _field_density(self, slices: los.Slices, particle: dict[str, Array], host: Host) -> Array:
        """Mean bound mass of field halos in each slice [Msun/Mpc³, comoving], likewise."""
        edges = np.geomspace(self.mass[0], self.mass[1], 17)
        mass, width = np.sqrt(edges[1:] * edges[:-1])[:, None, None], np.diff(edges)[:, None, None]
        plane, beta, behind = slices.pick(np.broadcast_to(np.arange(slices.z.shape[1]), slices.z.shape), host)
        share = Structure(host.H0, host.Om0).mass_function(mass, slices.z) * width
        share = share * self.survival(mass, particle, field=True)
        middle = self.rows(mass, None, np.ones(1), particle, plane)
        weight, _ = los.coupling(0.765 * host.half_width, host.theta_E, beta, behind)
        share = share * galaxy.mass_seen(middle, plane, np.where(behind, 1 / weight, 1.0))
        bound = sum(
            part * self.rows(mass, None, np.full(1, spread), particle, plane)["bound"]
            for spread, part in galaxy.scatter_quadrature(self.scatter)
        )
        return np.asarray(self.line_of_sight * (share * bound).sum(0))

    def _check_number(self, expected: Array) -> None:
        if (expected > MOST).any():
            raise UserError(
                f"{type(self).__name__}: about {expected.max():.0f} halos an image, more than {MOST}; "
                f"raise the lower end of mass (it is {self.mass[0]:g}) or lower sigma_sub or line_of_sight"
            )

    # what the other families change

    def particle(self) -> list[Truth]:
        """Parameters of the dark matter itself."""
        return []

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        """Name -> (n, 1) of `particle`."""
        return {}

    def survival(self, mass: Array, particle: dict[str, Array], field: bool = False) -> Array:
        """Share of the subhalos (of the field halos) of this mass that exists."""
        return np.ones(np.broadcast_shapes(mass.shape, (1, 1)))

    def softening(self, mass: Array, particle: dict[str, Array]) -> Any:
        """Factor on the concentration."""
        return 1.0

    def components(
        self, rows: dict[str, Array], mask: Array, particle: dict[str, Array], host: Host, rng: Generator
    ) -> list[Component]:
        """The halos as deflectors; `host` may be one for each halo, (n, N)."""
        names = ("R_s", "alpha_Rs", "r_trunc", "center_x", "center_y")
        return [Component("tnfw", tensors({k: rows[k] for k in names}), torch.from_numpy(mask))]

    def diffuse(self, particle: dict[str, Array], host: Host, main: galaxy.MainHalo, rng: Generator) -> list[Component]:
        """What the lens galaxy has beside halos."""
        return []


def _sheet(kappa: Array, host: Host) -> Component:
    """Square sheets the size of the image, (n, N)."""
    zero = np.zeros_like(kappa)
    square = {"kappa": kappa, "half_width": zero + host.half_width, "center_x": zero, "center_y": zero}
    return Component("square_sheet", tensors(square))
