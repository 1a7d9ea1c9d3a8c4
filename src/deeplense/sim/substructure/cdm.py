"""Subhalos of cold dark matter: truncated NFW halos of the lens galaxy, from 10⁷ M☉ up, hundreds an image.

The other halo families are this one with something changed: `warm.py`, `self_interacting.py`, `fuzzy.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

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
    RICHEST,
    Array,
    Halos,
    Host,
    Substructure,
    Truth,
    log10_or_nan,
    record,
    tensors,
    together,
)
from deeplense.sim.substructure.deflectors import deflectors

PIVOT = 1e8  # Msun, m0 of the mass function
DEPTHS = 4  # of the quadrature along the line of sight


@dataclass
class ColdDarkMatter:
    """d²N/dm dA = Σ_sub/m0 (m/m0)^α F(M_host, z), m0 = 10⁸ M☉ (Gilman et al. 2020, arXiv 1908.06983, eq. 4).

    log10 F = 0.88 log10(M_host/10¹³) + 1.7 log10(z + 0.5): their values, those of older pyHalo and of paltas.
    A Poisson number of halos lies uniformly in a disc that holds the image, wider for heavier ones; masses are M200 at
    the lens before stripping; concentrations and truncation as in `galaxy.py`. A negative sheet of mass takes away the
    mean that the halos add, because the macro lens already holds it.

    Attributes:
        sigma_sub: prior of Σ_sub [kpc⁻²]. log10_m_host: prior of log10 of the host's M200 [Msun];
            null takes that of the lens galaxy, which a recipe's sky ties to its velocity dispersion.
        mass: range of M200 [Msun]. slope: α. scatter: of log10 of the concentration [dex].
        compensate: add the mass sheet.
        line_of_sight: factor on the abundance of field halos between observer and source, of the same range of masses
            (`line_of_sight.py`); 0 is none, 1 as many as Sheth & Tormen (1999) expect.
        multi_plane: bend rays at every field halo on their way; if not, each plane sees the rays that macro lens and
            subhalos have bent, not its neighbours (`lensing/decoupled.py`), which is far quicker.

    Truth: n_sub, log10_m_sub count subhalos whose centre is in the image; f_sub is their bound mass inside 2 θ_E over
    all mass there of an isothermal lens, 2π θ_E² Σ_cr; where the image does not hold the whole circle, of the part that
    it holds.
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
        drawn = {"sigma_sub": sigma_sub, "log10_m_host": log10_m_host, **self.draw_particle(rng, n)}
        rows, mask = self._subhalos(rng, host, drawn)
        seen = mask & (np.maximum(np.abs(rows["x"]), np.abs(rows["y"])) < host.half_width)
        bound = rows["bound"] * seen
        r = np.hypot(rows["x"] - host.center_x, rows["y"] - host.center_y)
        total = 2 * np.pi * (host.theta_E * host.distances.kpc_per_arcsec) ** 2 * host.distances.sigma_cr
        inside = total * galaxy.share_seen(2 * host.theta_E, host.half_width)
        drawn |= {
            "n_sub": seen.sum(1).astype(float),
            "log10_m_sub": log10_or_nan(bound.sum(1)),
            "f_sub": (bound * (r < 2 * host.theta_E)).sum(1) / inside[:, 0],
        }
        if self.line_of_sight > 0:
            field, there = self._field(rng, host, drawn)
            seen = there & (np.maximum(np.abs(field["x"]), np.abs(field["y"])) < host.half_width)
            drawn["n_los"] = seen.sum(1).astype(float)
            rows = {k: np.concatenate([rows[k], field[k]], axis=1) for k in rows}
            mask = np.concatenate([mask, there], axis=1)
        rows.pop("bound")
        return self.build({k: np.reshape(v, n) for k, v in drawn.items()}, record(mask, **rows), host)

    def build(self, truth: dict[str, Array], halos: Halos, host: Host) -> Substructure:
        drawn = {k: v[:, None] for k, v in truth.items()}
        main = galaxy.MainHalo.of(drawn["log10_m_host"], host)
        density = self.number_density(drawn["sigma_sub"], drawn["log10_m_host"], host.z_lens)
        kappa = -self.mean_density(density, main, drawn, host) / host.distances.sigma_cr
        sheets = [_sheet(kappa)] if self.compensate else []
        diffuse = self.diffuse(drawn, host, main)
        if not self.line_of_sight:
            return Substructure([*deflectors(*halos, host), *diffuse, *sheets], truth, halos)
        slices = los.Slices.of(host)
        index = slices.nearest(halos.columns["z"], host)
        near = index == los.FRONT
        components = deflectors(halos.columns, halos.mask & near, host)
        components = [c.only(torch.from_numpy(near)) for c in components] + diffuse
        for c in deflectors(halos.columns, halos.mask & ~near, slices.pick(index, host)):
            components += los.in_planes(c, index)
        mean = -los.mean_convergence(slices, self._field_density(slices, drawn, host))
        if self.compensate:
            number = np.delete(np.arange(mean.shape[1] + 1), los.FRONT)
            sheets += los.in_planes(_sheet(mean), np.broadcast_to(number, mean.shape))
        return Substructure([*components, *sheets], truth, halos, slices.planes(host, self.multi_plane))

    def number_density(self, sigma_sub: Array, log10_m_host: Array, z_lens: Array) -> Array:
        """Subhalos of `mass` per kpc² before suppression: the integral of the mass function."""
        host = 10 ** (0.88 * (log10_m_host - 13) + 1.7 * np.log10(z_lens + 0.5))
        low, high = (m / PIVOT for m in self.mass)
        return np.asarray(sigma_sub * host * galaxy.integral(low, high, self.slope))

    def _subhalos(self, rng: Generator, host: Host, drawn: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        """Halos of the lens galaxy, (n, N), and which exist."""
        # in a disc of area π (a + b m^⅓)²: a mixture of three power laws
        (low, high), (a, b) = self.mass, galaxy.reach(host, self.mass[0])
        laws = [(np.pi * a * a, 0.0), (2 * np.pi * a * b, 1 / 3), (np.pi * b * b, 2 / 3)]
        parts = [area * galaxy.integral(low, high, self.slope + k) for area, k in laws]
        cumulative = np.cumsum(np.concatenate(parts, 1), 1)
        density = self.number_density(drawn["sigma_sub"], drawn["log10_m_host"], host.z_lens)
        density = density * host.distances.kpc_per_arcsec**2 / galaxy.integral(low, high, self.slope)
        expected = density * cumulative[:, -1:]
        self._check_number(expected)
        number = rng.poisson(expected)
        shape = (len(host), max(1, int(number.max(initial=0))))
        law = (rng.random(shape)[..., None] * cumulative[:, -1:, None] > cumulative[:, None]).sum(-1)
        mass = np.choose(law, [Prior("power_law", (*self.mass, self.slope + k)).sample(rng, shape) for _, k in laws])
        r, angle = (a + b * mass ** (1 / 3)) * np.sqrt(rng.random(shape)), rng.uniform(0, 2 * np.pi, shape)
        rows = {
            "mass": mass,
            "x": r * np.cos(angle),
            "y": r * np.sin(angle),
            "quantile": rng.random(shape),
            "spread": 10 ** (self.scatter * rng.standard_normal(shape)),
        }
        exists = (np.arange(shape[1]) < number) & (rng.random(shape) < self.survival(mass, drawn))
        rows, mask = together(rows, exists)
        r = np.hypot(rows["x"] - host.center_x, rows["y"] - host.center_y)
        main = galaxy.MainHalo.of(drawn["log10_m_host"], host)
        depth = main.radius_3d(r * host.distances.kpc_per_arcsec, rows.pop("quantile"))
        return self._moulded(rng, rows, depth, drawn, host), mask

    def _field(self, rng: Generator, host: Host, drawn: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        """Halos between observer and source."""
        slices = los.Slices.of(host)
        self._check_number(los.expected(slices, host, self.mass, self.line_of_sight)[0].sum(1))
        rows, mask = los.draw(rng, slices, host, self.mass, self.line_of_sight)
        shape = mask.shape
        rows["spread"] = 10 ** (self.scatter * rng.standard_normal(shape))
        rows, mask = together(rows, mask & (rng.random(shape) < self.survival(rows["mass"], drawn, field=True)))
        plane = slices.pick(rows.pop("slice"), host)
        return self._moulded(rng, rows, None, drawn, plane), mask

    def _moulded(
        self, rng: Generator, rows: dict[str, Array], depth: Array | None, drawn: dict[str, Array], host: Host
    ) -> dict[str, Array]:
        """Mass and place with all that `HALO_COLUMNS` says of a halo, and its bound mass."""
        made = self.rows(rows["mass"], depth, rows.pop("spread"), drawn, host)
        nothing = np.zeros(rows["mass"].shape)
        rows |= {"z": host.z_lens + nothing, "concentration": made["concentration"], "r_s": made["R_s"]}
        rows |= {"r_trunc": made["r_trunc"], "r_core": nothing, "soliton": nothing, "bound": made["bound"]}
        self.mould(rows, drawn, host, rng)
        return rows

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
        R_s, alpha_Rs = halo.nfw_parameters(mass, c, host.z_lens, host.distances, host.H0, host.Om0, host.w0)
        if depth is None:
            r_trunc = R_s * halo.radius_of_overdensity(c, galaxy.FIELD)
        else:
            r_trunc = galaxy.truncation(mass, depth) / host.distances.kpc_per_arcsec
        bound = halo.tnfw_total_mass(halo.scale_mass(mass, c), r_trunc / R_s)
        sizes = {"R_s": R_s, "alpha_Rs": alpha_Rs, "r_trunc": r_trunc}
        return {"mass": mass, **sizes, "concentration": c, "bound": bound}

    def mean_density(self, density: Array, main: galaxy.MainHalo, particle: dict[str, Array], host: Host) -> Array:
        """(n, 1) mean surface density of bound mass in the inner circle [Msun/kpc²], by quadrature over mass, depth,
        concentration; less what the heaviest spread beyond the disc that they fill.

        Args:
            density: halos per kpc² before suppression.
        """
        mass, share = galaxy.log_quadrature(self.mass, self.slope)
        share = share * self.survival(mass, particle)
        mean = np.zeros((len(host), 1))
        a, b = galaxy.reach(host, self.mass[0])
        disc = a + b * mass ** (1 / 3)
        # mean distance from the middle of a circle that is wider for halos which reach into it from outside
        r = 2 / 3 * np.hypot(host.inner, 0.75 * b * mass ** (1 / 3)) * host.distances.kpc_per_arcsec
        for quantile in (np.arange(DEPTHS) + 0.5) / DEPTHS:
            depth = main.radius_3d(r, np.full(r.shape, quantile))
            for spread, part in galaxy.scatter_quadrature(self.scatter):
                rows = self.rows(mass, depth, np.full(1, spread), particle, host)
                bound = rows["bound"] * galaxy.mass_seen(rows, host, disc, host.inner)
                mean += (share * bound).sum(1, keepdims=True) * part / DEPTHS
        return density * mean

    def _field_density(self, slices: los.Slices, particle: dict[str, Array], host: Host) -> Array:
        """Mean bound mass of field halos in each slice [Msun/Mpc³, comoving], likewise."""
        edges = np.geomspace(self.mass[0], self.mass[1], 17)
        mass, width = np.sqrt(edges[1:] * edges[:-1])[:, None, None], np.diff(edges)[:, None, None]
        plane = slices.pick(np.delete(np.arange(slices.z.shape[1] + 1), los.FRONT) + 0 * slices.z.astype(int), host)
        share = Structure(host.H0, host.Om0, w0=host.w0).mass_function(mass, slices.z) * width
        share = share * self.survival(mass, particle, field=True)
        middle = self.rows(mass, None, np.ones(1), particle, plane)
        share = share * galaxy.mass_seen(middle, plane, slices.radius, slices.inner)
        bound = sum(
            part * self.rows(mass, None, np.full(1, spread), particle, plane)["bound"]
            for spread, part in galaxy.scatter_quadrature(self.scatter)
        )
        return np.asarray(self.line_of_sight * (share * bound).sum(0))

    def _check_number(self, expected: Array) -> None:
        # a recipe that is too rich is refused; a rich lens among a hundred thousand must not stop a survey
        if expected.size and (np.median(expected) > MOST or expected.max() > RICHEST):
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

    def mould(self, rows: dict[str, Array], particle: dict[str, Array], host: Host, rng: Generator) -> None:
        """Give halos another shape, of the same bound mass: r_s, r_core [arcsec], soliton [Msun]. `host` may be one for
        each halo, (n, N)."""

    def diffuse(self, truth: dict[str, Array], host: Host, main: galaxy.MainHalo) -> list[Component]:
        """What the lens galaxy has beside halos."""
        return []


def _sheet(kappa: Array) -> Component:
    """Uniform sheets (n, N)."""
    zero = np.zeros_like(kappa)
    return Component("mass_sheet", tensors({"kappa": kappa, "center_x": zero, "center_y": zero}))
