"""Rendered images against lenstronomy; the PSF conserves flux; noise has the right mean and variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from deeplense import config, rng
from deeplense.sim import image, reference
from deeplense.sim.instrument import INSTRUMENTS
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

RECIPES = ["model_1", "model_2", "model_3", "legacy/model_1", "legacy/model_2"]


def scenes(name: str, n: int = 2, **changes: object) -> tuple[World, list[Scene]]:
    world = World(config.load_recipe(name, [f"simulation.{k}={v}" for k, v in changes.items()]).simulation)
    return world, [s[:n] for s in world.scenes(5, "oracle", 0)]


@pytest.mark.parametrize(("name", "supersampling"), [(name, 1) for name in RECIPES] + [("model_2", 2), ("model_3", 3)])
def test_agrees_with_lenstronomy(name: str, supersampling: int) -> None:
    """A few scenes; `benchmarks/accuracy.py` takes 200 of each class and instrument."""
    world, drawn = scenes(name, 1)
    for scene in drawn:
        for dtype, bar in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
            moved = scene.to("cpu", dtype)
            for psf in (True, False):
                args = (world.size, world.pixel_scale)
                if psf:
                    ours = image.render(moved, *args, world.instrument, supersampling)
                else:
                    ours = image.unblurred(moved, *args, supersampling)
                theirs = reference.render(scene, *args, world.instrument, supersampling, psf)
                assert float((ours - theirs).abs().max() / theirs.max()) <= bar


def test_lens_light_agrees_with_lenstronomy() -> None:
    tree = config.to_tree(config.load_recipe("model_2"))
    tree["simulation"]["lens_light"] = {
        "magnitude": 19,
        "R_sersic": {"uniform": [0.5, 1]},
        "n_sersic": 4,
        "e1": 0.1,
    }
    world = World(config.load_recipe(tree).simulation)
    scene = world.scenes(0, "oracle", 0)[1][:2].to("cpu", torch.float64)
    ours = image.render(scene, 64, 0.101, world.instrument)
    theirs = reference.render(scene, 64, 0.101, world.instrument)
    assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-6


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_psf_conserves_flux_and_has_its_width(name: str) -> None:
    instrument, size = INSTRUMENTS[name], 189
    star = torch.zeros(1, size, size, dtype=torch.float64)
    star[0, size // 2, size // 2] = 1
    binned = image._blur(star, instrument, instrument.pixel_scale, 3)
    assert float(binned.sum() * 9) == pytest.approx(1, abs=1e-12)
    fine = instrument.pixel_scale / 3
    blurred = image._blur(star, instrument, fine, 1)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-12)
    offset = (torch.arange(size, dtype=torch.float64) - size // 2) * fine
    variance = float((blurred[0].sum(0) * offset**2).sum())
    # a Gaussian cut at 3σ has 0.973 of its variance
    assert variance == pytest.approx((instrument.psf_fwhm / 2.3548) ** 2, rel=0.03)


def test_sky_alone_has_the_background_sigma() -> None:
    for name in ("euclid_vis", "hst_f160w", "gaussian_toy"):
        instrument = INSTRUMENTS[name]
        _, (scene, *_) = scenes("model_2", 1)
        t = instrument.total_exposure
        scene = Scene(**{**vars(scene), "exposure": torch.tensor([t])})
        blank = torch.zeros(1, 1, 300, 300)
        noisy = image.add_noise(blank, scene, instrument, instrument.pixel_scale, "once", 1, "s")
        expected = instrument.background_sigma(instrument.pixel_scale, t)
        assert float(noisy.std()) == pytest.approx(expected, rel=0.02)
        assert abs(float(noisy.mean())) < 4 * expected / 300


@pytest.mark.parametrize("rate", [1e-4, 0.02, 0.049, 0.3, 4.0, 300.0])
def test_poisson_draws(rate: float) -> None:
    """Mean = variance, and the distribution itself, on both sides of the faint limit."""
    draws = image.poisson(np.full((400, 400), rate, np.float32), rng.generator(0, "test"))
    n = draws.size
    assert draws.mean() == pytest.approx(rate, abs=5 * (rate / n) ** 0.5)
    assert draws.var() == pytest.approx(rate, abs=5 * rate * (2 / n + 1 / (n * rate)) ** 0.5)
    top = int(rate + 5 * rate**0.5) + 1
    edges = np.arange(top)
    seen = np.array([(draws == k).sum() for k in edges], float)
    expected = stats.poisson.pmf(edges, rate) * n
    keep = expected > 10
    assert stats.chi2.sf(((seen - expected)[keep] ** 2 / expected[keep]).sum(), keep.sum()) > 1e-4


def test_faint_photons_fall_where_the_light_is() -> None:
    rate = np.linspace(0, 0.04, 200, dtype=np.float32)
    total = sum(image.poisson(rate, rng.generator(1, "test", k)) for k in range(4000))
    expected = 4000 * rate
    assert stats.chi2.sf((((total - expected)[1:]) ** 2 / expected[1:]).sum(), 199) > 1e-4
    assert total[0] == 0


def test_legacy_noise_options() -> None:
    world, (scene, *_) = scenes("legacy/model_1", 4)
    clean = image.render(scene.to("cpu", torch.float32), world.size, world.pixel_scale, world.instrument)
    noisy = {
        kind: image.add_noise(clean, scene, world.instrument, world.pixel_scale, kind, 0, "s") for kind in image.NOISE
    }
    torch.testing.assert_close(noisy["none"], clean, rtol=0, atol=0)
    torch.testing.assert_close(noisy["doubled"], 2 * clean, rtol=0, atol=0)
    assert torch.equal(noisy["triple"], noisy["triple"].round())
    assert float(noisy["triple"].min()) == 0
    t = scene.exposure[:, None, None, None]
    bright = clean * t > 100
    # once: variance I t + (0.01 t)²; triple: the source noise enters twice
    pull = lambda counts, variance: ((counts - clean * t) / variance**0.5)[bright].std()  # noqa: E731
    assert float(pull(noisy["once"] * t, clean * t + (0.01 * t) ** 2)) == pytest.approx(1, abs=0.03)
    assert float(pull(noisy["triple"], 2 * clean * t + (0.01 * t) ** 2)) == pytest.approx(1, abs=0.03)


def test_image_is_differentiable() -> None:
    world, (_, _, scene) = scenes("model_2", 1)
    scene = scene.to("cpu", torch.float64)
    line = scene.mass[-1].params
    log_m = torch.tensor([[-23.3]], dtype=torch.float64, requires_grad=True)
    args = (32, 0.15, world.instrument)

    def total(log_m: torch.Tensor) -> torch.Tensor:
        line["half_length"] = 0.03 * 10 ** (-22 - log_m)
        return (image.render(scene, *args) ** 2).sum()

    (slope,) = torch.autograd.grad(total(log_m), log_m)
    with torch.no_grad():
        finite = (total(log_m + 1e-5) - total(log_m - 1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(finite), rel=1e-5)
