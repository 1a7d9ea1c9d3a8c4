"""Moffat and pixel-kernel PSFs: flux, width, and the same as SciPy and lenstronomy."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.modeling.models import Moffat1D
from numpy.typing import NDArray
from scipy import ndimage

from deeplense import config
from deeplense.errors import UserError
from deeplense.sim import image, psf, reference
from deeplense.sim.instrument import INSTRUMENTS
from deeplense.sim.observe import observe_block
from deeplense.sim.world import World


def world(spec: dict[str, Any] | None, **simulation: Any) -> World:
    tree = config.to_tree(config.load_recipe("model_2"))
    tree["simulation"] |= {"psf": spec, **simulation}
    return World(config.load_recipe(tree).simulation)


def kernel(side: int, seed: int = 0) -> NDArray[np.float64]:
    """Lopsided, so that a transposed or mirrored convolution shows."""
    return np.random.default_rng(seed).random((side, side)) ** 4


def kernels(folder: Path) -> Path:
    np.save(folder / "a.npy", 3 * kernel(5))
    np.save(folder / "b.npy", kernel(9, 1))
    fits.writeto(folder / "c.fits", kernel(7, 2))
    return folder


@pytest.mark.parametrize(("side", "size"), [(1, 20), (5, 20), (9, 33), (25, 16)])
def test_convolution_is_scipys(side: int, size: int) -> None:
    scene = torch.from_numpy(np.random.default_rng(1).random((3, size, size)))
    each = torch.from_numpy(np.stack([kernel(side, s) for s in range(3)]))
    pairs = zip(scene.numpy(), each.numpy(), strict=True)
    expected = np.stack([ndimage.convolve(one, k, mode="nearest") for one, k in pairs])
    np.testing.assert_allclose(psf.convolve(scene, each).numpy(), expected, rtol=1e-10)
    in_float = psf.convolve(scene.float(), each).double().numpy()
    np.testing.assert_allclose(in_float, expected, atol=1e-6 * expected.max())


@pytest.mark.parametrize("beta", [2.5, 4.765])
def test_moffat_has_its_width_its_wings_and_unit_sum(beta: float) -> None:
    made = psf.moffat(20.0, beta)
    assert float(made.sum()) == pytest.approx(1, abs=1e-12)
    line = made[len(made) // 2].numpy()
    r = np.arange(len(line)) - len(line) // 2
    expected = Moffat1D(gamma=10 / (2 ** (1 / beta) - 1) ** 0.5, alpha=beta)
    assert expected.fwhm == pytest.approx(20)
    np.testing.assert_allclose(line / line.max(), expected(r), rtol=1e-10)
    assert r.max() == 100


def test_a_star_seen_through_moffats_psf_keeps_its_flux_at_any_supersampling() -> None:
    instrument = dataclasses.replace(INSTRUMENTS["lsst_i"], psf_beta=3.0)
    for supersampling in (1, 3):
        star = torch.zeros(1, 63 * supersampling, 63 * supersampling, dtype=torch.float64)
        star[0, star.shape[1] // 2, star.shape[1] // 2] = supersampling**2
        seen = image._blur(star, instrument, instrument.pixel_scale, supersampling)
        assert float(seen.sum()) == pytest.approx(1, abs=1e-10)
        # half of the flux lies within alpha sqrt(2^(1/(beta-1)) - 1)
        alpha = 0.71 / (2 * (2 ** (1 / 3) - 1) ** 0.5)
        offset = (torch.arange(63, dtype=torch.float64) - 31) * 0.2
        r = torch.hypot(offset[:, None], offset)
        inside = float(seen[0][r < 1.5].sum())
        assert inside == pytest.approx(1 - (1 + (1.5 / alpha) ** 2) ** -2, abs=0.02)


def test_a_gaussian_of_the_recipe_is_an_instruments_gaussian() -> None:
    own, wide = world(None), world({"gaussian": 0.4})
    assert wide.instrument == dataclasses.replace(own.instrument, psf_fwhm=0.4)
    assert torch.equal(
        observe_block(world({"gaussian": 0.16}), 0, "t", 0, 3).images, observe_block(own, 0, "t", 0, 3).images
    )
    assert not torch.equal(observe_block(wide, 0, "t", 0, 3).images, observe_block(own, 0, "t", 0, 3).images)


@pytest.mark.parametrize("supersampling", [1, 2])
def test_pixel_kernels_agree_with_lenstronomy(tmp_path: Path, supersampling: int) -> None:
    """lenstronomy takes the sky beyond the border for dark, so a strip as wide as the kernel is left out."""
    w = world({"kernels": str(kernels(tmp_path))}, supersampling=supersampling)
    scene = w.scenes(0, "train", 0)[1][:6]
    assert len(set(scene.truth["psf"].tolist())) == 3
    args = (w.size, w.pixel_scale, w.instrument, supersampling)
    theirs = reference.render(scene, *args)[..., 5:-5, 5:-5]
    for dtype, bar in ((torch.float64, 1e-6), (torch.float32, 2e-5)):
        ours = image.render(scene.to("cpu", dtype), *args)[..., 5:-5, 5:-5]
        assert float((ours - theirs).abs().max() / theirs.max()) <= bar
    gaussian = image.render(dataclasses.replace(scene, psf=None).to("cpu", torch.float64), *args)[..., 5:-5, 5:-5]
    assert float((gaussian - theirs).abs().max() / theirs.max()) > 0.01


def test_moffat_agrees_with_lenstronomy_given_its_kernel() -> None:
    w = world({"moffat": [0.3, 3.0]})
    scene = w.scenes(0, "train", 0)[0][:2].to("cpu", torch.float64)
    args = (w.size, w.pixel_scale, w.instrument)
    ours, theirs = (r(scene, *args)[..., 18:-18, 18:-18] for r in (image.render, reference.render))
    assert float((ours - theirs).abs().max() / theirs.max()) <= 1e-6


def test_kernels_are_normalised_kept_central_and_drawn_for_each_image(tmp_path: Path) -> None:
    found = psf.read_kernels(str(kernels(tmp_path)))
    assert found.shape == (3, 9, 9)
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-12)
    np.testing.assert_allclose(found[0, 2:7, 2:7], kernel(5) / kernel(5).sum())
    w = world({"kernels": str(tmp_path)})
    assert [t.name for t in w.truth if t.name == "psf"] == ["psf"]
    scene = w.scenes(3, "train", 2)[0]
    assert torch.equal(scene.psf, found[scene.truth["psf"].long()])
    assert torch.equal(observe_block(w, 0, "t", 0, 7).images[:4], observe_block(w, 0, "t", 0, 4).images)


def test_image_through_a_kernel_is_differentiable(tmp_path: Path) -> None:
    w = world({"kernels": str(kernels(tmp_path))})
    scene = w.scenes(0, "train", 0)[0][:1].to("cpu", torch.float64)
    amp = scene.source[0].params["amp"].clone().requires_grad_(True)
    scene.source[0].params["amp"] = amp
    total = image.render(scene, 32, 0.2, w.instrument).sum()
    (slope,) = torch.autograd.grad(total, amp)
    assert float(slope) * float(amp.detach()) == pytest.approx(float(total.detach()), rel=1e-10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((4, 4)), "a.npy: 4 x 4 pixels"),
        (np.ones((5, 3)), "a.npy: 5 x 3 pixels"),
        (-np.ones((5, 5)), "a.npy: its sum is -25"),
        (np.zeros((5, 5)), "a.npy: its sum is 0"),
        (np.full((5, 5), np.inf), "a.npy: holds NaN or infinite"),
    ],
)
def test_a_bad_kernel_is_named_in_one_line(tmp_path: Path, content: NDArray[np.float64], message: str) -> None:
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(UserError, match=message) as error:
        world({"kernels": str(tmp_path)})
    assert str(error.value).startswith("simulation.psf: ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"moffatt": [0.7, 3]}, "did you mean 'moffat'"),
        ({"moffat": 0.7}, "moffat: \\[fwhm, beta\\]"),
        ({"moffat": [0.7, 1.0]}, "beta 1 must be above 1"),
        ({"gaussian": -0.1}, r"the FWHM -0.1 must lie in \[0.001, 100\] arcsec"),
        ({"gaussian": "wide"}, "takes numbers"),
        ({"gaussian": 0.1, "moffat": [0.1, 3]}, "give one of"),
        ({"kernels": "nowhere"}, "no such file or folder"),
    ],
)
def test_psfs_that_make_no_sense(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        world(spec)


def test_a_folder_of_everything_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for k in itertools.count():
            looked.append(k)
            yield str(folder), [f"d{k}"], [f"{k}.npy" for _ in range(99)]

    monkeypatch.setattr("deeplense.sim.files.os.walk", walk)
    with pytest.raises(UserError, match=r"simulation\.psf: .* holds more than 100,000 files; name a folder"):
        psf.read_kernels(str(tmp_path))
    assert len(looked) <= 1001


def test_what_is_no_file_is_passed_over_and_odd_paths_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")  # to open it waits for ever
    (tmp_path / "b.npy").mkdir()
    (tmp_path / "c.npy").symlink_to(tmp_path / "nowhere")
    np.save(tmp_path / "k.npy", np.ones((3, 3)))
    assert psf.read_kernels(str(tmp_path)).shape == (1, 3, 3)
    for path in ("x" * 5000, "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match="no such file or folder") as caught:
            psf.read_kernels(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_kernels_and_widths_that_exhaust_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", np.ones((11, 11)))
    monkeypatch.setattr(psf, "MOST", 2 * 11 * 11 * 8)
    with pytest.raises(UserError, match=r"2\.npy: more than .* of kernels in memory; choose fewer"):
        psf.read_kernels(str(tmp_path))
    for spec in ({"moffat": [99.0, 2.5]}, {"gaussian": 99.0}):
        with pytest.raises(UserError, match=r"simulation\.psf: the FWHM is 980 pixels; at most 200 are possible"):
            World(config.load_recipe("model_2", [f"simulation.psf={spec}"]).simulation)
    with pytest.raises(UserError, match=r"the FWHM 1e\+06 must lie in \[0.001, 100\] arcsec"):
        World(config.load_recipe("model_2", ["simulation.psf={moffat: [1e6, 2]}"]).simulation)
