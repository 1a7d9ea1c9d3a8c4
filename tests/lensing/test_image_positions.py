"""Images of point sources: lenstronomy's solver finds the same, with the same magnifications and delays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

import deeplense
from deeplense import UserError
from deeplense.evaluation.forward import Forward
from deeplense.sim import reference
from deeplense.sim.lenses import Lenses
from deeplense.sim.world import World

SHAPE = [
    ("epl", {"theta_E": 1.2, "gamma": 2.1, "e1": 0.15, "e2": -0.05}),
    ("shear", {"gamma1": 0.03, "gamma2": 0.01}),
    ("nfw", {"R_s": 0.1, "alpha_Rs": 0.02, "center_x": 0.9, "center_y": 0.6}),
]
QUAD, PAIR = (0.05, 0.02), (0.25, 0.2)


def lens(at: tuple[float, float], **more: object) -> Lenses:
    place = dict(zip(("center_x", "center_y"), at, strict=True))
    source = [("sersic", {"magnitude": 60.0, "R_sersic": 0.2, "n_sersic": 1.0, **place})]
    quasar = {"magnitude": 22.0, **place}
    settings = {"instrument": "hst_f160w", "size": 64, "pixel_scale": 0.06, "z_source": 2.0}
    return deeplense.Lens(SHAPE, source, quasar=quasar, **{**settings, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(("at", "number"), [(QUAD, 4), (PAIR, 2)])
def test_images_are_those_of_lenstronomys_solver(at: tuple[float, float], number: int) -> None:
    one = lens(at)
    table = one.point_images()
    assert len(table) == number
    said = deeplense.to_lenstronomy(one)
    cosmo = FlatLambdaCDM(70, 0.3)
    model = LensModel(said["lens_model_list"], z_lens=0.5, z_source=2.0, cosmo=cosmo)
    kwargs = said["kwargs_lens"]
    x, y = LensEquationSolver(model).image_position_from_source(
        *at, kwargs, min_distance=0.02, search_window=4, precision_limit=1e-12, num_iter_max=200
    )
    mu = model.magnification(x, y, kwargs)
    order = np.argsort(-np.abs(mu))
    np.testing.assert_allclose(table["x"], x[order], atol=1e-8)
    np.testing.assert_allclose(table["y"], y[order], atol=1e-8)
    np.testing.assert_allclose(table["magnification"], mu[order], rtol=1e-6)
    np.testing.assert_allclose(table["flux_ratio"], np.abs(mu[order] / mu[order][0]), rtol=1e-6)
    arrival = model.arrival_time(x, y, kwargs, x_source=at[0], y_source=at[1])
    np.testing.assert_allclose(table["time_delay"], (arrival - arrival.min())[order], rtol=1e-6, atol=1e-6)


def test_both_images_of_a_merging_pair_are_found_as_on_a_finer_grid() -> None:
    curves = zip(lens(QUAD).critical_curves()[0], lens(QUAD).caustics()[0], strict=True)
    _, diamond = max(curves, key=lambda both: len(both[0]))  # inside which there are two more images
    middle = diamond.mean(0)
    starts = (diamond[0], diamond[np.argmax(diamond[:, 0])])
    for depth, edge in itertools.product((0.003, 0.03, 0.3), starts):  # of the way to the middle
        x, y = edge + depth * (middle - edge)
        one = lens((float(x), float(y)))
        coarse, fine = one.point_images(), one.point_images(spacing=0.01)
        assert len(fine) >= 4
        np.testing.assert_allclose(coarse["magnification"], fine["magnification"], rtol=1e-4)


def test_quasars_are_drawn_as_the_psf_where_the_images_are() -> None:
    one = lens(QUAD)
    seen, table = one.image()[0, 0], one.point_images()
    counts = 10 ** (-0.4 * (22.0 - one.world.instrument.zero_point))  # type: ignore[operator]
    flux = counts * np.abs(table["magnification"])
    x, y = (v.flatten() for v in one.grid())
    sigma = one.world.instrument.psf_fwhm / 2.3548200450309493 * 2**0.5
    edges = [torch.special.erf((v[:, None] + shift - torch.tensor(np.asarray(table[k]))) / sigma)
             for v, k in ((x, "x"), (y, "y")) for shift in (0.03, -0.03)]  # fmt: skip
    across, along = (edges[0] - edges[1]) / 2, (edges[2] - edges[3]) / 2  # shares of a pixel's column and row
    expected = torch.einsum("k,ik,jk->ij", torch.tensor(np.asarray(flux)), along, across)
    torch.testing.assert_close(seen, expected, rtol=0, atol=2e-3 * float(expected.max()))
    assert float(seen.sum()) == pytest.approx(float(flux.sum()), rel=1e-3)


def test_magnified_light_can_be_differentiated() -> None:
    def seen(theta_E: torch.Tensor) -> torch.Tensor:
        mass = [("sie", {"theta_E": theta_E, "e1": 0.1}), *SHAPE[1:2]]
        source = [("sersic", {"amp": 0.0, "R_sersic": 1.0, "n_sersic": 1.0})]
        quasar = {"amp": 1.0, "center_x": 0.03, "center_y": 0.02}
        one = deeplense.Lens(mass, source, quasar=quasar, instrument="gaussian_toy", size=64)
        return (one.image()[0, 0] * torch.linspace(1, 2, 64)).sum()

    value = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(seen(value), value)
    h = 1e-5
    with torch.no_grad():
        expected = (seen(value + h) - seen(value - h)) / (2 * h)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=0)


def test_a_recipe_draws_quasars_in_its_sources() -> None:
    few = "simulation.classes={no_sub: {population: none}}"
    said = "simulation.quasar={magnitude: {uniform: [20, 24]}}"
    world = World("realistic/hst", [few, said])
    four = world.draw(4)
    none = Lenses(world, [replace(scene, quasar=None) for scene in four.scenes])
    table = four.point_images()
    assert set(table["lens"]) == {0, 1, 2, 3}
    extra = (four.image() - none.image()).sum((1, 2, 3))
    for k in range(4):
        assert 20 <= four.truth["quasar.magnitude"][k] <= 24
        counts = world.instrument.counts(torch.tensor(four.truth["quasar.magnitude"][k]))
        flux = float(counts) * float(np.abs(table["magnification"][table["lens"] == k]).sum())
        assert float(extra[k]) == pytest.approx(flux, rel=0.02)  # the PSF's wings leave the field
    scene = four.scenes[0][:1]
    with pytest.raises(UserError, match="quasar"):
        Forward(world, scene)
    with pytest.raises(UserError, match=r"leave out simulation\.quasar"):
        reference.render(scene, 8, 0.1, world.instrument)
    with pytest.raises(UserError, match=r"simulation\.quasar\.magnitude: the instrument has no zero point"):
        World("model_1", ["simulation.quasar={magnitude: 20}"])
    with pytest.raises(UserError, match=r"simulation\.quasar: give either amplitude or magnitude"):
        World("model_1", ["simulation.quasar={}"])
