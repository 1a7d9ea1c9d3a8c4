"""Lenses in one's hands: the scenes are those of `simulate`, the maps are lenstronomy's and agree with each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel
from test_multi_plane import PLANES, world_of

import deeplense
from deeplense import UserError, config
from deeplense.lensing.raytrace import Component
from deeplense.sim import reference
from deeplense.sim.lenses import Lenses
from deeplense.sim.world import World

LIGHT_HALOS = "simulation.classes={no_sub: {population: none}, cdm: {population: cdm, mass: [1e8, 1e10]}}"


@pytest.fixture(scope="module")
def lenses() -> Lenses:
    return World("realistic/hst", [LIGHT_HALOS]).draw(6, seed=3)


def test_draws_are_the_images_that_simulate_stores(tmp_path: Path) -> None:
    folder = deeplense.simulate("model_2", tmp_path / "data", splits="val=9", seed=4, workers=1)
    stored = deeplense.Dataset(folder).split("val")
    drawn = deeplense.World("model_2").draw(9, seed=4, stream="val")
    assert torch.equal(drawn.noisy(), stored.images(np.arange(9)))
    assert drawn.classes == [stored.manifest.classes[k] for k in stored.labels]
    names = [p.name for p in stored.manifest.parameters]
    np.testing.assert_array_equal(np.stack([drawn.truth[k] for k in names], 1), stored.params)


def test_a_world_is_made_of_anything_that_says_a_recipe(tmp_path: Path) -> None:
    recipe = config.load_recipe("model_2")
    (tmp_path / "mine.yaml").write_text("base: model_2\n")
    expected = World(recipe.simulation).draw(3).image()
    for said in ("model_2", tmp_path / "mine.yaml", {"base": "model_2"}, recipe):
        assert torch.equal(World(said).draw(3).image(), expected)
    for said in ("model_2", recipe, recipe.simulation):
        assert World(said, ["simulation.size=20"]).size == 20
    with pytest.raises(UserError, match="no recipe 'model_9'"):
        World("model_9")
    with pytest.raises(UserError, match="0 lenses cannot be drawn"):
        World("model_2").draw(0)


def test_more_lenses_than_a_block_holds() -> None:
    drawn = World("model_1", ["simulation.size=8"]).draw(300)
    assert drawn.index.tolist() == list(range(300))
    assert torch.equal(drawn[257:259].image(), drawn.image()[257:259])


def test_one_of_many_is_itself(lenses: Lenses) -> None:
    every = lenses.kappa()
    assert every.shape == (6, 64, 64)
    assert lenses[:4].classes == lenses.classes[:4]
    for k, one in enumerate(lenses):
        torch.testing.assert_close(one.kappa()[0], every[k], rtol=1e-9, atol=1e-12)
    assert lenses[-1].index.tolist() == [5]
    with pytest.raises(IndexError):
        lenses[6]


def test_each_lens_has_its_own_grid(lenses: Lenses) -> None:
    x, y = torch.rand(2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = lenses.deflection(x, y)
    for k, one in enumerate(lenses):
        for a, b in zip(one.deflection(x[k], y[k]), together, strict=True):
            torch.testing.assert_close(a[0], b[k], rtol=1e-9, atol=1e-12)


def test_the_maps_of_a_lens_agree_with_each_other(lenses: Lenses) -> None:
    x, y = lenses.grid(7, 0.3)
    x, y = (x + 0.013, y - 0.029)
    kappa, (gamma1, gamma2), mu = lenses.kappa(x, y), lenses.shear(x, y), lenses.magnification(x, y)
    torch.testing.assert_close(1 / mu, (1 - kappa) ** 2 - gamma1**2 - gamma2**2, rtol=1e-9, atol=1e-9)
    h = 1e-4
    slope = (lenses.potential(x + h, y) - lenses.potential(x - h, y)) / (2 * h)
    torch.testing.assert_close(slope, lenses.deflection(x, y)[0], rtol=0, atol=1e-4)


def test_the_image_is_the_lensed_source_where_nothing_blurs() -> None:
    world = World("model_2", ["simulation.psf={gaussian: 0.001}", "simulation.supersampling=1"])
    lenses = world.draw(3)
    expected = lenses.source(lensed=True) * world.pixel_scale**2
    torch.testing.assert_close(lenses.image(), expected + lenses.lens_light() * world.pixel_scale**2)


def test_caustics_are_critical_curves_seen_in_the_source_plane(lenses: Lenses) -> None:
    for one in lenses[:2]:
        (found,), (seen,) = one.critical_curves(), one.caustics()
        longest = max(range(len(found)), key=lambda k: len(found[k]))
        x, y = torch.from_numpy(found[longest]).T[:, None]
        assert float((1 / one.magnification(x, y)).abs().max()) < 1e-6
        alpha = one.deflection(x, y)
        expected = torch.stack([x - alpha[0][0], y - alpha[1][0]], -1)[0]
        np.testing.assert_allclose(seen[longest], expected.numpy(), atol=1e-9)
        inside = 0.5 * abs(float((x[0, :-1] * y[0, 1:] - x[0, 1:] * y[0, :-1]).sum()))  # the shoelace formula
        theta_E = float(one.truth["lens.theta_E"][0])
        assert np.sqrt(inside / np.pi) == pytest.approx(theta_E, rel=0.1)


def test_critical_curve_of_an_isothermal_sphere_is_its_einstein_ring() -> None:
    one = deeplense.Lens([("sie", {"theta_E": 1.1})], instrument="hst_f160w", size=50)
    (curve,) = one.critical_curves()[0]  # and none around the centre, where the determinant has a pole
    np.testing.assert_allclose(np.hypot(*curve.T), 1.1, rtol=1e-8)
    np.testing.assert_allclose(one.caustics()[0][0], 0, atol=1e-7)


def test_halos_are_the_scenes_rows(lenses: Lenses) -> None:
    table = lenses.halos
    cdm = [k for k, name in enumerate(lenses.classes) if name == "cdm"]
    assert set(table["lens"]) == set(cdm)
    assert str(table["mass"].unit) == "solMass"
    half = lenses.world.size * lenses.world.pixel_scale / 2
    seen = table[(np.abs(table["x"]) < half) & (np.abs(table["y"]) < half)]
    for k in cdm:
        # those of the lens and those of the field; rows of halos outside the image are kept too
        number = sum(lenses.truth[name][k] for name in ("n_sub", "n_los") if name in lenses.truth)
        assert (seen["lens"] == k).sum() == number
        assert (table["lens"] == k).sum() >= number
    drawn = World("model_1").draw(6)
    assert len(drawn[drawn.classes.index("no_sub")].halos) == 0


def test_time_delays_of_an_isothermal_sphere() -> None:
    """Δt = D/c ½ (θ_A² − θ_B²) for images at β ± θ_E."""
    beta = 0.2
    source = [("sersic", {"amp": 1.0, "R_sersic": 0.1, "n_sersic": 1.0, "center_x": beta})]
    one = deeplense.Lens([("sie", {"theta_E": 1.0})], source, z_lens=0.5, z_source=1.5, instrument="hst_f160w")
    x = torch.tensor([[beta + 1.0, beta - 1.0]], dtype=torch.float64)
    t = one.time_delay(x, torch.zeros_like(x))[0, 0]
    c = FlatLambdaCDM(70, 0.3)
    d = 1.5 * c.angular_diameter_distance(0.5) * c.angular_diameter_distance(1.5)
    d = d / c.angular_diameter_distance(0.5, 1.5) / constants.c
    unit = float((d * units.arcsec.to("rad") ** 2).to("day").value)
    assert float(t[1] - t[0]) == pytest.approx(unit * 2 * beta, rel=1e-6)


def test_what_has_no_meaning_is_refused(lenses: Lenses) -> None:
    with pytest.raises(UserError, match=r"no time delays of a recipe with faulty distances"):
        World("legacy/model_2").draw(1).time_delay()
    scene = world_of("cdm", **PLANES)
    field = scene.draw(1)
    with pytest.raises(UserError, match=r"no potential of several planes together; name one, e\.g\. plane=0"):
        field.potential()
    with pytest.raises(UserError, match=r"no time delays through several planes"):
        field.time_delay()


def test_planes_one_by_one_and_together() -> None:
    one = world_of("cdm", **PLANES).draw(1)
    x, y = one.grid(3, 0.7)
    x, y = x + 0.021, y - 0.013
    scene = one.scenes[0]
    lone = dataclasses.replace(scene, planes=None, mass=[c for c in scene.mass if c.plane == 0])
    torch.testing.assert_close(one.kappa(x, y, plane=0), Lenses(one.world, [lone]).kappa(x, y))
    behind = [dataclasses.replace(c, plane=0) for c in scene.mass if c.plane == 2]
    there = Lenses(one.world, [dataclasses.replace(scene, planes=None, mass=behind)])
    torch.testing.assert_close(one.potential(x, y, plane=2), there.potential(x, y))
    model, kwargs = reference._lens_model(scene, 0)
    at = (v.expand(3, 3).reshape(-1).numpy() for v in (x, y))
    expected = model.alpha(*at, kwargs)
    for ours, theirs in zip(one.deflection(x, y), expected, strict=True):
        np.testing.assert_allclose(ours.reshape(-1).numpy(), theirs, atol=1e-7)
    h = 1e-5
    right, left = one.deflection(x + h, y), one.deflection(x - h, y)
    above, below = one.deflection(x, y + h), one.deflection(x, y - h)
    half = (right[0] - left[0] + above[1] - below[1]) / (4 * h)
    torch.testing.assert_close(one.kappa(x, y), half, rtol=1e-5, atol=1e-6)


FIVE: dict[str, Any] = {
    "mass": [("epl", {"theta_E": 1.2, "gamma": 2.05, "e1": 0.1}), ("shear", {"gamma1": 0.03, "gamma2": 0.01})],
    "source": [("sersic", {"magnitude": 22.0, "R_sersic": 0.2, "n_sersic": 1.5, "center_x": 0.1})],
    "instrument": "hst_f160w",
}


def test_a_lens_of_named_profiles_is_the_scene_of_a_recipe() -> None:
    lens = {"theta_E": 1.2, "gamma": 2.05, "e1": 0.1, "gamma1": 0.03, "gamma2": 0.01}
    section = {"lens": lens, "source": FIVE["source"][0][1], "instrument": "hst_f160w", "z_source": 2.0, "size": 40}
    expected = World({"simulation": section}).draw(1)
    one = deeplense.Lens(**FIVE, z_source=2.0, size=40)
    torch.testing.assert_close(one.image(), expected.image(), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.time_delay(), expected.time_delay(), rtol=1e-12, atol=1e-9)
    assert one.noisy().isfinite().all()


def test_lenses_of_named_profiles_are_batched_and_differentiable() -> None:
    theta_E = torch.tensor([1.2, 0.9], dtype=torch.float64, requires_grad=True)
    two = deeplense.Lens([("epl", {**FIVE["mass"][0][1], "theta_E": theta_E})], FIVE["source"], size=12)
    for made in (two.image, two.kappa, two.time_delay, two.magnification):
        (slope,) = torch.autograd.grad(made()[0].sum(), theta_E)
        assert float(slope[0]) != 0
        assert float(slope[1]) == 0
    assert two.to(dtype=torch.float32).kappa().dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mass": [("epll", {})]}, r"no profile 'epll'; did you mean 'epl'"),
        ({"mass": [("sie", {"theta_e": 1.0})]}, r"mass\.sie has no parameter 'theta_e'; did you mean 'theta_E'"),
        ({"mass": [("epl", {"theta_E": 1.0})]}, r"mass\.epl: give gamma as well"),
        ({"source": [("sersic", {"amp": 1.0, "R_sersic": 1.0})]}, r"source\.sersic: give n_sersic as well"),
        ({"instrument": "gaussian_toy"}, r"source\.sersic\.magnitude: the instrument has no zero point; give amp"),
        ({"lens_light": [("sersc", {})]}, r"no profile 'sersc'; did you mean 'sersic'"),
        ({"bands": {}}, r"bands: what a recipe draws; give a Lens its profiles"),
        ({"sise": 3}, r"simulation has no key 'sise'; did you mean 'size'"),
        ({"z_source": 0.2}, r"need 0 < z_lens < z_source"),
        (
            {"mass": [("shear", {"gamma1": torch.zeros(3), "gamma2": torch.zeros(2)})]},
            r"parameters of 2 and 3 lenses cannot be together",
        ),
    ],
)
def test_bad_profiles_are_told_in_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        deeplense.Lens(**{**FIVE, **changed})
    assert "\n" not in str(error.value)


def theirs_of(one: Lenses) -> tuple[Lenses, LensModel, list[dict[str, float]]]:
    """A lens and lenstronomy's model of it, both without what lenstronomy has no like of.

    Its SIE has a hessian by finite differences only, so its EPL takes the place.
    """
    scene = one.scenes[0]
    kept = dataclasses.replace(scene, mass=[c for c in scene.mass if c.profile not in reference.REPLACED])
    model, kwargs = reference._lens_model(kept, 0)
    kwargs = [p | {"gamma": 2.0} if n == "SIE" else p for n, p in zip(model.lens_model_list, kwargs, strict=True)]
    names = ["EPL" if name == "SIE" else name for name in model.lens_model_list]
    z = {k: float(scene.truth[k][0]) for k in ("z_lens", "z_source")}
    return Lenses(one.world, [kept]), LensModel(names, **z, cosmo=FlatLambdaCDM(70, 0.3, Ob0=0.05)), kwargs


@pytest.mark.parametrize("recipe", ["model_1", "model_2", "realistic/euclid"])
def test_maps_are_lenstronomys(recipe: str) -> None:
    """One scene of each class; benchmarks/maps.py does fifty of each recipe."""
    world = World(recipe, [LIGHT_HALOS] if recipe.startswith("realistic") else [])
    x, y = (torch.linspace(-1.4, 1.5, 9, dtype=torch.float64) for _ in range(2))
    x, y = x.expand(9, 9) + 0.0137, y[:, None].expand(9, 9) - 0.0071
    at = x.reshape(-1).numpy(), y.reshape(-1).numpy()
    for one in world.draw(len(world.classes)):
        ours, model, kwargs = theirs_of(one)
        potential, delay = model.potential(*at, kwargs), model.arrival_time(*at, kwargs, x_source=0.1, y_source=-0.2)
        pairs = [
            (ours.potential(x, y)[0], potential),
            (ours.time_delay(x, y, source=(0.1, -0.2))[0], delay),
            *zip((a[0] for a in ours.deflection(x, y)), model.alpha(*at, kwargs), strict=True),
            (ours.kappa(x, y)[0], model.kappa(*at, kwargs)),
            *zip((g[0] for g in ours.shear(x, y)), model.gamma(*at, kwargs), strict=True),
            (1 / ours.magnification(x, y)[0], 1 / model.magnification(*at, kwargs)),
        ]
        for k, (mine, theirs) in enumerate(pairs):
            error, peak = mine.reshape(-1).numpy() - theirs, np.abs(theirs).max()
            if k < 2:  # up to a constant
                error, peak = error - error.mean(), np.ptp(theirs)
            assert np.abs(error).max() < 1e-6 * peak, k


def test_a_profile_of_ones_own_needs_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from deeplense.lensing.mass import MASS, MassProfile

    def core(r2: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return b / torch.sqrt(1 + r2)

    monkeypatch.setitem(MASS, "core", MassProfile(core, ("b",), circular=True))
    one = deeplense.Lens([("core", {"b": 0.8})], FIVE["source"], instrument="hst_f160w", size=10)
    r2 = sum(v**2 for v in one.grid())
    slope = 0.8 * (1 + r2) ** -0.5 - 0.4 * r2 * (1 + r2) ** -1.5
    torch.testing.assert_close(one.kappa()[0], slope, rtol=1e-10, atol=1e-12)
    with pytest.raises(UserError, match="no potential of 'core'"):
        one.time_delay()
    assert isinstance(one.scenes[0].mass[0], Component)
