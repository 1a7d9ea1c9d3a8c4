"""The sensitivity map against refits of rendered images, and the figures of the information limit."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.errors import UserError
from deeplense.evaluation import information, information_plots, sensitivity
from deeplense.evaluation.forward import Forward, Subhalo
from deeplense.lensing.mass import MASS
from deeplense.sim.scene import Scene
from deeplense.sim.world import World


def hubble() -> World:
    """model_3 on fewer, larger pixels."""
    changes = ["simulation.size=36", "simulation.pixel_scale=0.16"]
    return World(config.load_recipe("model_3", changes).simulation)


def one(world: World) -> Scene:
    return world.scenes(3, "test", 0, 12)[world.classes.index("no_sub")][:1]


def test_bad_input_is_one_line_with_the_remedy() -> None:
    world = hubble()
    for wrong, match in (
        ({"grid_step": 0}, "grid_step"),
        ({"mass_range": (1e9, 1e8)}, "mass_range"),
        ({"nuisance": ["lens.theta"]}, "lens.theta_E"),
        ({"profile": "point_mas"}, "point_mass"),
    ):
        with pytest.raises(UserError, match=match):
            sensitivity.sensitivity_map(world, one(world), **wrong)


def test_the_map_is_deepest_on_the_arc_and_refitting_never_helps() -> None:
    world = hubble()
    scene = one(world)
    free = sensitivity.sensitivity_map(world, scene, grid_step=5)
    known = sensitivity.sensitivity_map(world, scene, grid_step=5, nuisance=())
    line = sensitivity.positions(world, 5)
    assert free.shape == known.shape == (len(line), len(line))
    assert abs(line.mean()) <= world.pixel_scale / 2 + 1e-12
    bright = Forward(world, scene).render({})[0].numpy()
    at = np.round(line / world.pixel_scale + (world.size - 1) / 2 - 0.5).astype(int)
    light = bright[np.ix_(at, at)]
    arc, dark = light > light.max() / 2, light < light.max() / 100
    far = np.nan_to_num(free, nan=10.0)
    assert np.median(far[arc]) < np.median(far[dark]) - 0.5
    assert (far >= np.nan_to_num(known, nan=10.0) - 1e-9).all()


def test_the_mass_at_threshold_is_what_a_refit_of_two_images_gives() -> None:
    """Weighted least squares of macro lens and source to a rendered image, first linear, then repeated to the end."""
    world = hubble()
    scene, threshold = one(world), 30.0
    depth = sensitivity.sensitivity_map(world, scene, threshold, grid_step=7)
    line = sensitivity.positions(world, 7)
    row, column = np.unravel_index(np.nanargmin(depth), depth.shape)
    smooth = Forward(world, scene)
    data = Forward(world, scene, Subhalo(depth[row, column], line[column], line[row])).render({})[0]
    sigma = smooth.variance(smooth.render({})[0]).sqrt()
    gains = []
    for _ in range(4):
        mean, slopes = smooth.derivatives(smooth.names)
        whitened = (slopes / sigma).flatten(1).T
        scale = whitened.norm(dim=0)
        missing = ((data - mean) / sigma).flatten()
        gains.append(0.5 * float(missing.square().sum()))
        step = torch.linalg.lstsq(whitened / scale, missing[:, None], driver="gelsd").solution[:, 0] / scale
        if len(gains) == 1:
            linear = 0.5 * float((missing - whitened @ step).square().sum())
        smooth.values.update({k: smooth.values[k] + float(s) for k, s in zip(smooth.names, step, strict=True)})
    assert linear == pytest.approx(threshold, rel=0.03)
    assert gains[-1] == pytest.approx(gains[-2], rel=1e-3)
    assert gains[-1] == pytest.approx(threshold, rel=0.1)
    assert gains[0] > 1.02 * threshold


def test_a_higher_threshold_needs_a_heavier_subhalo() -> None:
    world = hubble()
    low, high = (sensitivity.sensitivity_map(world, one(world), d, grid_step=9) for d in (5, 50))
    both = np.isfinite(low) & np.isfinite(high)
    assert (low[both] < high[both]).all()
    assert both.sum() > 4
    assert not (np.isnan(low) & np.isfinite(high)).any()


def test_thresholds_are_interpolated_in_log_log() -> None:
    masses = np.linspace(6, 10, 5)
    gains = np.stack([3 * 10 ** (2 * (masses - 8)), np.full(5, 1e-3), np.full(5, 1e3), [0, 0, 9, 1, 100]])
    found = sensitivity._threshold(gains, masses, 12.0)
    assert found[0] == pytest.approx(8 + 0.5 * np.log10(4))
    assert np.isnan(found[1])
    assert found[2] == 6
    assert 9 < found[3] < 10


@pytest.mark.skipif("tnfw" not in MASS, reason="no truncated NFW in this version")
def test_a_diffuse_subhalo_is_harder_to_see_than_a_point() -> None:
    world = hubble()
    scene, x, y, m = one(world), *(torch.tensor([v], dtype=torch.float64) for v in (0.88, 1.28, 9.0))
    point, diffuse = (
        sensitivity.log_likelihood_gain(world, scene, m, x, y, profile=p)[0] for p in ("point_mass", "tnfw")
    )
    assert 0 < diffuse < point / 3


def test_figures_are_drawn() -> None:
    matplotlib.use("Agg")
    grid = np.linspace(-24, -22, 5)
    sigma = {k: np.full((5, 3), v) * np.arange(1, 6)[:, None] for k, v in (("known", 1), ("recipe", 2), ("all", 3))}
    figure = information_plots.bounds({"a": information.Bounds(grid, sigma)}, "log10 m", prior=0.577)
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [3, 2, 1, 0.577]
    depth = np.full((4, 4), np.nan)
    depth[1, 2] = 8.0
    row = information_plots.Mapped("m", np.random.default_rng(0).random((8, 8)), 2.0, {"map": depth}, 0.9)
    figure = information_plots.sensitivity([row, row])
    assert np.ma.getmaskarray(figure.axes[1].images[0].get_array()).sum() == 15
