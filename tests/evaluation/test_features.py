"""Features of images against shapes whose features are known, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from deeplense.evaluation import features

Floats = NDArray[np.float64]
SIZE = 64
Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
R, PHI = np.hypot(X, Y), np.arctan2(Y, X)


def measured(name: str, *images: Floats) -> Floats:
    return features.measure(torch.from_numpy(np.stack(images))[:, None])[name]


def gaussian(sigma: float, x: float = 0.0, y: float = 0.0) -> Floats:
    return np.asarray(np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * sigma**2)))


def noise(seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE))


def test_total_flux_is_the_sum_and_fills_unknown_pixels_with_the_mean() -> None:
    image = 5 + noise()
    holed = image.copy()
    holed[3:6, 7:30] = np.nan
    expected = [image.sum(), np.nanmean(holed) * SIZE**2]
    assert measured("total_flux", image, holed)[:, 0] == pytest.approx(expected, rel=1e-12)


def test_half_light_radius_of_a_gaussian_is_1_1774_sigma_on_any_sky() -> None:
    found = measured("half_light_radius", gaussian(3.0), gaussian(6.0) + 7.0)
    assert found == pytest.approx(1.1774 * np.array([[3, 3], [6, 6]]), rel=0.05)


def test_half_light_radius_about_the_centroid_does_not_see_a_shift_but_about_the_centre_does() -> None:
    still, shifted = measured("half_light_radius", gaussian(3.0), gaussian(3.0, x=8.0, y=-5.0))
    assert shifted[1] == pytest.approx(still[1], rel=0.03)
    assert shifted[0] > 2 * still[0]


def test_radial_profile_is_the_mean_in_rings_of_two_pixels() -> None:
    image = gaussian(7.0)
    found = measured("radial_profile", image)[0]
    assert len(found) == features.RINGS
    edge = np.ones((SIZE, SIZE), dtype=bool)
    edge[4:-4, 4:-4] = False
    sky = np.sort(image[edge])[(edge.sum() - 1) // 2]
    scale = np.abs(image - sky).mean()
    for k, value in enumerate(found):
        ring = [image[i, j] - sky for i, j in np.argwhere((2 * k <= R) & (2 * k + 2 > R))]
        assert value == pytest.approx(np.mean(ring) / scale, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["radial_profile", "azimuthal_profile", "blurred", "half_light_radius"])
def test_shapes_do_not_depend_on_brightness_or_sky(name: str) -> None:
    image = gaussian(5.0, 2.0) + 0.01 * noise()
    plain, bright = measured(name, image, 11 * image + 3)
    assert bright == pytest.approx(plain, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("m", features.ORDERS)
def test_azimuthal_profile_finds_the_order_and_amplitude_of_a_wave_at_any_angle(m: int) -> None:
    found = [
        measured("azimuthal_profile", gaussian(9.0) * (1 + 0.4 * np.cos(m * (PHI - angle))))[0] for angle in (0.0, 0.7)
    ]
    profile = measured("azimuthal_profile", gaussian(9.0))[0]
    waves = found[0][:16].reshape(4, 4)
    ring_mean = np.array([gaussian(9.0)[(8 * k <= R) & (8 * k + 8 > R)].mean() for k in range(4)])
    expected = 0.4 * ring_mean / np.abs(gaussian(9.0)).mean()
    assert waves[m - 1, 1:3] == pytest.approx(expected[1:3], rel=0.05)
    assert np.delete(waves, m - 1, 0)[:, 1:3].max() < 0.05 * expected[1]
    assert found[1][4 * m - 3 : 4 * m - 1] == pytest.approx(found[0][4 * m - 3 : 4 * m - 1], rel=0.05)
    assert profile[16:] == pytest.approx(np.full(8, profile[16:].mean()), rel=0.05)  # pixels on the diagonals


def test_sectors_see_which_side_is_bright() -> None:
    sectors = measured("azimuthal_profile", gaussian(9.0) * (1 + 0.5 * np.sign(X)))[0, 16:]
    assert sectors[2:6] == pytest.approx(3 * np.concatenate([sectors[:2], sectors[6:]]), rel=0.01)


def test_blurred_is_the_mean_of_8_by_8_blocks() -> None:
    image = gaussian(6.0, 3.0, -9.0)
    found = measured("blurred", image)[0]
    blocks = np.array([image[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for i in range(8) for j in range(8)])
    blocks -= blocks.min()
    assert (found - found.min()) / found.max() == pytest.approx(blocks / blocks.max(), abs=1e-4)


@pytest.mark.parametrize("radius", [9.3, 16.0, 21.8])
def test_einstein_radius_of_a_noisy_ring_with_a_faint_lens_is_its_radius(radius: float) -> None:
    ring = np.exp(-((R - radius) ** 2) / (2 * 1.5**2))
    peak, flux_peak, _ = measured("einstein_radius", ring + 0.02 * noise())[0]
    assert (peak, flux_peak) == (pytest.approx(radius, abs=0.3), pytest.approx(radius, abs=0.4))
    with_lens = measured("einstein_radius", ring + 1.5 * gaussian(1.5) + 0.02 * noise())[0]
    assert with_lens[1] == pytest.approx(radius, abs=0.4)
    mean = measured("einstein_radius", ring + 0.001 * noise())[0, 2]
    assert mean == pytest.approx((ring * R).sum() / ring.sum(), rel=0.02)


@pytest.mark.parametrize("sigma", [0.1, 4.0])
def test_noise_level_measures_noise_and_sky_under_a_lens(sigma: float) -> None:
    found = measured("noise_level", 50 * gaussian(5.0) + sigma * noise() + 3.0)[0]
    assert found == pytest.approx([sigma, 3.0, sigma], rel=0.15, abs=0.1 * sigma)


def test_file_order_holds_position_number_and_remainders() -> None:
    found = features.file_order(np.array([5, 12]), ["a/lens_0017.npy", "no number"])
    k = 1 + len(features.MODULI)
    assert found[:, 0].tolist() == [5, 12]
    assert found[0, k] == 17
    assert found[0, 1:k].tolist() == [5 % m for m in features.MODULI]
    assert found[0, k + 1 :].tolist() == [17 % m for m in features.MODULI]
    assert np.isnan(found[1, k:]).all()


@pytest.mark.parametrize("name", features.FEATURES)
def test_every_group_takes_channels_missing_pixels_and_odd_shapes(name: str) -> None:
    for shape in ((1, 64, 64), (3, 33, 20), (2, 7, 7)):
        draw = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)) + 2
        whole = features.measure(draw)[name]
        assert whole.dtype == np.float64
        assert len(whole) == 5
        assert np.isfinite(whole).mean() >= 0.5  # noise may hold no flux
        alone = features.measure(draw[2:3, -1:])[name][0]
        assert whole[2, -len(alone) :] == pytest.approx(alone, nan_ok=True)  # of its own image and channel only
        holed = draw.clone()
        holed[0, 0, 2, 3:5] = torch.nan
        holed[0, 0, 1, 1] = torch.inf
        holed[1] = torch.nan
        found = features.measure(holed)[name]
        assert not np.isinf(found).any()
        assert np.isfinite(found[0]).mean() >= np.isfinite(whole[0]).mean() - 0.1
        assert found[2:] == pytest.approx(whole[2:], nan_ok=True)


def test_a_missing_pixel_hardly_changes_a_smooth_image() -> None:
    image = gaussian(6.0) + 1e-3 * noise()
    holed = image.copy()
    holed[40, 41] = np.nan
    for name in features.FEATURES:
        plain, found = measured(name, image, holed)
        assert found == pytest.approx(plain, rel=0.05, abs=0.05 * np.abs(plain).max()), name
