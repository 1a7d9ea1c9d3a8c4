"""Distances against the table of Alexander et al.'s set-up and against astropy; θ_E ⇄ mass."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.lensing import cosmology


def test_published_numbers() -> None:
    d = cosmology.distances(0.5, 1.0)
    assert (round(d.D_l, 1), round(d.D_s, 1), round(d.D_ls, 1)) == (1259.1, 1651.9, 707.6)
    assert d.sigma_cr == pytest.approx(3.083e9, rel=1e-3)
    assert d.kpc_per_arcsec == pytest.approx(6.104, rel=1e-4)


@pytest.mark.parametrize(
    ("mass", "right", "legacy"),
    [(1e12, 1.66452, 1.28149), (3e10, 0.28830, 0.22196), (3e8, 0.02883, 0.02220), (1e6, 0.00166, 0.00128)],
)
def test_einstein_radius_of_a_mass(mass: float, right: float, legacy: float) -> None:
    assert cosmology.theta_E(mass, cosmology.distances(0.5, 1.0)) == pytest.approx(right, abs=6e-6)
    assert cosmology.theta_E(mass, cosmology.luminosity_distances(0.5, 1.0)) == pytest.approx(legacy, abs=6e-6)


@settings(max_examples=20, deadline=None)
@given(z=st.floats(0.05, 1.5), gap=st.floats(0.05, 2), log_mass=st.floats(6, 13))
def test_mass_and_radius_are_inverse_and_fill_the_critical_density(z: float, gap: float, log_mass: float) -> None:
    d = cosmology.distances(z, z + gap)
    radius = cosmology.theta_E(10**log_mass, d)
    assert cosmology.mass(radius, d) == pytest.approx(10**log_mass, rel=1e-10)
    # the mean surface density inside θ_E is critical
    area = np.pi * (radius * d.kpc_per_arcsec) ** 2
    assert 10**log_mass / area == pytest.approx(d.sigma_cr, rel=1e-10)


def test_source_in_front_of_the_lens() -> None:
    with pytest.raises(ValueError, match="z_lens < z_source"):
        cosmology.distances(1.0, 0.5)
