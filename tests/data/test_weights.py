"""Masks and noise maps beside images: kept out of them, and used where the user asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits
from imported import Imported, refused
from PIL import Image

from deeplense.data.store import Dataset

N = 4
IMAGES = np.random.default_rng(1).normal(5, 1, (N, 20, 20)).astype(np.float32)
NOISE = np.random.default_rng(2).uniform(0.1, 0.2, (N, 20, 20)).astype(np.float32)
MASK = (np.random.default_rng(3).random((N, 20, 20)) < 0.1).astype(np.uint8)
MASKED = np.where(MASK, np.float32(np.nan), IMAGES)


def source(folder: Path, form: str) -> Path:
    folder.mkdir()
    if form == "hdf5":
        with h5py.File(folder / "x.h5", "w") as file:
            file["images"], file["err"], file["dq"] = IMAGES, NOISE, MASK
    elif form == "npz":
        np.savez(folder / "x.npz", images=IMAGES, err=NOISE, dq=MASK)
    for k in range(N):
        maps = {"err": NOISE[k], "dq": MASK[k]}
        if form == "extensions":
            hdus = [fits.ImageHDU(v, name=n.upper()) for n, v in maps.items()]
            fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(IMAGES[k], name="SCI"), *hdus]).writeto(folder / f"{k}.fits")
        if form == "fits":
            for name, pixels in {"sci": IMAGES[k], **maps}.items():
                fits.PrimaryHDU(pixels).writeto(folder / f"{k}_{name}.fits")
        if form == "npy":
            for name, pixels in {"": IMAGES[k], **{f"_{n}": v for n, v in maps.items()}}.items():
                np.save(folder / f"{k}{name}.npy", pixels)
        if form == "groups":
            with h5py.File(folder / "x.h5", "a") as file:
                for name, pixels in {"image": IMAGES[k], **maps}.items():
                    file[f"lens_{k}/{name}"] = pixels
    return folder


def order(got: Imported) -> list[str]:
    assert len(got.image) == N
    return sorted(got.image)


@pytest.mark.parametrize("form", ["extensions", "fits", "npy", "hdf5", "npz", "groups"])
def test_a_mask_and_a_noise_map_are_used_where_they_are_asked_for(tmp_path: Path, form: str) -> None:
    folder = source(tmp_path / "set", form)
    plain = Imported(folder, tmp_path / "plain")
    np.testing.assert_array_equal([plain.image[id][0] for id in order(plain)], IMAGES)
    assert plain.manifest.maps == []
    got = Imported(folder, tmp_path / "out", mask="dq", noise="err")
    np.testing.assert_array_equal([got.image[id][0] for id in order(got)], MASKED)
    assert got.says(f"{N} x pixels marked in 'dq' made NaN")
    assert got.manifest.maps == ["noise"]
    split = Dataset(tmp_path / "out").split("train")
    kept = dict(zip(split.ids, split.maps(np.arange(N))["noise"], strict=True))
    np.testing.assert_array_equal([kept[id] for id in order(got)], NOISE)


def test_a_mask_as_a_picture_beside_a_picture(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pixels = np.rint(10 * IMAGES).astype(np.uint8)
    for k in range(N):
        Image.fromarray(pixels[k]).save(tmp_path / "set" / f"{k}.png")
        Image.fromarray(255 * MASK[k]).save(tmp_path / "set" / f"{k}_mask.png")
    got = Imported(tmp_path / "set", tmp_path / "out", mask="mask")
    expected = np.where(MASK, np.float32(np.nan), pixels.astype(np.float32))
    np.testing.assert_array_equal([got.image[id][0] for id in order(got)], expected)


def test_a_noise_file_of_one_name_in_every_folder(tmp_path: Path) -> None:
    for k in range(N):
        (tmp_path / "set" / f"J{k}").mkdir(parents=True)
        for name, pixels in {"image": IMAGES[k], "noise": np.where(MASK[k], 1e8, NOISE[k])}.items():
            fits.PrimaryHDU(pixels).writeto(tmp_path / "set" / f"J{k}" / f"{name}.fits")
    got = Imported(tmp_path / "set", tmp_path / "out", noise="noise.fits")
    np.testing.assert_array_equal([got.image[id][0] for id in order(got)], MASKED)
    noise = Dataset(tmp_path / "out").split("train").maps(np.arange(N))["noise"]
    assert noise.max() == np.float32(1e8)


def test_noise_of_each_band_follows_its_band_and_the_size(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for k in range(N):
        for b, band in enumerate("rg"):
            for name, pixels in {"sci": IMAGES[k] + b, "err": NOISE[k] + b}.items():
                fits.PrimaryHDU(pixels).writeto(tmp_path / "set" / f"o{k}_{band}_{name}.fits")
    got = Imported(tmp_path / "set", tmp_path / "out", noise="err", size="24")
    assert got.manifest.maps == ["noise_g", "noise_r"]
    split = Dataset(tmp_path / "out").split("train")
    maps = split.maps(np.arange(N))
    for row, id in enumerate(split.ids):
        k = int(next(c for c in id if c.isdigit()))
        for b, band in enumerate("rg"):
            np.testing.assert_array_equal(maps[f"noise_{band}"][row, 2:-2, 2:-2], NOISE[k] + b)
            assert np.isnan(maps[f"noise_{band}"][row, :2]).all()


def test_an_image_without_what_is_asked_for_is_counted(tmp_path: Path) -> None:
    folder = source(tmp_path / "set", "fits")
    (folder / "2_err.fits").unlink()
    got = Imported(folder, tmp_path / "out", noise="err")
    assert got.says("1 x no 'err' beside the image (e.g. 2")
    noise = Dataset(tmp_path / "out").split("train").maps(np.arange(N))["noise"]
    assert np.isnan(noise).all((1, 2)).sum() == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"noise": "sigma"}, "--noise 'sigma': no image has an extension, array or file of this name"),
        ({"mask": "flags"}, "--mask 'flags': no image has"),
        ({"noise": "err", "pixel_scale": 0.1}, "its noise cannot be"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    (tmp_path / "set").mkdir()
    for k in range(N):
        sci = fits.ImageHDU(IMAGES[k], name="SCI")
        sci.header["CDELT1"] = sci.header["CDELT2"] = 0.05 / 3600
        hdus = [fits.PrimaryHDU(), sci, fits.ImageHDU(NOISE[k], name="ERR")]
        fits.HDUList(hdus).writeto(tmp_path / "set" / f"{k}.fits")
    assert why in refused(tmp_path / "set", tmp_path / "out", **options)


def test_a_mask_of_another_shape_costs_its_image(tmp_path: Path) -> None:
    folder = source(tmp_path / "set", "npy")
    np.save(folder / "1_dq.npy", np.zeros((10, 10)))
    got = Imported(folder, tmp_path / "out", mask="dq")
    assert sorted(got.image) == ["0", "2", "3"]
    assert got.says("'dq' has the shape 10x10, the image 1x20x20")
