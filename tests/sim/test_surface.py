"""Images with as many rays as the noise asks for, against nine a pixel's side, lenstronomy, and themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplense import config
from deeplense.sim import image, reference, surface
from deeplense.sim.scene import Scene
from deeplense.sim.world import World

# so that nine rays a side of a pixel are quick; `benchmarks/sampling.py` has halos of all masses, on a mass grid
FEW_HALOS = ["simulation.classes.cdm.mass=[1.0e9,1.0e10]", "simulation.mesh=false"]
CONVERGED = {
    "realistic/hst": FEW_HALOS,
    "realistic/euclid": FEW_HALOS,
    "realistic/lsst": FEW_HALOS,
    "model_1": [],
    "model_2": [],
    "model_3": [],
    "model_4": FEW_HALOS,
}


def world(name: str, folder: Path, *more: str) -> World:
    changes = [*CONVERGED[name], *more]
    if name == "model_4":
        x, y = np.meshgrid(*[np.linspace(-1, 1, 60)] * 2)
        np.save(folder / "disc.npy", np.stack([np.exp(-5 * np.hypot(x, 2 * y))] * 3).astype(np.float32))
        changes.append(f"simulation.source.images={folder}")
    return World(config.load_recipe(name, changes).simulation)


def sigma(w: World, scene: Scene, clean: Tensor) -> Tensor:
    t = scene.exposure.to(clean)[:, None, None, None]
    sky = [i.background_sigma(w.pixel_scale, float(t[0])) ** 2 for i in w.instruments]
    return (torch.tensor(sky)[:, None, None] + clean / t).sqrt()


def chi(w: World, scene: Scene, one: Tensor, other: Tensor) -> Tensor:
    return ((one - other) / sigma(w, scene, other)).square().sum((1, 2, 3)).sqrt()


@pytest.mark.parametrize("name", CONVERGED)
def test_every_recipe_is_converged_and_would_not_be_with_one_ray_a_pixel(name: str, tmp_path: Path) -> None:
    """One scene of each of two classes."""
    w = world(name, tmp_path)
    assert w.simulation.supersampling == "adaptive"
    args = (w.size, w.pixel_scale, w.instruments)
    once = []
    for scene in w.scenes(3, "sampling", 0)[:2]:
        few = scene[:1].to("cpu", torch.float32)
        truth = image.render(few, *args, 9)
        assert float(chi(w, few, image.render(few, *args, "adaptive"), truth)) < 3
        once.append(float(chi(w, few, image.render(few, *args, 1), truth)))
    assert max(once) > (1 if name == "model_1" else 3)


def test_legacy_recipes_keep_their_one_ray_a_pixel() -> None:
    names = ["quickstart", *(f"legacy/{n}" for n in ("model_1", "model_2", "model_3", "model_4", "axion_mass"))]
    for name in names:
        assert config.load_recipe(name).simulation.supersampling == 1


def test_agrees_with_lenstronomys_equal_sub_pixels(tmp_path: Path) -> None:
    w = world("model_2", tmp_path)
    scene = w.scenes(4, "sampling", 0)[0][:1]
    theirs = reference.render(scene, w.size, w.pixel_scale, w.instruments, 7).float()
    ours = image.render(scene.to("cpu", torch.float32), w.size, w.pixel_scale, w.instruments, "adaptive")
    assert float(chi(w, scene, ours, theirs)) < 3


@pytest.mark.parametrize("name", ["realistic/hst", "model_3"])
def test_an_image_does_not_depend_on_its_batch(name: str, tmp_path: Path) -> None:
    w = world(name, tmp_path)
    scene = w.scenes(5, "sampling", 0)[1][:7].to("cpu", torch.float32)
    args = (w.size, w.pixel_scale, w.instruments, "adaptive")
    whole = image.render(scene, *args)
    for row in (0, 3, 6):
        torch.testing.assert_close(image.render(scene[row : row + 1], *args)[0], whole[row], rtol=1e-6, atol=1e-7)


def test_derivatives_pass_through_what_was_selected(tmp_path: Path) -> None:
    """Finite differences of a whole image's square; a selection that changes would show as a jump."""
    w = world("model_3", tmp_path)
    scene = w.scenes(6, "sampling", 0)[0][:1].to("cpu", torch.float64)
    lens = scene.mass[0].params
    start = lens["theta_E"].clone()

    def total(theta_E: Tensor) -> Tensor:
        lens["theta_E"] = theta_E
        return image.render(scene, w.size, w.pixel_scale, w.instruments, "adaptive").square().sum()

    at = start.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(total(at), at)
    with torch.no_grad():
        finite = (total(start + 1e-6) - total(start - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(finite), rel=1e-4)


def test_more_rays_where_the_light_is_and_none_in_the_dark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    w = world("model_3", tmp_path)
    scene = w.scenes(7, "sampling", 0)[0][:2].to("cpu", torch.float32)
    counted = []

    def count(lens: surface._Lens, band: Scene, at: surface._Pixels, n: int) -> Tensor:
        counted.append((len(at.row), n))
        return sample(lens, band, at, n)

    sample = surface._sample
    monkeypatch.setattr(surface, "_sample", count)
    args = (w.size, w.pixel_scale, w.instruments, "adaptive")
    image.render(scene, *args)
    (lit, three), (bright, nine) = counted  # of both images together
    assert (three, nine) == (3, 9)
    assert 0 < bright < lit < 2 * w.size**2
    counted.clear()
    scene.source[0].params["amp"] = 0 * scene.source[0].params["amp"]
    assert float(image.render(scene, *args).abs().max()) == 0
    assert not counted
