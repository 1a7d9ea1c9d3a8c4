"""Distances against the table of Alexander et al.'s set-up and against astropy; θ_E ⇄ mass."""

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatwCDM
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense.lensing import cosmology, halo
from deeplense.lensing.structure import Structure
from deeplense.sim import reference
from deeplense.sim.world import World


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


@pytest.mark.parametrize("w0", [-1.3, -1.0, -0.7])
def test_dark_energy_is_astropys(w0: float) -> None:
    theirs = FlatwCDM(H0=67, Om0=0.32, w0=w0, Ob0=0.05)
    d = cosmology.distances(0.5, 1.5, H0=67.0, Om0=0.32, w0=w0)
    expected = (
        theirs.angular_diameter_distance(0.5).value,
        theirs.angular_diameter_distance(1.5).value,
        theirs.angular_diameter_distance(0.5, 1.5).value,
    )
    np.testing.assert_allclose((d.D_l, d.D_s, d.D_ls), expected, rtol=1e-12)
    z = np.array([0.1, 0.5, 1.5, 6.0])
    chi = cosmology.comoving_distance(z, 67.0, 0.32, w0)
    np.testing.assert_allclose(chi, theirs.comoving_distance(z).value, rtol=1e-9)
    np.testing.assert_allclose(cosmology.redshift_at(chi, 67.0, 0.32, w0), z, rtol=1e-8)
    np.testing.assert_allclose(cosmology.expansion2(z, 0.32, w0), theirs.efunc(z) ** 2, rtol=1e-12)
    rho = theirs.critical_density(z).to("Msun / Mpc3").value
    np.testing.assert_allclose(halo.rho_crit(z, 67.0, 0.32, w0), rho, rtol=1e-6)


@pytest.mark.parametrize("w0", [-1.3, -1.0, -0.7])
def test_growth_solves_its_equation(w0: float) -> None:
    """D'' + (2 + d ln H/d ln a) D' = 3/2 Ω_m(a) D in ln a, by central differences."""
    structure = Structure(Om0=0.3, w0=w0)
    ln_a, h = np.log(1 / (1 + np.array([0.1, 0.5, 1.0, 3.0]))), 1e-3
    D = [structure.growth(np.exp(-(ln_a + k * h)) - 1) for k in (-1, 0, 1)]
    E2 = [cosmology.expansion2(np.exp(-(ln_a + k * h)) - 1, 0.3, w0) for k in (-1, 0, 1)]
    first, second = (D[2] - D[0]) / (2 * h), (D[2] - 2 * D[1] + D[0]) / h**2
    drag = 2 + (np.log(E2[2]) - np.log(E2[0])) / (4 * h)
    np.testing.assert_allclose(second + drag * first, 1.5 * 0.3 * np.exp(-3 * ln_a) / E2[1] * D[1], rtol=1e-5)


def test_a_recipes_dark_energy_is_that_of_its_distances_delays_and_halos() -> None:
    few = "simulation.classes={cdm: {population: cdm, mass: [1e9, 1e10], line_of_sight: 1.0, multi_plane: true}}"
    world = World("realistic/hst", [few, "simulation.cosmology.w0=-0.6", "simulation.size=32"])
    one = world.draw(1)
    scene, theirs = one.scenes[0], FlatwCDM(H0=70, Om0=0.3, w0=-0.6)
    assert scene.planes is not None
    z_l, z_s = (float(scene.truth[k][0]) for k in ("z_lens", "z_source"))
    assert world.distances_of(scene)[0].D_ls == pytest.approx(theirs.angular_diameter_distance(z_l, z_s).value)
    chi, chi_s = scene.planes.distances()
    np.testing.assert_allclose(chi[0], theirs.comoving_distance(scene.planes.z[0].numpy()).value, rtol=1e-8)
    assert float(chi_s) == pytest.approx(theirs.comoving_distance(z_s).value, rel=1e-8)
    sigma = float(scene.truth["sigma_v"][0])  # θ_E = 4π (σ/c)² D_ls/D_s
    D_s = theirs.angular_diameter_distance(z_s).value
    radius = 4 * np.pi * (sigma / halo.C_KM_S) ** 2 * theirs.angular_diameter_distance(z_l, z_s).value / D_s
    assert float(scene.truth["lens.theta_E"][0]) == pytest.approx(np.degrees(radius) * 3600, rel=1e-6)
    model, kwargs = reference._lens_model(scene, 0)
    x, y = (torch.tensor([v], dtype=torch.float64) for v in ([0.7, -0.9], [0.4, 0.8]))
    expected = model.alpha(x[0].numpy(), y[0].numpy(), kwargs)
    for ours, other in zip(one.deflection(x, y), expected, strict=True):
        np.testing.assert_allclose(ours[0, 0], other, atol=1e-7)


def test_of_angles_drawn_directly_H0_changes_the_delays_alone() -> None:
    section = {"size": 24, "lens": {"theta_E": 1.0}, "source": {"amplitude": 1.0, "center_x": 0.2}}
    near, far = (World({"simulation": section}, [f"simulation.cosmology.H0={H0}"]).draw(1) for H0 in (70, 35))
    assert torch.equal(near.image(), far.image())
    torch.testing.assert_close(far.time_delay(), 2 * near.time_delay(), rtol=1e-9, atol=0)
