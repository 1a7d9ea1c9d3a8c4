"""Fuzzy (ultralight) dark matter: suppressed subhalos with soliton cores, and interference granules of the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy import constants
from numpy.random import Generator

from deeplense import rng
from deeplense.lensing import cosmology, halo
from deeplense.lensing.raytrace import Component
from deeplense.recipe import Prior as Spec
from deeplense.sim.priors import Prior
from deeplense.sim.substructure.base import Array, Host, Truth, tensors
from deeplense.sim.substructure.cdm import ColdDarkMatter
from deeplense.sim.substructure.galaxy import MainHalo

WAVES = 128  # plane waves that make the random field
SHORTEST = 6.0  # k ħ/(m v) of the shortest: beyond is e⁻⁹ of the spectrum
HBAR_C = float((constants.hbar * constants.c).to("eV kpc").value)


@dataclass
class FuzzyDarkMatter(ColdDarkMatter):
    """A boson of mass m, m22 = m/10⁻²² eV.

    * Mass function × (1 + (M/M0)^−1.1)^−2.2, M0 = 1.6e10 m22^−4/3 M☉ (Schive et al. 2016, arXiv 1508.04621, eq. 7).
    * Each halo has a soliton: core radius 1.6 kpc m22⁻¹ a^½ ζ^−⅙ (M/10⁹)^−⅓, mass within it ¼ a^−½ ζ^⅙ (M/M_min)^⅓
      M_min, M_min = 4.4e7 m22^−3/2 M☉ (Schive et al. 2014, arXiv 1407.7762, eqs. 6 and 7, ζ relative to z = 0). One
      heavier than the bound mass is stripped to it and grows, as mass × radius of a soliton is constant (their eq. 3).
      The rest of the bound mass is an NFW halo with that core.
    * Granules: a Gaussian random field of Σ in the host. Waves of a Maxwellian velocity distribution interfere, with
      ⟨ρρ'⟩ − ρ² = ρ² exp(−r²/λ²), λ = ħ/(m v) and v the velocity dispersion (of one axis) of the lens; in projection
      σ² = √π λ ∫ρ² dz with the same correlation. Waves longer than the image are left to the macro lens.

    Attributes:
        log10_m_uldm: prior of log10(m/eV). granules: whether there are any.
    """

    log10_m_uldm: Spec = field(default_factory=lambda: {"uniform": [-21.0, -19.0]})
    granules: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._log10_m_uldm = Prior.parse(self.log10_m_uldm, "FuzzyDarkMatter.log10_m_uldm")

    def particle(self) -> list[Truth]:
        seed = [Truth("granule_seed", "")] if self.granules else []
        return [Truth("log10_m_uldm", "log10(eV)", self.log10_m_uldm), *seed]

    def draw_particle(self, rng: Generator, n: int) -> dict[str, Array]:
        seed = {"granule_seed": rng.integers(2**31, size=(n, 1)).astype(float)} if self.granules else {}
        return {"log10_m_uldm": self._log10_m_uldm.sample(rng, (n, 1))} | seed

    def survival(self, mass: Array, particle: dict[str, Array], field: bool = False) -> Array:
        M0 = 1.6e10 * _m22(particle) ** (-4 / 3)
        return np.asarray((1 + (mass / M0) ** -1.1) ** -2.2)

    def mould(self, rows: dict[str, Array], particle: dict[str, Array], host: Host, rng: Generator) -> None:
        rows["r_core"], rows["soliton"] = self.soliton(rows, particle, host)

    def diffuse(self, truth: dict[str, Array], host: Host, main: MainHalo) -> list[Component]:
        return [self.granule_field(truth, host, main)] if self.granules else []

    def soliton(self, rows: dict[str, Array], particle: dict[str, Array], host: Host) -> tuple[Array, Array]:
        """Core radius [arcsec] and total mass [Msun] of each halo's soliton."""
        m22, a = _m22(particle), 1 / (1 + host.z_lens)
        zeta = (_zeta(host.z_lens, host.Om0, host.w0) / _zeta(0.0, host.Om0, host.w0)) ** (1 / 6)
        M_min = 4.4e7 * m22**-1.5
        r_c = 1.6 / m22 * a**0.5 / zeta * (rows["mass"] / 1e9) ** (-1 / 3)  # kpc
        whole = 0.25 * a**-0.5 * zeta * (rows["mass"] / M_min) ** (1 / 3) * M_min / halo.SOLITON_CORE
        mass = np.minimum(whole, rows["bound"])
        return r_c * whole / mass / host.distances.kpc_per_arcsec, mass

    def granule_field(self, truth: dict[str, Array], host: Host, main: MainHalo) -> Component:
        """Plane waves of κ whose sum is a Gaussian random field, each image's from its own `granule_seed`.

        The share of the variance at ln k is (kλ)²/2 exp(−(kλ)²/4), that of the deflection's ∝ exp(−(kλ)²/4): flat up
        to 1/λ. So one wave stands in each of `WAVES` equal steps of ln k, with the variance that is there.
        """
        d = host.distances
        length = self.coherence(truth, host)  # kpc
        sigma = np.sqrt(np.sqrt(np.pi) * length * main.column(host.theta_E * d.kpc_per_arcsec)) / d.sigma_cr
        length = length / d.kpc_per_arcsec
        longest = np.pi / host.half_width
        span = np.log(np.maximum(SHORTEST / (longest * length), 2.0))
        uniform = np.empty((len(host), 3, WAVES))
        for row, seed in zip(uniform, truth["granule_seed"][:, 0], strict=True):
            row[:] = rng.generator(int(seed), "granules").random((3, WAVES))
        within, direction, phase = uniform.transpose(1, 0, 2)
        k = longest * np.exp(span * (np.arange(WAVES) + within) / WAVES)
        share = (k * length) ** 2 / 2 * np.exp(-((k * length) ** 2) / 4) * span / WAVES
        params = {
            "kappa": sigma * np.sqrt(2 * share),
            "k_x": k * np.cos(2 * np.pi * direction),
            "k_y": k * np.sin(2 * np.pi * direction),
            "phase": 2 * np.pi * phase,
        }
        return Component("plane_wave", tensors(params))

    def coherence(self, truth: dict[str, Array], host: Host) -> Array:
        """ħ/(m v) [kpc], (n, 1), at the velocity dispersion of an isothermal lens, θ_E = 4π (v/c)² D_ls/D_s."""
        d = host.distances
        v = halo.C_KM_S * np.sqrt(np.radians(host.theta_E / 3600) * d.D_s / d.D_ls / (4 * np.pi))
        return np.asarray(HBAR_C / 10 ** truth["log10_m_uldm"] * halo.C_KM_S / v)


def _zeta(z: Any, Om0: float, w0: float) -> Any:
    """Overdensity at virialisation over the mean density (Bryan & Norman 1998), ζ of Schive et al. (2014)."""
    Om = Om0 * (1 + z) ** 3 / cosmology.expansion2(z, Om0, w0)
    return (18 * np.pi**2 + 82 * (Om - 1) - 39 * (Om - 1) ** 2) / Om


def _m22(particle: dict[str, Array]) -> Array:
    return np.asarray(10 ** (particle["log10_m_uldm"] + 22))
