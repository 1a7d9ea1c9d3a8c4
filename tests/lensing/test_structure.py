"""Structure against definitions and closed forms; the docstring states the agreement with colossus."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import hyp2f1

from deeplense.lensing import cosmology
from deeplense.lensing.structure import DELTA_C, Structure

S = Structure()


def test_sigma_is_normalised_and_consistent() -> None:
    assert float(S.sigma_R(8 / 0.7)) == pytest.approx(0.82, rel=1e-12)
    mass = 4 / 3 * np.pi * S.rho_m * (8 / 0.7) ** 3
    assert float(S.sigma(mass)) == pytest.approx(0.82, rel=1e-5)
    assert S.rho_m == pytest.approx(0.3 * 1.3599e11, rel=1e-3)  # 2.7754e11 h² Ω_m
    sigma = S.sigma(np.geomspace(1e6, 1e15, 40))
    assert (np.diff(sigma) < 0).all()


def test_transfer_function() -> None:
    """One at large scales; ln k/k² at small ones; BBKS with Sugiyama's Γ, another fit, within 8 %."""
    assert S.transfer(np.array([1e-6]))[0] == pytest.approx(1, abs=1e-4)
    k = np.array([0.01, 0.1, 1.0, 10.0]) * 0.7
    gamma = 0.3 * 0.7 * np.exp(-0.05 * (1 + np.sqrt(1.4) / 0.3))
    q = k / 0.7 / gamma
    bbks = (
        np.log(1 + 2.34 * q)
        / (2.34 * q)
        * (1 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4) ** -0.25
    )
    np.testing.assert_allclose(S.transfer(k), bbks, rtol=0.08)


def test_growth() -> None:
    assert float(S.growth(0.0)) == pytest.approx(1, rel=1e-14)
    z = np.array([0.3, 1.0, 4.0])
    np.testing.assert_allclose(Structure(Om0=1.0).growth(z), 1 / (1 + z), rtol=1e-12)  # Einstein and de Sitter
    # Heath (1977): D ∝ H(a) ∫ da/(a H)³
    for one in z:

        def integral(a: float) -> float:
            def H(b: float) -> float:
                return float(np.sqrt(0.3 / b**3 + 0.7))

            return H(a) * quad(lambda b: (b * H(b)) ** -3 if b > 0 else 0.0, 0, a)[0]

        assert float(S.growth(one)) == pytest.approx(integral(1 / (1 + one)) / integral(1.0), rel=1e-6)


def test_all_matter_is_in_halos() -> None:
    """f(ν) integrates to one over ln ν, whatever the spectrum; the part in the table's range is nearly all of it."""
    log = np.linspace(np.log(1.1e4), np.log(9e15), 4000)
    mass = np.exp(log)
    share = np.trapezoid(S.mass_function(mass, 0.0) * mass**2, log) / S.rho_m
    nu = DELTA_C / S.sigma(1.1e4)

    def f(v: float) -> float:
        x = 0.707 * v * v
        return 0.3222 * np.sqrt(2 * 0.707 / np.pi) * (1 + x**-0.3) * np.exp(-x / 2)

    missing = quad(f, 0, float(nu))[0]
    assert share + missing == pytest.approx(1, abs=2e-3)
    assert 0.6 < share < 0.95


def test_mass_function_is_the_value_published_for_small_halos() -> None:
    """Slope near −1.9, a few halos above 10⁸ M☉ a Mpc³ and e-fold, fewer earlier."""
    slope = np.diff(np.log(S.mass_function(np.array([1e7, 1e9]), 0.5)))[0] / np.log(100)
    assert slope == pytest.approx(-1.91, abs=0.02)
    assert S.mass_function(1e8, 0.5) * 1e8 == pytest.approx(7.43, rel=0.01)  # colossus: 7.43
    assert (np.diff(S.mass_function(1e12, np.array([0.5, 2.0, 5.0]))) < 0).all()


def test_comoving_distances() -> None:
    z = np.array([0.01, 0.5, 1.5, 6.0])
    d = cosmology.distances(0.5, 1.5)
    chi = cosmology.comoving_distance(z)
    assert chi[1] == pytest.approx(d.D_l * 1.5, rel=1e-9)
    assert (chi[2] - chi[1]) / 2.5 == pytest.approx(d.D_ls, rel=1e-9)
    np.testing.assert_allclose(cosmology.redshift_at(chi), z, rtol=1e-8)


def test_growth_of_a_flat_universe_is_a_hypergeometric_function() -> None:
    z = np.geomspace(1e-4, 20, 50)
    for Om0 in (0.25, 0.3):
        exact = [a * hyp2f1(1 / 3, 1, 11 / 6, -(a**3) * (1 - Om0) / Om0) for a in (1 / (1 + z), 1.0)]
        np.testing.assert_allclose(Structure(Om0=Om0).growth(z), exact[0] / exact[1], rtol=1e-9)
