"""Clumps and galaxy images: the flux stays, they lie where the light is, and lenstronomy sees the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from deeplense import config
from deeplense.errors import UserError
from deeplense.lensing import light, raytrace
from deeplense.lensing.raytrace import Component
from deeplense.sim import image, reference
from deeplense.sim.observe import observe_block
from deeplense.sim.source import KEPT_APART, LARGEST, read_images
from deeplense.sim.world import World

MAGNITUDE = 20.0
EMPTY = {"theta_E": 0.0, "mass": None, "gamma1": 0.0, "gamma2": 0.0}  # no lens


def world(source: dict[str, Any], lens: dict[str, Any] | None = None, **simulation: Any) -> World:
    tree = config.to_tree(config.load_recipe("model_2"))
    tree["simulation"] |= {"classes": {"no_sub": {"population": "none"}}, **simulation}
    tree["simulation"]["source"] |= {"magnitude": MAGNITUDE, **source}
    tree["simulation"]["lens"] |= lens or {}
    return World(config.load_recipe(tree).simulation)


def galaxy(side: int = 61, wide: int | None = None, spots: int = 3, seed: int = 0) -> NDArray[np.float64]:
    """A smooth galaxy with spots, dark at the border."""
    rng = np.random.default_rng(seed)
    wide = wide or side
    y, x = np.mgrid[:side, :wide] - np.array([side - 1, wide - 1])[:, None, None] / 2
    made = np.exp(-(x**2 + 2 * y**2) / (side / 8) ** 2)
    for cx, cy in rng.normal(0, side / 12, (spots, 2)):
        made += 0.5 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (side / 25) ** 2)
    return made


def folder(tmp_path: Path, n: int = 10) -> Path:
    for k in range(n):
        np.save(tmp_path / f"galaxy_{k:02d}.npy", 7 + galaxy(seed=k))
    return tmp_path


# clumps


@pytest.mark.parametrize("brightness", [{"magnitude": MAGNITUDE}, {"amplitude": 3.0, "magnitude": None}])
def test_clumps_leave_the_total_flux_as_it_is(brightness: dict[str, Any]) -> None:
    shape = {"R_sersic": {"uniform": [0.2, 0.6]}, "n_sersic": {"uniform": [0.7, 4]}, **brightness}
    smooth = world(shape).scenes(0, "train", 0)[0]
    clumpy = world(shape | {"clumps": {"uniform": [0, 9]}, "clump_flux": {"uniform": [0.1, 0.9]}})
    scene = clumpy.scenes(0, "train", 0)[0]

    def flux(components: list[Component]) -> torch.Tensor:
        total = torch.zeros(256, dtype=torch.float64)
        for c in components:
            each = light.sersic_flux(c.params["amp"], c.params["R_sersic"], c.params["n_sersic"])
            total += (each if c.mask is None else each * c.mask).sum(1)
        return total

    torch.testing.assert_close(flux(scene.source), flux(smooth.source), rtol=1e-10, atol=0)
    share = flux(scene.source[1:]) / flux(scene.source)
    number = scene.truth["source.clumps"]
    assert set(number.tolist()) == set(range(10))
    torch.testing.assert_close(share, torch.where(number > 0, scene.truth["source.clump_flux"], 0 * share))
    names = [t.name for t in clumpy.truth]
    assert "source.clumps" in names
    assert "source.clump_flux" in names
    assert clumpy.truth_row(scene)[:, names.index("source.clumps")].tolist() == number.tolist()


@pytest.mark.parametrize("n_sersic", [1.0, 4.0])
def test_clumps_follow_the_light_of_their_galaxy(n_sersic: float) -> None:
    """Half of them lie within the radius that holds half the flux, at any angle of the ellipse."""
    w = world({"clumps": 40, "n_sersic": n_sersic, "R_sersic": 0.5, "e1": 0.3, "e2": -0.1, "center_x": 0.2})
    host, clumps = w.scenes(1, "train", 0)[0].source
    dx, dy = (clumps.params[f"center_{k}"] - host.params[f"center_{k}"] for k in "xy")
    e1, e2 = host.params["e1"], host.params["e2"]
    c, angle = torch.hypot(e1, e2), torch.atan2(e2, e1) / 2
    q = (1 - c) / (1 + c)
    along = torch.sqrt(q) * (dx * torch.cos(angle) + dy * torch.sin(angle))
    across = (dy * torch.cos(angle) - dx * torch.sin(angle)) / torch.sqrt(q)
    radius, phase = torch.hypot(along, across).ravel().numpy(), torch.atan2(across, along).ravel().numpy()
    b = 1.9992 * n_sersic - 0.3271
    inside = stats.gamma(2 * n_sersic).cdf(b * (radius / 0.5) ** (1 / n_sersic))
    assert stats.kstest(inside, "uniform").pvalue > 0.01
    assert stats.kstest(phase, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01
    assert np.median(radius) == pytest.approx(0.5, rel=0.05)


def test_clumpy_images_agree_with_lenstronomy_and_do_not_depend_on_the_block() -> None:
    w = world({"clumps": {"poisson": 5}, "clump_size": {"uniform": [0.1, 0.3]}})
    scene = w.scenes(0, "train", 0)[0][:3].to("cpu", torch.float64)
    args = (w.size, w.pixel_scale, w.instrument)
    ours, theirs = image.render(scene, *args), reference.render(scene, *args)
    assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-6
    assert torch.equal(observe_block(w, 0, "train", 0, 9).images[:5], observe_block(w, 0, "train", 0, 5).images)


# images of galaxies


def test_an_image_is_lenstronomys_interpolation() -> None:
    """Turned, mirrored, off centre, oblong, and zero outside."""
    pixels = torch.from_numpy(galaxy(31, 24))[None, None]
    for angle, flip in ((0.0, 1.0), (0.7, 1.0), (2.5, -1.0)):
        one = {"amp": 2.0, "scale": 0.07, "angle": angle, "flip": flip, "center_x": 0.3, "center_y": -0.2}
        params = {k: torch.full((1, 1), v, dtype=torch.float64) for k, v in one.items()} | {"pixels": pixels}
        model, kwargs = reference._light_model([Component("image", params)], 0)
        x, y = np.random.default_rng(0).uniform(-1.6, 1.6, (2, 3000))
        ours = raytrace.brightness(*(torch.from_numpy(v)[None, None] for v in (x, y)), [Component("image", params)])
        expected = model.surface_brightness(x, y, kwargs)
        np.testing.assert_allclose(ours[0, 0].numpy(), expected, atol=1e-12)
        assert 0.1 < (expected == 0).mean() < 0.9


def test_without_a_lens_the_flux_is_the_magnitudes(tmp_path: Path) -> None:
    w = world({"images": str(folder(tmp_path)), "image_width": {"uniform": [2, 3]}, "center_x": 0.1}, EMPTY)
    scene = w.scenes(0, "train", 0)[0][:20].to("cpu", torch.float64)
    total = image.render(scene, w.size, w.pixel_scale, w.instrument, 2).sum((1, 2, 3))
    expected = 10 ** (-0.4 * (MAGNITUDE - w.instrument.zero_point))
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-3)
    by_flux = world({"images": str(tmp_path), "amplitude": 5.0, "magnitude": None, "center_x": 0.1}, EMPTY)
    scene = by_flux.scenes(0, "train", 0)[0][:5].to("cpu", torch.float64)
    total = image.render(scene, w.size, w.pixel_scale, w.instrument, 2).sum((1, 2, 3))
    np.testing.assert_allclose(total.numpy(), 5.0, rtol=1e-3)


def test_lensed_galaxies_agree_with_lenstronomy_in_both_precisions(tmp_path: Path) -> None:
    w = world({"images": str(folder(tmp_path)), "image_width": 1.5}, {"theta_E": 1.0, "mass": None})
    scene = w.scenes(0, "train", 0)[0][:4]
    args = (w.size, w.pixel_scale, w.instrument)
    theirs = reference.render(scene, *args)
    for dtype, bar in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
        ours = image.render(scene.to("cpu", dtype), *args)
        assert float((ours - theirs).abs().max() / theirs.max()) <= bar


def test_a_galaxys_image_is_differentiable_in_the_lens(tmp_path: Path) -> None:
    w = world({"images": str(folder(tmp_path)), "image_width": 2.0}, {"theta_E": 1.0, "mass": None})
    scene = w.scenes(0, "train", 0)[0][:1].to("cpu", torch.float64)
    theta_E = scene.mass[0].params["theta_E"].clone().requires_grad_(True)

    def total(value: torch.Tensor) -> torch.Tensor:
        scene.mass[0].params["theta_E"] = value
        return (image.render(scene, 32, 0.15, w.instrument) ** 2).sum()

    (slope,) = torch.autograd.grad(total(theta_E), theta_E)
    with torch.no_grad():
        finite = (total(theta_E + 1e-7) - total(theta_E - 1e-7)) / 2e-7
    assert float(slope) == pytest.approx(float(finite), rel=1e-5)


def test_training_shares_no_galaxy_with_other_splits(tmp_path: Path) -> None:
    w = world({"images": str(folder(tmp_path, 10))})

    def seen(stream: str) -> set[float]:
        return set(w.scenes(0, stream, 0)[0].truth["source.image"].tolist())

    assert seen("train") == seen("train/3") == {0, 1, 2, 3, 5, 6, 7, 8}
    assert seen("val") == seen("test") == {4, 9}
    names = [t.name for t in w.truth]
    assert {"source.image", "source.angle", "source.flip"} <= set(names)
    few = world({"images": str(folder(tmp_path / "few" if (tmp_path / "few").mkdir() is None else tmp_path, 2))})
    assert set(few.scenes(0, "val", 0)[0].truth["source.image"].tolist()) == {0, 1}
    assert KEPT_APART == 5


def test_every_form_of_picture_gives_the_same_galaxy(tmp_path: Path) -> None:
    picture = (200 * galaxy(40)).round()
    forms = [tmp_path / name for name in ("a.npy", "b.fits", "c.h5", "d.png", "e.npy", "f.npy")]
    np.save(forms[0], picture)
    fits.writeto(forms[1], picture.astype(np.float32))
    with h5py.File(forms[2], "w") as file:
        file["images"] = np.stack([picture, picture])
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(forms[3])
    np.save(forms[4], np.stack([picture] * 3))
    np.save(forms[5], np.stack([picture] * 3, -1))
    expected = read_images(str(forms[0]), "x").pixels[0]
    for form in (forms[1], forms[2], forms[4], forms[5]):
        torch.testing.assert_close(read_images(str(form), "x").pixels[-1], expected)
    assert len(read_images(str(forms[2]), "x").sides) == 2
    np.save(forms[0], picture.clip(0, 255))
    png = read_images(str(forms[3]), "x").pixels[0, 0]
    torch.testing.assert_close(png, torch.from_numpy(np.load(forms[0]) / np.load(forms[0]).sum()).float())
    whole = read_images(str(tmp_path), "y")
    assert len(whole.sides) == 7
    np.testing.assert_allclose(whole.pixels.sum((2, 3)), 1, rtol=1e-5)


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", galaxy(40))
    first = read_images(str(tmp_path), "x")
    assert read_images(str(tmp_path), "x") is first
    np.save(tmp_path / "b.npy", galaxy(30))
    assert len(read_images(str(tmp_path), "x").sides) == 2


def test_large_and_oblong_images_keep_their_flux_and_proportions(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", galaxy(600, 300))
    np.save(tmp_path / "b.npy", galaxy(50))
    images = read_images(str(tmp_path), "x")
    assert images.sides.tolist() == [200, 50]
    assert images.pixels.shape == (2, 1, 200, 200)
    assert max(images.sides) <= LARGEST
    np.testing.assert_allclose(images.pixels.sum((2, 3)), 1, rtol=1e-5)
    y, x = torch.meshgrid(*[torch.arange(200.0) - 99.5] * 2, indexing="ij")
    for axis in (x, y):  # still in the middle
        assert abs(float((images.pixels[0, 0] * axis).sum())) < 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.where(galaxy(20) > 0.9, np.nan, galaxy(20)), "a.npy: holds NaN"),
        ("a.npy", -galaxy(20), "a.npy: no light above"),
        ("a.npy", np.zeros((20, 20)), "a.npy: no light above"),
        ("a.npy", galaxy(5), "a.npy: 5 x 5 pixels; 8 are needed"),
        ("a.npy", np.array(["x"]), "a.npy: not readable"),
        ("a.npy", np.arange(30.0), "a.npy: not readable as a picture"),
        ("a.npy", b"broken", "a.npy: not readable"),
        ("a.fits", b"broken", "a.fits: not readable"),
        ("a.h5", b"broken", "a.h5: not readable"),
        ("a.png", b"broken", "a.png: not readable"),
        ("a.txt", b"nothing", "no picture in"),
    ],
)
def test_a_bad_image_is_named_in_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as error:
        world({"images": str(tmp_path)})
    assert str(error.value).startswith("simulation.source.images: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"images": "nowhere/at/all"}, "simulation.source.images: no such file"),
        ({"clumps": -1}, "simulation.source.clumps is -1.0; it must lie in"),
        ({"clumps": 3, "clump_flux": 1.5}, "simulation.source.clump_flux is 1.5; it must lie in"),
        ({"clumps": 3, "clump_flux": {"normal": [0.5, 0.1]}}, "simulation.source.clump_flux: reaches from -inf"),
        ({"clumps": 3, "clump_size": 0}, "simulation.source.clump_size is 0.0; it must lie in"),
        ({"image_width": 0}, "simulation.source.image_width is 0.0; it must lie in"),
    ],
)
def test_sources_that_make_no_sense(source: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        world(source)


def test_an_image_has_clumps_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"simulation\.source\.clumps"):
        world({"images": str(folder(tmp_path)), "clumps": 2})
