"""Lenses and sources drawn together: every law against its closed form or another code, and bad skies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from numpy.random import Generator
from scipy import stats

from deeplense import config, rng
from deeplense.allow import allowed
from deeplense.data import generate
from deeplense.errors import UserError
from deeplense.sim.sky import Setting, galaxies
from deeplense.sim.sky.ellipticals import Ellipticals
from deeplense.sim.substructure import Truth
from deeplense.sim.world import World

COSMOLOGY = FlatLambdaCDM(70, 0.3)
SETTING = Setting(70.0, 0.3, "VIS")
N = 8192
UNWEIGHED: dict[str, Any] = {"z_source": 7.9}  # behind every lens, and a prior is not weighed by the cross-section


def draw(n: int = N, setting: Setting = SETTING, **changes: Any) -> dict[str, Any]:
    generator = rng.generator(1, "sky")
    lens = {f"lens.{k}": generator.normal(0, 0.1, n) for k in ("e1", "e2", "center_x", "center_y")}
    return lens | Ellipticals(**changes).draw(generator, lens, setting)


def fits(values: Any, grid: Any, cumulative: Any) -> bool:
    found = stats.kstest(values, lambda x: np.interp(x, grid, cumulative / cumulative[-1]))
    return bool(found.pvalue > 1e-3)


def test_velocity_dispersions_follow_the_velocity_function_times_the_cross_section() -> None:
    grid = np.linspace(100, 500, 20_000)
    density = (grid / 161) ** (2.32 - 1) * np.exp(-((grid / 161) ** 2.67)) * grid**4
    sigma = draw()["sigma_v"]
    assert fits(sigma, grid, np.cumsum(density))
    assert (sigma > 400).mean() < 0.002  # by its tail alone


def test_lenses_are_as_many_in_every_comoving_volume() -> None:
    grid = np.linspace(0.05, 1.5, 2000)
    volume = COSMOLOGY.comoving_volume(grid).value
    assert fits(draw(**UNWEIGHED)["z_lens"], grid, volume - volume[0])


@pytest.mark.parametrize("slope", [0.3, 0.0, -0.2])
def test_sources_are_counted_as_ten_to_the_slope_times_the_magnitude(slope: float) -> None:
    grid = np.linspace(21, 26, 2000)
    assert fits(
        draw(magnitudes=[21.0, 26.0], slope=slope, **UNWEIGHED)["source.magnitude"],
        grid,
        np.cumsum(10 ** (slope * grid)),
    )


def test_einstein_radii_are_those_of_isothermal_lenses_in_astropys_cosmology() -> None:
    d = draw(64)
    near, far = (COSMOLOGY.comoving_transverse_distance(d[k]) for k in ("z_lens", "z_source"))
    ratio = (far - near) / far  # in a flat universe
    expected = 4 * np.pi * (d["sigma_v"] / 299792.458) ** 2 * ratio.value * 180 * 3600 / np.pi
    np.testing.assert_allclose(d["lens.theta_E"], expected, rtol=1e-6)


def test_pairs_are_weighed_by_their_cross_section() -> None:
    """Against importance weights of pairs that are not: the mean redshifts, to three standard errors."""
    d, generator = draw(magnitudes=[23.0, 26.0]), np.random.default_rng(5)
    z = draw(magnitudes=[23.0, 26.0], **UNWEIGHED)
    z_lens, m = z["z_lens"], z["source.magnitude"]
    z_source = generator.gamma(3.0, 0.0417 * m - 0.744)
    far, near = (COSMOLOGY.comoving_distance(x).value for x in (z_source, z_lens))
    weight = np.maximum(1 - near / far, 0) ** 2
    for name, values in (("z_lens", z_lens), ("z_source", z_source), ("source.magnitude", m)):
        expected = np.average(values, weights=weight)
        error = d[name].std() * np.sqrt(1 / N + (weight**2).sum() / weight.sum() ** 2)
        assert abs(d[name].mean() - expected) < 3.5 * error, name


def test_early_types_have_the_correlations_of_the_fundamental_plane() -> None:
    generator = rng.generator(0, "plane")
    v = generator.normal(galaxies.V_STAR, galaxies.V_SPREAD, 100_000)
    m, size = galaxies.early_type(generator, 10**v)
    found = np.corrcoef([np.log10(size), m, v])
    np.testing.assert_allclose([found[0, 1], found[1, 2], found[0, 2]], [-0.882, -0.780, 0.543], atol=0.01)
    np.testing.assert_allclose([m.std(), np.log10(size).std()], [0.841, 0.263], rtol=0.02)


def test_an_old_galaxy_has_its_rest_frame_magnitude_where_the_band_is_its_r() -> None:
    z = np.array([0.05, 0.3, 0.6])
    found = [galaxies.early_type_magnitude(-22.0, zk, 0.623 * (1 + zk), 70, 0.3) for zk in z]
    expected = -22 - 0.85 * z + COSMOLOGY.distmod(z).value - 2.5 * np.log10(1 + z)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_hosts_are_virialised_halos_with_scatter_and_no_clusters() -> None:
    d = draw(sigma_v=200.0, z_lens=0.5, host_range=[11.0, 16.0])
    mass = 10 ** d["log10_m_host"].mean()
    assert 1082.9 * (0.7 * COSMOLOGY.efunc(0.5) * mass / 1e15) ** 0.3361 == pytest.approx(200, rel=0.01)
    assert d["log10_m_host"].std() == pytest.approx(0.3, rel=0.03)
    cut = draw()["log10_m_host"]
    assert 11.5 <= cut.min() < 12.5
    assert 13.55 < cut.max() <= 13.6


def test_sources_lie_anywhere_in_a_disc_of_the_einstein_radius_around_the_lens() -> None:
    d = draw(reach=1.2)
    x, y = (d[f"source.{k}"] - d[f"lens.{k}"] for k in ("center_x", "center_y"))
    assert stats.kstest((np.hypot(x, y) / d["lens.theta_E"] / 1.2) ** 2, "uniform").pvalue > 1e-3
    assert stats.kstest(np.arctan2(y, x) / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def test_light_is_aligned_with_the_mass_to_the_observed_scatter() -> None:
    d = draw()
    mass, light = (d[f"{k}.e1"] + 1j * d[f"{k}.e2"] for k in ("lens", "lens_light"))
    clear = np.abs(mass) > 0.1  # of a rounder one the angle turns when q passes 1
    turn = np.rad2deg(np.angle(light[clear] / mass[clear]) / 2)
    assert np.median(np.abs(turn)) / 0.6745 == pytest.approx(10, rel=0.1)
    q_mass, q_light = ((1 - np.abs(e)) / (1 + np.abs(e)) for e in (mass, light))
    assert (q_light / q_mass)[clear].mean() == pytest.approx(1, abs=0.02)
    assert (q_light / q_mass)[clear].std() == pytest.approx(0.11, rel=0.15)
    for k in ("center_x", "center_y"):
        np.testing.assert_array_equal(d[f"lens_light.{k}"], d[f"lens.{k}"])


def test_the_size_of_a_source_follows_its_luminosity_and_redshift() -> None:
    d = draw()
    z = d["z_source"]
    kpc = d["source.R_sersic"] / COSMOLOGY.arcsec_per_kpc_proper(z).value
    absolute = d["source.magnitude"] - COSMOLOGY.distmod(z).value + 2.5 * np.log10(1 + z)
    left = np.log10(kpc) - np.log10(6.9 * (1 + z) ** -1.2) + 0.4 * 0.27 * (absolute + 21)
    assert left.mean() == pytest.approx(0, abs=0.01)
    assert left.std() == pytest.approx(0.2, rel=0.05)


def theta_E(seed: int = 0, **sky: str) -> Any:
    changes = ["simulation.classes={no_sub: {population: none}}", *(f"simulation.sky.{k}={v}" for k, v in sky.items())]
    (scene,) = World(config.load_recipe("realistic/hst", changes).simulation).scenes(seed, "train", 0)
    return scene.truth["lens.theta_E"].numpy()


def test_recipes_of_one_seed_show_the_same_lenses_only_where_they_name_the_same_field() -> None:
    np.testing.assert_array_equal(theta_E(), theta_E(field="hst"))
    assert not np.isin(theta_E(), theta_E(field="elsewhere")).any()
    names = [name for name in config.shipped() if name.startswith("realistic/")]
    fields = [config.load_recipe(name).simulation.sky["field"] for name in names]  # type: ignore[index]
    assert len(set(fields)) == len(names) == 6


@dataclass
class Twins:
    """A user's own: lenses that are all alike."""

    size: float = 1.25

    def truth(self) -> list[Truth]:
        return [Truth("lens.theta_E", "arcsec"), Truth("z_source", ""), Truth("twin", ""), Truth("lens_light.e1", "")]

    def draw(self, rng: Generator, drawn: Any, setting: Setting) -> dict[str, Any]:
        n = len(drawn["lens.e1"])
        return {"lens.theta_E": np.full(n, self.size), "z_source": np.full(n, 2.0), "twin": rng.random(n)}


def test_a_users_own_sky_is_one_class() -> None:
    sky = f"{{population: '{__name__}:Twins', size: 0.9}}"
    changes = [f"simulation.sky={sky}", "simulation.lens.theta_E=null", "simulation.lens.mass=null"]
    with allowed(__name__):
        w = World(config.load_recipe("model_2", changes).simulation)
    (scene, *_) = w.scenes(0, "train", 0)
    assert set(scene.truth["lens.theta_E"].tolist()) == {0.9}
    assert {"twin", "lens.theta_E", "z_source"} <= {t.name for t in w.truth}
    assert "lens_light.e1" not in {t.name for t in w.truth}  # the recipe has no lens light
    assert generate._own_modules(config.load_recipe("model_2", changes)) == (__name__,)  # which workers must trust
    with pytest.raises(UserError, match="add --allow"):
        World(config.load_recipe("model_2", ["simulation.sky={population: 'not.there:Twins'}"]).simulation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sky={}", "simulation.sky needs a 'population'"),
        ("sky={population: spirals}", "no sky 'spirals'"),
        ("sky.slop=1", "simulation.sky has no key 'slop'; did you mean 'slope'"),
        ("sky.slope=5", r"simulation.sky.slope is 5.*it must lie in \[-2, 2\]"),
        ("sky.magnitudes=[26, 20]", r"magnitudes is \[26.0, 20.0\]; give \[low, high\] with low < high"),
        ("sky.z_range=[0.5]", r"give \[low, high\] with low < high"),
        ("sky.sigma_v={uniform: [0, 200]}", "sigma_v reaches 0; it must be above 0"),
        ("sky.sigma_v={unifrom: [1, 2]}", "did you mean 'uniform'"),
        ("sky.field=3", "simulation.sky.field: 3 is no name"),
        ("sky.z_source=0.05", "hardly any source lies behind its lens"),
        ("lens.theta_E=1.0", "simulation.lens.theta_E: simulation.sky draws theta_E; leave it out"),
        ("source.magnitude=23", "simulation.source.magnitude: simulation.sky draws the magnitude; leave it out"),
        ("lens_light.amplitude=23", "simulation.lens_light.amplitude: simulation.sky draws the magnitude"),
        ("sky=null", "simulation.lens: give either theta_E or mass"),
    ],
)
def test_a_bad_sky_is_one_line(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        World(config.load_recipe("realistic/hst", [f"simulation.{change}"]).simulation)
    assert "\n" not in str(found.value)


def test_a_band_of_no_known_wavelength_is_named() -> None:
    with pytest.raises(UserError, match="no wavelength of band 'F999'"):
        draw(8, Setting(70.0, 0.3, "F999"))


def test_a_host_that_nobody_draws_is_one_line() -> None:
    changes = ["simulation.classes={cdm: {population: cdm, log10_m_host: null}}"]
    w = World(config.load_recipe("model_2", changes).simulation)
    with pytest.raises(UserError, match=r"log10_m_host is null, and simulation\.sky draws none; give a prior"):
        w.scenes(0, "train", 0)
