"""Halo masses ⇄ lensing parameters, against lenstronomy's cosmology, densities in three dimensions, and Gauss's law."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import constants
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.Util import constants as theirs
from scipy.integrate import quad

from deeplense.lensing import cosmology, halo

D = cosmology.distances(0.5, 1.5)
GM = np.array([1.0, constants.GM_sun.si.value / (theirs.G * theirs.M_sun)])
M200, C = np.array([1e6, 1e8, 3e9, 1e13]), np.array([18.0, 12.0, 9.0, 4.0])


def test_critical_density() -> None:
    z = np.array([0.0, 0.5, 2.0])
    expected = FlatLambdaCDM(H0=70, Om0=0.3).critical_density(z).to("Msun/Mpc3").value
    np.testing.assert_allclose(halo.rho_crit(z), expected, rtol=1e-10)


def test_nfw_parameters_against_lenstronomy() -> None:
    """Its GM_sun is 2.8e-4 larger than the IAU's, which scales alpha_Rs."""
    R_s, alpha_Rs = halo.nfw_parameters(M200, C, 0.5, D)
    oracle = LensCosmo(0.5, 1.5, FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05))
    for i in range(len(M200)):
        np.testing.assert_allclose((R_s[i], alpha_Rs[i]), oracle.nfw_physical2angle(M200[i], C[i]) * GM, rtol=2e-6)


def test_other_cosmology_and_broadcasting() -> None:
    d = cosmology.distances(0.3, 2.0, H0=67.0, Om0=0.32)
    R_s, alpha_Rs = halo.nfw_parameters(M200[:, None], C[None], 0.3, d, H0=67.0, Om0=0.32)
    assert R_s.shape == alpha_Rs.shape == (4, 4)
    oracle = LensCosmo(0.3, 2.0, FlatLambdaCDM(H0=67, Om0=0.32, Ob0=0.05))
    np.testing.assert_allclose((R_s[1, 2], alpha_Rs[1, 2]), oracle.nfw_physical2angle(1e8, 9.0) * GM, rtol=2e-6)


def test_there_and_back() -> None:
    c = np.array([1.5, 4.0, 10.0, 60.0])
    mass, concentration = halo.nfw_mass(*halo.nfw_parameters(M200, c, 0.5, D), 0.5, D)
    np.testing.assert_allclose(mass, M200, rtol=1e-10)
    np.testing.assert_allclose(concentration, c, rtol=1e-10)


@pytest.mark.parametrize("tau", [0.1, 0.999, 1.0, 7.0, 100.0])
def test_truncated_mass_is_the_integral_of_the_density(tau: float) -> None:
    def density(x: float) -> float:
        return x / (1 + x) ** 2 * tau**2 / (x * x + tau * tau)  # times x²

    mass = sum(quad(density, a, b, epsrel=1e-11)[0] for a, b in [(0, tau), (tau, 10 * tau), (10 * tau, np.inf)])
    assert halo.tnfw_total_mass(2.0, tau) == pytest.approx(2 * mass, rel=1e-9)


def test_a_truncated_halo_deflects_from_afar_by_its_total_mass() -> None:
    R_s, alpha_Rs = halo.nfw_parameters(M200, C, 0.5, D)
    params = {"R_s": R_s, "alpha_Rs": alpha_Rs, "r_trunc": 3 * R_s}
    seen = halo.projected_mass("tnfw", 1e5 * R_s, params, D)
    np.testing.assert_allclose(seen, halo.tnfw_total_mass(halo.scale_mass(M200, C), 3.0), rtol=1e-8)


def test_projected_nfw_mass_is_the_mass_in_the_cylinder() -> None:
    """By quadrature over spheres of the density that M200 and c define."""
    R_s, alpha_Rs = halo.nfw_parameters(1e9, 10.0, 0.5, D)
    m_s, R = halo.scale_mass(1e9, 10.0), 2.5

    def sphere(r: float) -> float:
        return r / (1 + r) ** 2

    outside = quad(lambda u: sphere(R / u) * (1 - np.sqrt(1 - u * u)) * R / u**2, 0, 1)[0]
    expected = m_s * (quad(sphere, 0, R)[0] + outside)
    got = halo.projected_mass("nfw", R * R_s, {"R_s": R_s, "alpha_Rs": alpha_Rs}, D)
    assert float(got) == pytest.approx(float(expected), rel=1e-8)


def test_projected_mass_needs_a_circle() -> None:
    with pytest.raises(ValueError, match="sie is not circular"):
        halo.projected_mass("sie", 1.0, {}, D)


def test_soliton_mass_and_core() -> None:
    """κ_0 against the line-of-sight integral of the density, whose mass is given, in physical units."""
    mass, theta_c = 3e8, 0.05
    a, r_c = 2 ** (1 / 8) - 1, theta_c * D.kpc_per_arcsec
    volume = quad(lambda r: 4 * np.pi * r * r * (1 + a * r * r) ** -8, 0, np.inf)[0] * r_c**3
    core = quad(lambda r: 4 * np.pi * r * r * (1 + a * r * r) ** -8, 0, 1)[0] * r_c**3
    column = 2 * quad(lambda z: (1 + a * z * z) ** -8, 0, np.inf)[0] * r_c
    kappa_0 = halo.soliton_kappa_0(mass, theta_c, D)
    assert float(kappa_0) == pytest.approx(mass / volume * column / D.sigma_cr, rel=1e-8)
    assert pytest.approx(core / volume, rel=1e-5) == halo.SOLITON_CORE
    far = halo.projected_mass("soliton", 1e3, {"kappa_0": kappa_0, "theta_c": theta_c}, D)
    assert float(far) == pytest.approx(mass, rel=1e-6)
