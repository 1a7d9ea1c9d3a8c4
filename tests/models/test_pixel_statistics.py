from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deeplense.models.out_of_distribution import FAR, OutOfDistribution
from deeplense.models.pixel_statistics import PixelStatistics


def noise(n: int, seed: int, shape: tuple[int, int, int] = (1, 16, 16)) -> Tensor:
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 9, 12), (1, 2, 2), (2, 1, 1), (1, 1, 7)])
def test_images_of_any_shape_have_finite_statistics(shape: tuple[int, int, int]) -> None:
    images = noise(5, 0, shape)
    measure = PixelStatistics.fit(images)
    assert measure(images).shape == (5, measure.number)
    assert bool(measure(images).isfinite().all())


@pytest.mark.parametrize("side", [32, 33, 37])
def test_a_mirrored_image_has_the_same_statistics(side: int) -> None:
    images = noise(5, 8, (2, side, 40)).cumsum(2)
    measure = PixelStatistics.fit(images)
    for turned in (images.flip(2), images.flip(3)):
        torch.testing.assert_close(measure(turned), measure(images), atol=2e-3, rtol=1e-3)
    square = images[..., :side]
    torch.testing.assert_close(measure_of(square.transpose(2, 3)), measure_of(square), atol=2e-3, rtol=1e-3)


def measure_of(images: Tensor) -> Tensor:
    return PixelStatistics.fit(images)(images)


def test_statistics_do_not_depend_on_the_unit() -> None:
    images = noise(5, 1)
    small = 1e-9 * images
    expected = PixelStatistics.fit(images)(images)
    torch.testing.assert_close(PixelStatistics.fit(small)(small), expected, atol=1e-4, rtol=1e-3)


def test_what_is_no_number_is_far() -> None:
    images, features = noise(50, 2), noise(50, 3, (1, 1, 4)).flatten(1)
    statistics = PixelStatistics.fit(images)
    detector = OutOfDistribution.fit(statistics, statistics(images), features)
    for wrong in (torch.nan, torch.inf, -torch.inf, 1e38):
        assert detector(images[:2], torch.full((2, 4), wrong)).tolist() == [FAR, FAR]
        assert bool((detector(torch.full((2, 1, 16, 16), wrong), features[:2]) > 1).all())


def test_features_that_no_held_out_image_has_are_strange_by_themselves() -> None:
    images, features = noise(400, 4), noise(400, 5, (1, 1, 8)).flatten(1).relu()
    statistics = PixelStatistics.fit(images)
    detector = OutOfDistribution.fit(statistics, statistics(images), features)
    again = noise(100, 6), noise(100, 7, (1, 1, 8)).flatten(1).relu()
    assert float((detector(*again) > 1).float().mean()) < 0.1
    assert bool((detector(again[0], again[1] + 5) > 1).all())
