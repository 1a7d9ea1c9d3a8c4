from __future__ import annotations

import torch

from deeplense.data.augment import Augmenter
from deeplense.recipe import Augment


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _orbit(image: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(image, k, (1, 2)) for k in range(4)]
    return turned + [t.flip(2) for t in turned]


def test_d4_gives_all_eight_symmetries_equally_often() -> None:
    image = torch.randn(1, 9, 9)
    out = Augmenter(Augment())(image.expand(8000, -1, -1, -1), _generator())
    counts = [int((out == element).flatten(1).all(1).sum()) for element in _orbit(image)]
    assert sum(counts) == 8000
    # each count is binomial around 1000 with a standard deviation of 30
    assert min(counts) > 850
    assert max(counts) < 1150


def test_images_that_are_not_square_get_four_flips() -> None:
    image = torch.randn(1, 6, 9)
    out = Augmenter(Augment())(image.expand(400, -1, -1, -1), _generator())
    flips = [image, image.flip(1), image.flip(2), image.flip(1, 2)]
    counts = [int((out == flip).flatten(1).all(1).sum()) for flip in flips]
    assert sum(counts) == 400
    assert min(counts) > 60


def test_off_is_identity_and_the_generator_decides() -> None:
    images = torch.randn(20, 2, 8, 8)
    assert torch.equal(Augmenter(Augment(d4=False))(images, _generator()), images)
    both = Augmenter(Augment(shift=1.0, rotate=10.0))
    assert torch.equal(both(images, _generator(1)), both(images, _generator(1)))
    assert not torch.equal(both(images, _generator(1)), both(images, _generator(2)))


def test_shift_moves_the_centroid_by_at_most_its_size() -> None:
    for height, width in ((33, 33), (33, 49)):
        y = torch.arange(height)[:, None] - (height - 1) / 2
        x = torch.arange(width) - (width - 1) / 2
        blob = torch.exp(-(x**2 + y**2) / 18).expand(300, 1, -1, -1)
        out = Augmenter(Augment(d4=False, shift=2.0))(blob, _generator())
        flux = out.sum((1, 2, 3))
        for axis in (x, y):
            moved = (out * axis).sum((1, 2, 3)) / flux
            assert 1.8 < moved.abs().max() < 2.05
            assert moved.mean().abs() < 0.25
        assert torch.allclose(flux, blob.sum((1, 2, 3)), rtol=1e-2)


def test_rotation_keeps_distances_in_oblong_images() -> None:
    height, width = 41, 61
    y = torch.arange(height)[:, None] - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    spot = torch.exp(-((x - 12) ** 2 + y**2) / 8).expand(200, 1, -1, -1)
    out = Augmenter(Augment(d4=False, rotate=30.0))(spot, _generator())
    flux = out.sum((1, 2, 3))
    cx, cy = (out * x).sum((1, 2, 3)) / flux, (out * y).sum((1, 2, 3)) / flux
    assert torch.allclose(torch.hypot(cx, cy), torch.tensor(12.0), atol=0.15)
    angle = torch.rad2deg(torch.atan2(cy, cx))
    assert 27 < angle.abs().max() < 30.5
