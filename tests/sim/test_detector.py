"""Correlated noise, cosmic rays, bad pixels, and the noise of subtracted lens light."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deeplense import config
from deeplense.errors import UserError
from deeplense.evaluation.forward import Forward
from deeplense.sim import image
from deeplense.sim.detector import CosmicRays, correlate
from deeplense.sim.observe import observe, observe_block
from deeplense.sim.priors import Prior
from deeplense.sim.scene import Scene
from deeplense.sim.world import World


def world(**simulation: Any) -> World:
    tree = config.to_tree(config.load_recipe("model_2"))
    tree["simulation"] |= simulation
    return World(config.load_recipe(tree).simulation)


def exposed(w: World, clean: torch.Tensor, batch: bool = False) -> torch.Tensor:
    """Images as the detector gives them; `batch`: by the code for GPUs."""
    scene = w.scenes(0, "t", 0)[0][: len(clean)].to("cpu", torch.float32)
    if batch:
        return image._expose_batch(clean, scene, w.instrument, w.pixel_scale, False, 1, "t")
    return image.add_noise(clean, scene, w.instrument, w.pixel_scale, "once", 1, "t")


@pytest.mark.parametrize("length", [0.4, 1.0, 2.5])
def test_correlation_falls_as_a_gaussian_and_keeps_the_noise_of_large_areas(length: float) -> None:
    white = torch.randn(40, 128, 127, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = correlate(white, length)
    k = np.arange(-30, 31)
    kernel = np.exp(-((k / length) ** 2))
    share = ((kernel / kernel.sum()) ** 2).sum() ** 2  # of the variance of white noise, left in a pixel
    assert float(made.var()) == pytest.approx(share, rel=0.03)
    torch.testing.assert_close(made.sum((-2, -1)), white.sum((-2, -1)), rtol=1e-9, atol=1e-9)
    made = made / share**0.5
    for lag in (1, 2, 3):
        # that of the sampled kernel; for a well sampled one exp(-lag²/(2 length²))
        expected = (kernel[lag:] * kernel[:-lag]).sum() / (kernel**2).sum()
        for found in (made[..., lag:] * made[..., :-lag], made[..., lag:, :] * made[..., :-lag, :]):
            assert float(found.mean()) == pytest.approx(expected, abs=0.02)
        if length >= 1:
            assert expected == pytest.approx(np.exp(-(lag**2) / (2 * length**2)), abs=0.02)


@pytest.mark.parametrize("batch", [False, True])
def test_noise_of_background_and_source_is_correlated_alike(batch: bool) -> None:
    w = world(correlated_noise=1.0)
    t = w.instrument.total_exposure
    sigma = w.instrument.background_sigma(w.pixel_scale, t)
    dark = exposed(w, torch.zeros(8, 1, 100, 100), batch)
    areas = torch.nn.functional.avg_pool2d(dark, 20)  # so large that the correlation averages out
    assert float(areas.std()) * 20 == pytest.approx(sigma, rel=0.15)
    assert float(dark.std()) == pytest.approx(sigma / (2 * np.pi) ** 0.5, rel=0.05)
    assert float((dark[..., 1:] * dark[..., :-1]).mean() / dark.var()) == pytest.approx(np.exp(-0.5), abs=0.05)
    rate = 100.0  # counts/s, whose photon noise drowns the background
    bright = exposed(w, torch.full((8, 1, 100, 100), rate), batch) - rate
    assert abs(float(bright.mean())) < 5 * (rate / t / bright.numel()) ** 0.5
    assert float(bright.std()) == pytest.approx((rate / t / (2 * np.pi)) ** 0.5, rel=0.05)
    assert float((bright[..., 1:] * bright[..., :-1]).mean() / bright.var()) == pytest.approx(np.exp(-0.5), abs=0.05)


@pytest.mark.parametrize("batch", [False, True])
def test_bad_pixels_are_their_share_and_nan(batch: bool) -> None:
    seen = exposed(world(bad_pixels=0.03), torch.ones(8, 1, 100, 100), batch)
    assert float(seen.isnan().float().mean()) == pytest.approx(0.03, abs=0.003)
    assert bool(exposed(world(), torch.ones(2, 1, 50, 50), batch).isfinite().all())


def test_cosmic_rays_have_their_number_length_and_charge() -> None:
    rays = CosmicRays(3.0, Prior.parse(20.0, "x"), Prior.parse(1000.0, "x"))
    charge = rays.draw(np.random.default_rng(0), 1000, 100, 100).sum((1, 2)) / 1000
    # of a track near the border a part falls outside: length/(pi side) of all charge
    assert charge.mean() == pytest.approx(3 * (1 - 20 / (np.pi * 100)), abs=5 * (3 / 1000) ** 0.5)
    assert charge.var() == pytest.approx(3, rel=0.2)
    lone = CosmicRays(1.0, Prior.parse(20.0, "x"), Prior.parse(1000.0, "x"))
    tracks = [d for d in lone.draw(np.random.default_rng(1), 200, 100, 100) if abs(d.sum() - 1000) < 0.1]
    spans = []
    for track in tracks:
        i, j = np.nonzero(track)
        spans.append(np.hypot(np.ptp(i), np.ptp(j)))
        assert 14 <= len(i) <= 31  # one pixel wide
    assert np.mean(spans) == pytest.approx(20, abs=1)
    point = CosmicRays(5.0, Prior.parse(0.0, "x"), Prior.parse(1000.0, "x")).draw(np.random.default_rng(2), 50, 64, 64)
    assert set(np.unique(point).tolist()) <= {0.0, 1000.0, 2000.0}


@pytest.mark.parametrize("batch", [False, True])
def test_cosmic_rays_reach_the_image_in_counts_per_second(batch: bool) -> None:
    w = world(cosmic_rays={"rate": 5.0, "length": 5.0, "flux": 1e6})
    clean = torch.zeros(8, 1, 64, 64)
    total = float((exposed(w, clean, batch) - exposed(world(), clean, batch)).sum())
    assert total * w.instrument.total_exposure / 8e6 == pytest.approx(5, abs=3.5)


def test_an_image_is_the_same_in_any_batch() -> None:
    w = world(correlated_noise=0.7, bad_pixels=0.01, cosmic_rays={"rate": 3.0})
    whole, part = observe_block(w, 7, "train", 1, 40).images, observe_block(w, 7, "train", 1, 11).images
    assert torch.equal(whole[:11].nan_to_num(-1e9), part.nan_to_num(-1e9))
    scene = w.scenes(7, "train", 1, 40)[0]
    assert torch.equal(
        observe(w, scene[2:3], 7, "train")[0].nan_to_num(-9), whole[int(scene.index[2]) - 256].nan_to_num(-9)
    )
    assert not torch.equal(observe_block(w, 8, "train", 1, 11).images, part)


@pytest.mark.parametrize(
    ("simulation", "message"),
    [
        ({"bad_pixels": 1.0}, "simulation.bad_pixels"),
        ({"correlated_noise": -1.0}, "simulation.correlated_noise"),
        ({"cosmic_rays": {"rate": -1.0}}, "simulation.cosmic_rays.rate"),
        ({"cosmic_rays": {"flux": -1.0}}, "simulation.cosmic_rays.flux"),
        ({"cosmic_rays": {"length": {"uniform": [1, 1e6]}}}, "simulation.cosmic_rays.length"),
        ({"bad_pixels": 0.1, "noise": "none"}, "simulation.noise: none has no detector"),
        ({"lens_light_residual": 0.1}, "simulation.lens_light_residual: there is no lens_light"),
    ],
)
def test_detectors_that_make_no_sense(simulation: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        world(**simulation)


LIGHT = {"magnitude": 17.0, "R_sersic": 0.8, "n_sersic": 2.0}


def clean(w: World, n: int = 3) -> torch.Tensor:
    scene = w.scenes(0, "t", 0)[0][:n].to("cpu", torch.float64)
    return image.render(scene, w.size, w.pixel_scale, w.instrument)


def test_a_residual_is_its_share_of_the_lens_light() -> None:
    whole, none = clean(world(lens_light=LIGHT)), clean(world())
    for share in (0.0, 0.1, -0.05, 1.0):
        left = clean(world(lens_light=LIGHT, lens_light_residual=share))
        torch.testing.assert_close(left, none + share * (whole - none), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, -0.1])
def test_subtracted_light_leaves_its_noise(share: float) -> None:
    w = world(lens_light=LIGHT, lens_light_residual=share)
    one = w.scenes(0, "t", 0)[0][:1].to("cpu", torch.float32)
    many = Scene(**{**vars(one[torch.zeros(300, dtype=torch.long)]), "index": torch.arange(300)})
    args = (w.size, w.pixel_scale, w.instrument)
    mean = image.render(one, *args)
    noisy = image.add_noise(mean.expand(300, -1, -1, -1), many, w.instrument, w.pixel_scale, "once", 0, "t")
    whole = clean(world(lens_light=LIGHT), 1)
    t = w.instrument.total_exposure
    sigma = (whole / t + w.instrument.background_sigma(w.pixel_scale, t) ** 2).sqrt()
    pull = (noisy - mean) / sigma
    assert float(pull.var()) == pytest.approx(1, abs=0.01)
    centre = pull[..., 28:36, 28:36]  # where the lens outshines all else
    assert float(centre.var()) == pytest.approx(1, abs=0.05)
    assert abs(float(centre.mean())) < 0.05


def test_a_residual_that_varies_is_stored() -> None:
    w = world(lens_light=LIGHT, lens_light_residual={"normal": [0.0, 0.02]})
    assert "lens_light_residual" in [t.name for t in w.truth]
    values = w.scenes(0, "t", 0)[0].truth["lens_light_residual"]
    assert float(values.std()) == pytest.approx(0.02, rel=0.3)
    assert bool(torch.isfinite(observe_block(w, 0, "t", 0, 8).images).all())


@pytest.mark.parametrize(
    "simulation",
    [
        {"bad_pixels": 0.1},
        {"lens_light": LIGHT, "lens_light_residual": 0.0},
    ],
)
def test_information_bounds_refuse_what_they_do_not_model(simulation: dict[str, Any]) -> None:
    w = world(**simulation)
    with pytest.raises(UserError, match="no likelihood here"):
        Forward(w, w.scenes(0, "t", 0)[0][:1])


def test_information_bounds_take_correlated_noise_for_white() -> None:
    models = []
    for length in (0.0, 1.0):
        w = world(correlated_noise=length)
        models.append(Forward(w, w.scenes(0, "t", 0)[0][:1]))
    white, correlated = (m.variance(m.render({})) for m in models)
    assert torch.equal(white, correlated)
