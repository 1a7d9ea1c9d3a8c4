"""Fisher matrix against finite differences, closed forms and the scatter of fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplense import config
from deeplense.errors import UserError
from deeplense.evaluation import information
from deeplense.evaluation.forward import SUBHALO, SUBHALO_PROFILES, VORTEX, Forward, Place
from deeplense.evaluation.information import Information, Subhalo, fisher
from deeplense.lensing.mass import MASS
from deeplense.sim import image
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

SMALL = ["simulation.size=36", "simulation.pixel_scale=0.16"]
MACRO = ("theta_E", "e1", "e2", "center_x", "center_y", "gamma1", "gamma2")
SOURCE = ("R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")
NAMES = (*(f"lens.{k}" for k in MACRO), *(f"source.{k}" for k in SOURCE), *VORTEX, *SUBHALO)
CLUMP = Subhalo(9.0, 0.88, 1.25)  # on no pixel's edge, where the selection of rays changes


def world_of(recipe: str, *changes: str) -> World:
    return World(config.load_recipe(recipe, [*SMALL, *(f"simulation.{c}" for c in changes)]).simulation)


def one(world: World, name: str = "axion", log10_m: float | None = None) -> Scene:
    """The first scene of a class, on request with another axion mass."""
    scene = world.scenes(3, "test", 0, 12)[world.classes.index(name)][:1]
    if log10_m is not None:
        scene.truth["log10_m_axion"] = torch.tensor([log10_m], dtype=torch.float64)
    return scene


def unlensed(**changes: Any) -> World:
    """Images of the source itself: a lens without mass in front."""
    tree = config.to_tree(config.load_recipe("model_3", SMALL))
    source = {"center_x": 0.1, "center_y": -0.2, "R_sersic": 0.5, "magnitude": 21.0}
    tree["simulation"] |= {
        "lens": {"theta_E": 0.0, "e1": 0.1},
        "classes": {"no_sub": {"population": "none"}},
        **changes,
    }
    tree["simulation"]["source"] |= source
    return World(config.load_recipe(tree).simulation)


@pytest.mark.parametrize("recipe", ["model_1", "model_3"])
@pytest.mark.parametrize("name", [*NAMES, "source brightness"])
def test_derivatives_agree_with_central_differences(recipe: str, name: str) -> None:
    world = world_of(recipe)
    forward = Forward(world, one(world, log10_m=-23.6), CLUMP)
    if name == "source brightness":
        name = {"model_1": "source.amplitude", "model_3": "source.magnitude"}[recipe]
    _, (slope,) = forward.derivatives([name])
    h, at = 1e-6, {**forward.values, **forward._off_singular([name])}[name]
    above, below = forward.render({name: torch.tensor([at + h, at - h], dtype=torch.float64)})
    finite = (above - below) / (2 * h)
    assert float(finite.norm()) > 0
    assert float((slope - finite).norm() / finite.norm()) < 1e-4


@pytest.mark.skipif("tnfw" not in MASS, reason="no truncated NFW in this version")
@pytest.mark.parametrize("name", SUBHALO)
def test_derivatives_of_a_truncated_halo_agree_with_central_differences(name: str) -> None:
    world = world_of("model_3")
    forward = Forward(world, one(world, "no_sub"), Subhalo(9.0, 0.88, 1.25, "tnfw"))
    _, (slope,) = forward.derivatives([name])
    above, below = forward.render({name: forward.values[name] + torch.tensor([1e-5, -1e-5], dtype=torch.float64)})
    finite = (above - below) / 2e-5
    assert float((slope - finite).norm() / finite.norm()) < 1e-4


def test_derivatives_exist_for_a_round_lens_and_a_round_source() -> None:
    world = world_of("model_1", "lens.e1=0", "source.e1=0", "source.e2=0")
    names = ["lens.e1", "lens.e2", "source.e1", "source.e2"]
    forward = Forward(world, one(world, "no_sub"))
    _, slopes = forward.derivatives(names)
    for name, slope in zip(names, slopes, strict=True):
        above, below = forward.render({name: torch.tensor([1e-4, -1e-4], dtype=torch.float64)})
        finite = (above - below) / 2e-4
        # the slope is that at e1 = 1e-5; a source in the middle of the lens differs there by 1.6e-3
        assert float((slope - finite).norm() / finite.norm()) < 3e-3


@pytest.mark.parametrize("changes", [{}, {"classes.axion.points": 40}])
def test_the_image_is_the_simulators_own(changes: dict[str, Any]) -> None:
    world = world_of("model_3", *(f"{k}={v}" for k, v in changes.items()))
    for name in world.classes:
        scene = one(world, name)
        args = world.size, world.pixel_scale, world.instrument, world.simulation.supersampling
        direct = image.render(scene.to("cpu", torch.float64), *args)[0, 0]
        torch.testing.assert_close(Forward(world, scene).render({})[0], direct, rtol=1e-10, atol=0)


def test_the_variance_is_that_of_noisy_images() -> None:
    for recipe in ("model_1", "model_3"):
        world = world_of(recipe, "correlated_noise=0")  # which the bounds take for white
        scene = one(world)
        forward = Forward(world, scene)
        mean = forward.render({})
        draws = _noisy(world, scene, mean[0], 4000)
        ratio = draws.var(0) / forward.variance(mean[0])
        assert float(ratio.mean()) == pytest.approx(1, abs=4 * (2 / ratio.numel() / 4000) ** 0.5 + 1e-3)
        bright = mean[0] > mean.max() / 2
        assert float(ratio[bright].mean()) == pytest.approx(1, abs=5 * (2 / int(bright.sum()) / 4000) ** 0.5 + 2e-3)


def test_fisher_of_a_pure_amplitude_has_its_closed_form() -> None:
    """μ = A·s, so F = Σ s²/σ² + ½ (s/t)²/σ⁴."""
    world = world_of("model_1")
    scene = one(world, "no_sub")
    forward = Forward(world, scene)
    mean, t, A = forward.render({})[0].numpy(), float(forward.exposure), forward.values["source.amplitude"]
    variance = mean / t + 0.01**2
    expected = ((mean / A) ** 2 / variance + 0.5 * (mean / A / t / variance) ** 2).sum()
    found = fisher(world, scene, ["source.amplitude"])
    assert found.matrix[0, 0] == pytest.approx(expected, rel=1e-10)
    assert found.cramer_rao("source.amplitude") == pytest.approx(expected**-0.5, rel=1e-10)


def _noisy(world: World, scene: Scene, mean: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """(n, H, W) noisy images by the simulator's own noise."""
    rows = torch.zeros(n, dtype=torch.int64)
    copies = scene[rows]
    copies = Scene(**{**vars(copies), "index": torch.arange(n)})
    stack = mean.float().expand(n, 1, *mean.shape)
    return image.add_noise(stack, copies, world.instrument, world.pixel_scale, "once", seed, "test")[:, 0].double()


def test_fits_scatter_as_the_bound_says() -> None:
    """Maximum likelihood by scoring, 200 noisy images of an unlensed source: brightness and position."""
    world = unlensed()
    scene = world.scenes(0, "test", 0, 1)[0]
    names, n = ["source.magnitude", "source.center_x", "source.center_y"], 200
    forward, found = Forward(world, scene), fisher(world, scene, names)
    data = _noisy(world, scene, forward.render({})[0], n, seed=1)
    truth = torch.tensor([forward.values[k] for k in names], dtype=torch.float64)
    inverse = torch.from_numpy(found.covariance())
    fitted = truth.expand(n, 3).clone()
    for _ in range(4):
        mean = forward.render(dict(zip(names, fitted.T, strict=True)))
        _, slopes = forward.derivatives(names)  # of the truth: scoring needs no more
        variance = forward.variance(mean)
        residual = data - mean
        score = residual / variance + 0.5 * (residual**2 - variance) / variance**2 / forward.exposure
        fitted = fitted + score.flatten(1) @ slopes.flatten(1).T @ inverse
    scatter, bound = fitted.std(0), inverse.diagonal().sqrt()
    assert float((fitted - truth).abs().max() / bound.max()) < 6
    # a standard deviation of 200 draws is good to 5 %
    np.testing.assert_allclose((scatter / bound).numpy(), 1, atol=4 * 0.05)
    pull = (fitted.mean(0) - truth) / bound * n**0.5
    assert float(pull.abs().max()) < 4
    correlation = np.corrcoef(fitted.T.numpy()) - found.covariance() / np.outer(bound, bound)
    assert np.abs(correlation).max() < 4 / n**0.5


def test_one_more_nuisance_never_decreases_a_bound() -> None:
    world = world_of("model_3")
    whole = fisher(world, one(world, log10_m=-23.4))
    names: list[str] = ["log10_m_axion"]
    last = whole[names].cramer_rao("log10_m_axion")
    assert last == pytest.approx(whole.cramer_rao("log10_m_axion", known=True))
    for name in whole.names:
        if name not in names:
            names.append(name)
            bound = whole[names].cramer_rao("log10_m_axion")
            assert bound >= last * (1 - 1e-9)
            last = bound
    assert last > 1.5 * whole.cramer_rao("log10_m_axion", known=True)


def test_the_order_of_parameters_changes_nothing() -> None:
    world = world_of("model_3")
    scene = one(world, log10_m=-23.4)
    names = list(Forward(world, scene).names)
    a, b = fisher(world, scene, names), fisher(world, scene, names[::-1])
    for name in names:
        assert a.cramer_rao(name) == pytest.approx(b.cramer_rao(name), rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.floats(200, 2e4), st.floats(1.05, 20))
def test_a_longer_exposure_never_increases_a_bound(t: float, factor: float) -> None:
    names = ["lens.theta_E", "lens.gamma1", "source.n_sersic", "source.magnitude", "log10_m_axion"]
    short, long = (
        fisher(world, one(world, log10_m=-23.4), names)
        for world in (world_of("model_3", f"exposure_time={time}") for time in (t, factor * t))
    )
    for name in names:
        assert long.cramer_rao(name) < short.cramer_rao(name)
        # √t at best where photons are the noise, t where the detector is
        assert long.cramer_rao(name) > short.cramer_rao(name) / factor


def test_a_prior_only_ever_helps_and_bounds_the_bound() -> None:
    world = world_of("model_1")
    found = fisher(world, one(world, log10_m=-22.2))
    free = found.cramer_rao("log10_m_axion")
    tight = found.with_priors({"log10_m_axion": 0.577, "unknown": 1.0}).cramer_rao("log10_m_axion")
    assert free > 1
    assert tight < 0.577
    assert tight == pytest.approx((free**-2 + 0.577**-2) ** -0.5, rel=1e-6)


def test_a_degenerate_combination_is_named() -> None:
    """Without a lens, shear turns an elliptical source into another one: nothing tells them apart."""
    world = unlensed()
    scene = world.scenes(0, "test", 0, 1)[0]
    names = ["lens.gamma1", "source.e1", "source.e2", "source.center_x", "source.center_y", "source.R_sersic"]
    with pytest.raises(UserError, match=r"degenerate.*(lens\.gamma.*source\.e|source\.e.*lens\.gamma)"):
        fisher(world, scene, [*names, "lens.gamma2"]).cramer_rao("source.e1")
    with pytest.raises(UserError, match=r"does not depend on lens\.e1"):
        fisher(world, scene, ["source.e1", "lens.e1"]).cramer_rao("source.e1")
    priors = {"lens.gamma1": 0.05, "lens.gamma2": 0.05}
    assert fisher(world, scene, [*names, "lens.gamma2"]).with_priors(priors).cramer_rao("source.e1") > 0.01


def test_bad_input_is_one_line_with_the_remedy() -> None:
    world = world_of("model_1")
    for wrong, match in (
        (lambda: fisher(world, one(world), ["lens.thetaE"]), "nearest|did you mean|lens.theta_E"),
        (lambda: fisher(world, world.scenes(0, "test", 0, 12)[0]), "take scene"),
        (lambda: fisher(world_of("model_1", "noise=none"), one(world)), "set it to once"),
        (lambda: fisher(world, one(world), None, Subhalo(9, 0, 0, "point_mas")), "point_mass"),
        (lambda: fisher(world, one(world))[["lens.x"]], "not in this matrix"),
        (lambda: information.bound_log10_m_axion(unlensed(), np.array([-23.0]), 1), "no class"),
    ):
        with pytest.raises(UserError, match=match):
            wrong()


def test_recipe_widths_are_the_standard_deviations_of_its_priors() -> None:
    widths = information.recipe_widths(world_of("model_1", "classes.axion.mass={log_uniform: [1e9, 1e10]}"))
    assert widths["log10_m_axion"] == pytest.approx(2 / 12**0.5)
    assert widths["source.center_x"] == pytest.approx(0.7 / 12**0.5)
    assert widths["vortex_log10_mass"] == pytest.approx(1 / 12**0.5, rel=0.01)
    assert "lens.e1" not in widths


def test_short_vortices_hide_their_axion_mass_and_heavy_subhalos_show_theirs() -> None:
    world = world_of("model_3")
    found = information.bound_log10_m_axion(world, np.array([-23.6, -22.8, -22.0]), scenes=2)
    clump = information.bound_subhalo_mass(world, np.array([7.5, 8.5, 9.5]), scenes=2)
    for bounds, order in ((found, 1), (clump, -1)):
        for state in ("known", "recipe", "all"):
            assert (order * np.diff(bounds.percentiles(state)[1]) > 0).all()
        assert (bounds.sigma["known"] <= bounds.sigma["recipe"] * (1 + 1e-9)).all()
        assert (bounds.sigma["recipe"] <= bounds.sigma["all"] * (1 + 1e-9)).all()
    # a small clump bends light in proportion to its mass: σ(log10 M) ∝ 1/M
    first, second, _ = clump.sigma["known"]
    np.testing.assert_allclose(first / second, 10, rtol=0.1)


def test_a_light_subhalos_bound_is_that_of_nine_rays_a_side() -> None:
    """Its deflection, of a hundredth of a pixel, is steep within the pixel where it lies."""
    masses = np.array([7.0])
    ours, full = (
        information.bound_subhalo_mass(world_of("model_3", f"supersampling={s}"), masses, scenes=2).sigma["known"]
        for s in ("adaptive", 9)
    )
    np.testing.assert_allclose(ours, full, rtol=0.03)


def test_the_ideal_error_is_the_bound_where_the_likelihood_is_narrow_and_the_priors_where_the_image_is_silent() -> None:
    world = world_of("model_3", "exposure_time=600")
    grid, errors = information.ideal_errors(world, points=800, scenes=4)
    assert errors.shape == (800, 4)
    narrow = slice(210, 281)
    bound = information.bound_log10_m_axion(world, grid[narrow][::10], scenes=4).sigma["known"].mean()
    # a Gaussian's mean absolute error, from 284 draws
    assert errors[narrow].mean() == pytest.approx(bound * (2 / np.pi) ** 0.5, rel=0.15)
    assert bound < 0.02
    assert errors[grid > -22.2].mean() > 0.1
    assert errors.mean() < 0.3  # the constant predictor: 0.5


def test_a_subhalos_concentration_and_size_are_the_cited_ones() -> None:
    """Dutton & Macciò 2014 at z = 0.5: c200 = 10^0.777 for 10¹² M☉/h; r200 from 200 ρ_c."""
    world = world_of("model_1")
    d = world.distances_of(world.scenes(0, "t", 0)[0])[0]
    params = SUBHALO_PROFILES["tnfw"](torch.tensor([12 - np.log10(0.7)], dtype=torch.float64), Place(d, 0.5, 70.0, 0.3))
    c = 10 ** (0.520 + 0.385 * np.exp(-0.617 * 0.5**1.21))
    hubble2 = 0.49 * (0.3 * 1.5**3 + 0.7)
    r200 = (1e12 / 0.7 / (200 * 277.54 * hubble2 * 4 / 3 * np.pi)) ** (1 / 3)
    assert float(params["R_s"]) * d.kpc_per_arcsec == pytest.approx(r200 / c, rel=1e-6)
    # α(R_s)·R_s is the projected mass inside R_s in units of θ_E²/M
    projected = 1e12 / 0.7 * (1 - np.log(2)) / (np.log(1 + c) - c / (1 + c))
    theta_E2 = projected * d.theta_E2_per_mass
    assert float(params["alpha_Rs"] * params["R_s"]) == pytest.approx(theta_E2, rel=1e-3)


def test_information_refuses_what_it_does_not_hold() -> None:
    found = Information(("a", "b"), np.array([[4.0, 1.0], [1.0, 1.0]]), np.zeros(2))
    assert found.cramer_rao("a") == pytest.approx((1 / 3) ** 0.5)
    assert found.cramer_rao("a", known=True) == pytest.approx(0.5)
    with pytest.raises(UserError, match="it has a, b"):
        found.cramer_rao("c")
