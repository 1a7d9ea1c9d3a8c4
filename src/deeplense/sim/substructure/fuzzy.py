"""Fuzzy (ultralight) dark matter: suppressed subhalos with soliton cores, and interference granules of the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from deeplense.lensing import halo
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Array, Host, Truth, tensors
from deeplense.sim.substructure.cdm import ColdDarkMatter
from deeplense.sim.substructure.galaxy import MainHalo

WAVES = 64  # plane waves that make the random field


@dataclass
class FuzzyDarkMatter(ColdDarkMatter):
    """A boson of mass m, m22 = m/10⁻²² eV.

    * Mass function × (1 + (M/M0)^−1.1)^−2.2, M0 = 1.6e10 m22^−4/3 M☉ (Schive et al. 2016, arXiv 1508.04621, eq. 7).
    * Each halo has a soliton: core radius 1.6 kpc m22⁻¹ a^½ ζ^−⅙ (M/10⁹)^−⅓, mass within it ¼ a^−½ ζ^⅙ (M/M_min)^⅓
      M_min, M_min = 4.4e7 m22^−3/2 M☉ (Schive et al. 2014, arXiv 1407.7762, eqs. 6 and 7, ζ relative to z = 0). One
      heavier than the bound mass is stripped to it and grows, as mass × radius of a soliton is constant (their eq. 3).
      The rest of the bound mass is an NFW halo with that core.
    * Granules: a Gaussian random field of Σ in the host, σ² = √π λ_dB ∫ρ² dz, correlation exp(−r²/λ_dB²),
      λ_dB = 1.2 kpc (100 km/s/v)/m22 with the velocity dispersion v of the lens: `WAVES` plane waves of random phase.
      Waves longer than the image are left to the macro lens.

    Attributes:
        log10_m_uldm: prior of log10(m/eV). granules: whether there are any.
    """

    log10_m_uldm: Spec = field(default_factory=lambda: {"uniform": [-22.0, -20.0]})
    granules: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._log10_m_uldm = Prior.parse(self.log10_m_uldm, "FuzzyDarkMatter.log10_m_uldm")

    def particle(self) -> list[Truth]:
        return [Truth("log10_m_uldm", "log10(eV)", self.log10_m_uldm)]

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        return {"log10_m_uldm": self._log10_m_uldm.sample(rng, (n, 1))}

    def survival(self, mass: Array, particle: dict[str, Array], field: bool = False) -> Array:
        M0 = 1.6e10 * _m22(particle) ** (-4 / 3)
        return np.asarray((1 + (mass / M0) ** -1.1) ** -2.2)

    def components(
        self, rows: dict[str, Array], mask: Array, particle: dict[str, Array], host: Host, rng: Generator
    ) -> list[Component]:
        theta_c, mass = self.soliton(rows, particle, host)
        share = 1 - mass / rows["bound"]
        center = {k: rows[k] for k in ("center_x", "center_y")}
        # scaled so that soliton and halo together have the bound mass
        around = {
            "R_s": rows["R_s"],
            "alpha_Rs": share * rows["alpha_Rs"],
            "r_trunc": rows["r_trunc"],
            "r_core": theta_c,
        }
        soliton = {"kappa_0": halo.soliton_kappa_0(mass, theta_c, host.distances), "theta_c": theta_c}
        there = torch.from_numpy(mask)
        found = [Component("ctnfw", tensors(around | center), there)]
        found.append(Component("soliton", tensors(soliton | center), there))
        return found

    def diffuse(self, particle: dict[str, Array], host: Host, main: MainHalo, rng: Generator) -> list[Component]:
        return [self.granule_field(particle, host, main, rng)] if self.granules else []

    def soliton(self, rows: dict[str, Array], particle: dict[str, Array], host: Host) -> tuple[Array, Array]:
        """Core radius [arcsec] and total mass [Msun] of each halo's soliton."""
        m22, a = _m22(particle), 1 / (1 + host.z_lens)
        zeta = (_zeta(host.z_lens, host.Om0) / _zeta(0.0, host.Om0)) ** (1 / 6)
        M_min = 4.4e7 * m22**-1.5
        r_c = 1.6 / m22 * a**0.5 / zeta * (rows["mass"] / 1e9) ** (-1 / 3)  # kpc
        whole = 0.25 * a**-0.5 * zeta * (rows["mass"] / M_min) ** (1 / 3) * M_min / halo.SOLITON_CORE
        mass = np.minimum(whole, rows["bound"])
        return r_c * whole / mass / host.distances.kpc_per_arcsec, mass

    def granule_field(self, particle: dict[str, Array], host: Host, main: MainHalo, rng: Generator) -> Component:
        """Plane waves of κ whose sum is a Gaussian random field."""
        d = host.distances
        wavelength = self.de_broglie(particle, host)  # kpc
        sigma = np.sqrt(np.sqrt(np.pi) * wavelength * main.column(host.theta_E * d.kpc_per_arcsec)) / d.sigma_cr
        shape = (len(host), WAVES)
        # a Gaussian correlation has a Gaussian spectrum: E cos(k·r) = exp(−k_σ² r²/2)
        k = np.sqrt(2) / (wavelength / d.kpc_per_arcsec) * rng.standard_normal((2, *shape))
        long = np.hypot(*k) < np.pi / host.half_width
        params = {
            "kappa": sigma * np.sqrt(2 / WAVES) * np.ones(shape),
            "k_x": k[0],
            "k_y": k[1],
            "phase": rng.uniform(0, 2 * np.pi, shape),
        }
        return Component("plane_wave", tensors(params), torch.from_numpy(~long))

    def de_broglie(self, particle: dict[str, Array], host: Host) -> Array:
        """λ_dB [kpc], (n, 1), at the velocity dispersion of an isothermal lens, θ_E = 4π (v/c)² D_ls/D_s."""
        d = host.distances
        v = halo.C_KM_S * np.sqrt(np.radians(host.theta_E / 3600) * d.D_s / d.D_ls / (4 * np.pi))
        return np.asarray(1.2 / _m22(particle) * 100 / v)


def _zeta(z: Any, Om0: float) -> Any:
    """Overdensity at virialisation over the mean density (Bryan & Norman 1998), ζ of Schive et al. (2014)."""
    Om = Om0 * (1 + z) ** 3 / (Om0 * (1 + z) ** 3 + 1 - Om0)
    return (18 * np.pi**2 + 82 * (Om - 1) - 39 * (Om - 1) ** 2) / Om


def _m22(particle: dict[str, Array]) -> Array:
    return np.asarray(10 ** (particle["log10_m_uldm"] + 22))
