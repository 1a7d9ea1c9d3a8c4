"""A foreign image on its way to a bundle: nothing but what the warnings say happens to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deeplense.data.adapt import adapt
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError

Image = NDArray[np.float32]
SKY = 3.0


def info(size: int = 20, channels: int = 1, pixel_scale: float | None = 0.1) -> ImageInfo:
    return ImageInfo(channels, size, size, pixel_scale)


def noise(size: int = 20, channels: int = 1, seed: int = 0) -> Image:
    return np.random.default_rng(seed).standard_normal((channels, size, size)).astype(np.float32)


def star(size: int, x: float = 0.0, y: float = 0.0, width: float = 2.0) -> Image:
    """A Gaussian on a sky of `SKY`, (x, y) pixels off the centre."""
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    return (SKY + 10 * np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * width**2)))[None].astype(np.float32)


def centroid(image: Image, pixel_scale: float) -> tuple[float, float]:
    """Of the light above the sky, arcsec from the centre."""
    light = image[0].astype(float) - image[0].min()
    row, column = np.mgrid[: light.shape[0], : light.shape[1]] - (light.shape[0] - 1) / 2
    return tuple(float((light * axis).sum() / light.sum() * pixel_scale) for axis in (column, row))  # type: ignore[return-value]


def test_an_image_that_fits_passes_unchanged_and_in_silence() -> None:
    image = noise(channels=2)
    for scale in (0.1, 0.1005):  # within a hundredth the scale is the same
        out, warnings = adapt(image, scale, info(channels=2))
        np.testing.assert_array_equal(out, image)
        assert warnings == []
        assert out.dtype == np.float32


@pytest.mark.parametrize(("mine", "wanted"), [(None, 0.1), (0.1, None), (None, None)])
def test_an_unknown_pixel_scale_is_told_and_changes_no_pixel(mine: float | None, wanted: float | None) -> None:
    out, warnings = adapt(noise(), mine, info(pixel_scale=wanted))
    np.testing.assert_array_equal(out, noise())
    assert warnings == ["pixel scale unknown"]


def test_missing_pixels_become_the_sky_of_their_channel() -> None:
    image = np.concatenate([star(20), 5 * star(20)])
    image[0, 8:12, 8:12] = np.nan
    image[1, 0, 0] = np.inf
    out, warnings = adapt(image, 0.1, info(channels=2))
    frame = np.ones((20, 20), dtype=bool)
    frame[1:-1, 1:-1] = False
    np.testing.assert_allclose(out[0, 8:12, 8:12], np.median(image[0][frame]))
    np.testing.assert_allclose(out[1, 0, 0], np.median(image[1][frame & np.isfinite(image[1])]))
    untouched = np.isfinite(image)
    np.testing.assert_array_equal(out[untouched], image[untouched])
    assert warnings == [f"{17 / 800:.1%} of the pixels are NaN"]


def test_the_sky_comes_from_the_whole_image_where_the_border_is_missing() -> None:
    image = noise()
    image[0, :1] = image[0, -1:] = image[0, :, :1] = image[0, :, -1:] = np.nan
    out, _ = adapt(image, 0.1, info())
    np.testing.assert_allclose(out[0, 0, 0], np.nanmedian(image))
    assert np.isfinite(out).all()


def test_a_larger_image_is_cropped_and_a_smaller_one_padded_about_the_centre() -> None:
    image = noise(26)
    out, warnings = adapt(image, 0.1, info())
    np.testing.assert_array_equal(out, image[:, 3:23, 3:23])
    assert warnings == ["cropped from 26x26 to 20x20 pixels"]
    image = noise(12)
    out, warnings = adapt(image, 0.1, info())
    np.testing.assert_array_equal(out[:, 4:16, 4:16], image)
    frame = np.ones((12, 12), dtype=bool)
    frame[1:-1, 1:-1] = False
    out[:, 4:16, 4:16] = np.nan
    np.testing.assert_allclose(out[np.isfinite(out)], np.median(image[0][frame]))
    assert warnings == ["padded from 12x12 to 20x20 pixels"]


def test_an_oblong_image_is_cropped_one_way_and_padded_the_other() -> None:
    image = noise(30)[:, 9:21]  # 12 x 30
    out, warnings = adapt(image, 0.1, info())
    np.testing.assert_array_equal(out[:, 4:16], image[:, :, 5:25])
    assert warnings == ["cropped from 12x30 to 20x20 pixels"]


@pytest.mark.parametrize("scale", [0.05, 0.04, 0.13, 0.2])
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (3.0, -2.0)])
def test_resampling_keeps_the_flux_above_the_sky_and_its_place(scale: float, x: float, y: float) -> None:
    # the light fits well into the 40 wanted pixels of 0.1 arcsec
    pixels = 2 * math.ceil(3.6 / scale / 2)
    image = star(pixels, x * 0.1 / scale, y * 0.1 / scale, width=0.25 / scale)
    out, warnings = adapt(image, scale, info(40))
    ratio = 0.1 / scale
    light = image.astype(float).sum() - SKY * image.size
    assert out.astype(float).sum() - SKY * ratio**2 * out.size == pytest.approx(light, rel=1e-5)
    assert centroid(out, 0.1) == pytest.approx((x * 0.1, y * 0.1), abs=2e-3)
    # a larger pixel holds more sky
    assert out[0, 0, 0] == pytest.approx(SKY * ratio**2, rel=1e-5)
    assert warnings[0] == f"resampled from {scale:g} to 0.1 arcsec/pixel"


def test_two_pixels_become_the_sum_of_their_four() -> None:
    image = noise(40)
    out, warnings = adapt(image, 0.05, info(20))
    np.testing.assert_allclose(out[0], image[0].reshape(20, 2, 20, 2).sum((1, 3)), rtol=1e-5, atol=1e-5)
    assert warnings == ["resampled from 0.05 to 0.1 arcsec/pixel"]


@given(st.integers(5, 40), st.integers(5, 40), st.floats(0.02, 0.5), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_even_sky_of_any_size_and_scale_stays_even(height: int, width: int, scale: float, channels: int) -> None:
    image = np.full((channels, height, width), SKY, dtype=np.float32)
    image[:, height // 2, width // 2] = np.nan
    out, warnings = adapt(image, scale, info(16, channels))
    assert out.shape == (channels, 16, 16)
    same = math.isclose(scale, 0.1, rel_tol=0.01)
    np.testing.assert_allclose(out, SKY * (1.0 if same else (0.1 / scale) ** 2), rtol=1e-4)
    assert any("NaN" in text for text in warnings)
    assert any("resampled" in text for text in warnings) != same


def test_the_size_that_is_told_is_that_of_the_field() -> None:
    _, warnings = adapt(noise(60), 0.05, info(20))
    assert warnings[1] == "cropped from 30x30 to 20x20 pixels"
    _, warnings = adapt(noise(20), 0.05, info(20))
    assert warnings[1] == "padded from 10x10 to 20x20 pixels"


def test_what_cannot_be_adapted_is_an_error() -> None:
    with pytest.raises(UserError, match="3 channels, the bundle takes 1"):
        adapt(noise(channels=3), 0.1, info())
    image = noise(channels=2)
    image[1] = np.nan
    with pytest.raises(UserError, match="a channel without a finite pixel"):
        adapt(image, 0.1, info(channels=2))
