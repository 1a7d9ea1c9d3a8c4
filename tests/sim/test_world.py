"""Scenes: seeds, populations, priors, and what a bad recipe says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hosts import make_host
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deeplense import config, rng
from deeplense.allow import allowed
from deeplense.errors import UserError
from deeplense.lensing import cosmology
from deeplense.sim.observe import observe_block
from deeplense.sim.priors import PRIORS, Prior
from deeplense.sim.sky.ellipticals import Ellipticals
from deeplense.sim.substructure import POPULATIONS, cdm
from deeplense.sim.world import World


def world(*overrides: str, recipe: str = "model_2") -> World:
    return World(config.load_recipe(recipe, overrides).simulation)


@pytest.mark.usefixtures("galaxies")
@pytest.mark.parametrize("name", config.shipped())
def test_every_shipped_recipe_makes_finite_images(name: str) -> None:
    w = World(config.load_recipe(name).simulation)
    block = observe_block(w, 0, "train", 0, 6)
    assert block.images.shape == (6, len(w.bands), w.size, w.size)
    assert bool(torch.isfinite(block.images).all())
    assert set(block.labels) == set(range(len(w.classes)))
    assert block.truth.shape == (6, len(w.truth))


@pytest.mark.parametrize("name", [n for n in config.shipped() if n.startswith("realistic/")])
def test_no_draw_of_a_shipped_recipe_is_refused_for_its_many_halos(name: str) -> None:
    w = World(config.load_recipe(name).simulation)
    sky = config.build(
        Ellipticals, {k: v for k, v in (w.simulation.sky or {}).items() if k in ("z_lens", "z_range")}, "x"
    )
    z = sky.z_range[1] if sky.z_lens is None else Prior.parse(sky.z_lens, "z_lens").bounds[1]
    area = (w.size * w.pixel_scale * cosmology.distances(z, 9.0).kpc_per_arcsec) ** 2
    for spec in w.simulation.classes.values():
        if "sigma_sub" in spec:
            assert spec["log10_m_host"] is None  # the lens galaxy's
            sigma_sub = Prior.parse(spec["sigma_sub"], "sigma_sub").bounds[1]
            population = cdm.ColdDarkMatter(mass=spec["mass"])
            density = population.number_density(np.array(sigma_sub), np.array(sky.host_range[1]), np.array(z))
            assert density * area < 0.9 * cdm.MOST


def test_any_number_of_scenes_holds_the_classes_equally_and_in_no_order() -> None:
    w = world()
    labels = np.concatenate([w.labels(0, "train", block) for block in range(7)])
    assert len(labels) == 7 * rng.BLOCK
    whole = labels[: len(labels) // 3 * 3].reshape(-1, 3)  # also over the seams of blocks
    np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(3), (len(whole), 1)))
    orders = np.unique(whole, axis=0, return_counts=True)[1]
    assert len(orders) == 6
    assert stats.chisquare(orders).pvalue > 0.001
    for other in (w.labels(1, "train", 0), w.labels(0, "val", 0), w.labels(0, "train", 3)):
        assert (other != w.labels(0, "train", 0)).any()


def test_a_shorter_block_begins_like_a_whole_one() -> None:
    w = world()
    whole, part = observe_block(w, 7, "train", 2), observe_block(w, 7, "train", 2, 50)
    assert torch.equal(whole.images[:50], part.images)
    np.testing.assert_array_equal(whole.truth[:50], part.truth)


def test_seed_stream_and_block_all_matter() -> None:
    w = world()
    images = [observe_block(w, *key, 3).images for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert not any(torch.equal(images[0], other) for other in images[1:])


def test_render_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    before = observe_block(w, 0, "train", 0, 30).images
    monkeypatch.setattr("deeplense.sim.image.PIXELS", 3 * 64 * 64)
    torch.testing.assert_close(observe_block(w, 0, "train", 0, 30).images, before, rtol=0, atol=1e-5)


def test_cdm_population() -> None:
    """Poisson number; power-law masses; radii uniform in 0.25-2″: all against their closed forms."""
    population, d = POPULATIONS["point_masses"](), cosmology.distances(0.5, 1.0)
    sub = population.sample(rng.generator(0, "t"), make_host(4000))
    component, mask = sub.mass[0], sub.mass[0].mask.numpy()
    numbers = sub.truth["n_sub"]
    assert numbers.mean() == pytest.approx(25, abs=5 * (25 / 4000) ** 0.5)
    assert numbers.var() == pytest.approx(25, rel=0.1)
    masses = component.params["theta_E2"].numpy()[mask] / d.theta_E2_per_mass
    cdf = lambda m: (1e6**-0.9 - m**-0.9) / (1e6**-0.9 - 1e10**-0.9)  # noqa: E731
    assert stats.kstest(masses, cdf).pvalue > 0.01
    assert np.median(masses) == pytest.approx(2.2e6, rel=0.03)
    r = np.hypot(component.params["center_x"].numpy()[mask], component.params["center_y"].numpy()[mask])
    assert stats.kstest(r, stats.uniform(0.25, 1.75).cdf).pvalue > 0.01
    np.testing.assert_allclose(
        10 ** sub.truth["log10_m_sub"],
        (component.params["theta_E2"].numpy() * mask).sum(1) / d.theta_E2_per_mass,
        rtol=1e-9,
    )


def test_mean_cdm_mass_of_both_slopes() -> None:
    """3.4e8 Msun with the right slope, 3.8e10 with the legacy one (25 halos)."""
    for slope, expected in ((-1.9, 3.4e8), (-0.9, 3.8e10)):
        masses = Prior.parse({"power_law": [1e6, 1e10, slope]}, "m").sample(rng.generator(0, "t"), (400000,))
        assert 25 * masses.mean() == pytest.approx(expected, rel=0.06)


def test_vortex_length_and_legacy_points() -> None:
    closed = POPULATIONS["vortex"]().sample(rng.generator(0, "t"), make_host(50))
    points = POPULATIONS["vortex"](points=100).sample(rng.generator(0, "t"), make_host(50))
    np.testing.assert_allclose(
        closed.mass[0].params["half_length"].numpy()[:, 0],
        0.06e-22 / (2 * 10 ** closed.truth["log10_m_axion"]),
    )
    np.testing.assert_array_equal(closed.truth["log10_m_axion"], points.truth["log10_m_axion"])
    torch.testing.assert_close(points.mass[0].params["theta_E2"].sum(1), closed.mass[0].params["theta_E2"][:, 0])
    assert points.mass[0].params["center_x"].shape == (50, 100)


def test_legacy_effective_einstein_radius() -> None:
    """Models II and III: 0.813″ where 1.28″ was meant."""
    w = world(recipe="legacy/model_2")
    scene = w.scenes(0, "t", 0)[0]
    theta_E = float(scene.mass[0].params["theta_E"][0, 0]) * float(scene.deflection_scale[0])
    assert theta_E == pytest.approx(0.813, abs=5e-4)


def test_each_fault_can_be_switched_off_alone() -> None:
    legacy = world(recipe="legacy/model_2")
    assert world("simulation.z_source_convention=null", recipe="legacy/model_2").deflection_scale == 1
    right = world("simulation.cosmology.distances=angular_diameter", recipe="legacy/model_2")
    strength = [w.distances_of(w.scenes(0, "t", 0)[0])[0].theta_E2_per_mass for w in (legacy, right)]
    assert strength[0] / strength[1] == pytest.approx(0.593, abs=1e-3)
    fixed = world("simulation.classes.cdm.number={poisson: 25}", recipe="legacy/model_2").scenes(0, "t", 0)[1]
    assert len(set(fixed.truth["n_sub"].tolist())) > 5


@pytest.mark.parametrize("kind", PRIORS)
@settings(max_examples=10, deadline=None)
@given(a=st.floats(0.1, 5), gap=st.floats(0.1, 5))
def test_priors_stay_in_range_and_repeat(kind: str, a: float, gap: float) -> None:
    values = {"uniform": [a, a + gap], "log_uniform": [a, a + gap], "power_law": [a, a + gap, -1.9],
              "normal": [a, gap], "truncated_normal": [a, gap, a, a + gap], "poisson": [a],
              "choice": [a, a + gap]}[kind]  # fmt: skip
    prior = Prior.parse({kind: values}, "here")
    draws = prior.sample(rng.generator(0, "p"), (100,))
    np.testing.assert_array_equal(draws, prior.sample(rng.generator(0, "p"), (100,)))
    if kind in ("uniform", "log_uniform", "power_law", "truncated_normal", "choice"):
        assert draws.min() >= a * (1 - 1e-9)
        assert draws.max() <= (a + gap) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("simulation.source.center_x={uniform: [0.35, -0.35]}", "swap them"),
        ("simulation.source.center_x={unifrom: [0, 1]}", "did you mean 'uniform'"),
        ("simulation.source.center_x={uniform: [0]}", "takes \\[low, high\\]"),
        ("simulation.instrument=euclid", "did you mean 'euclid_vis'"),
        ("simulation.z_source=0.3", "z_lens"),
        ("simulation.supersampling=99", r"supersampling is 99, but should be int in \[1, 9\] \| one of adaptive"),
        ("simulation.size=2", r"size is 2; it must lie in \[8, 8192\]"),
        ("simulation.classes={}", "no class"),
        ("simulation.classes.cdm.population=points", "point_masses"),
        ("simulation.classes.cdm.numbr=3", "did you mean 'number'"),
        ("simulation.classes.cdm.number={poisson: -3}", "negative"),
        ("simulation.classes.axion.points=1", "2 or more"),
        ("simulation.lens.theta_E=1.0", "not both"),
        ("simulation.source.amplitude=1.0", "not both"),
        ("simulation.classes.cdm.population=nowhere.at_all:Thing", "add --allow nowhere.at_all"),
    ],
)
def test_bad_recipes(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        world(override)


def test_users_own_population(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("my_halos")
    module.Halos = POPULATIONS["point_masses"]
    monkeypatch.setitem(sys.modules, "my_halos", module)
    with allowed("my_halos"):
        w = world("simulation.classes.cdm={population: 'my_halos:Halos', number: 3}")
    assert set(w.scenes(0, "t", 0)[1].truth["n_sub"].tolist()) == {3.0}
