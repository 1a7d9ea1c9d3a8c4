"""What makes raw images worse: each against its law, and what it must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter

from deeplense.data.augment import Augmenter
from deeplense.data.disturb import DISTURBANCES, blur, cosmic_rays, disturbed, gradient, mask, noise
from deeplense.data.schema import Batch
from deeplense.data.transforms import View
from deeplense.recipe import Augment


def _draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", DISTURBANCES)
def test_contract(name: str) -> None:
    images = torch.randn(6, 2, 20, 25)
    config = Augment(**{name: 0.5})  # type: ignore[arg-type]
    out = disturbed(images, config, _draw())
    assert out.shape == images.shape
    assert not torch.equal(out, images)
    assert torch.equal(out.nan_to_num(), disturbed(images, config, _draw()).nan_to_num())
    assert not torch.equal(out.nan_to_num(), disturbed(images, config, _draw(1)).nan_to_num())
    assert disturbed(images, Augment(), _draw()) is images


def test_noise_is_only_more() -> None:
    images = 2.0 * torch.randn(400, 1, 40, 40)
    spread = noise(images, 1.0, _draw()).std((1, 2, 3)) / images.std((1, 2, 3))
    assert spread.min() > 0.97
    # σ² (1 + u²) with u uniform
    assert spread.square().mean().item() == pytest.approx(4 / 3, rel=0.05)
    assert spread.max() == pytest.approx(2**0.5, rel=0.05)


def test_blur_is_scipys_and_keeps_light() -> None:
    images = torch.zeros(50, 1, 31, 31)
    images[:, :, 15, 15] = 1.0
    out = blur(images, 2.0, _draw())
    assert torch.allclose(out.sum((1, 2, 3)), torch.ones(50), atol=1e-3)
    offset = torch.arange(31) - 15.0
    sigma = (out.sum(2)[:, 0] * offset**2).sum(1)  # of a pixel's box as well, 1/12
    wide = int(sigma.argmax())
    theirs = gaussian_filter(images[wide, 0].numpy(), math.sqrt(float(sigma[wide]) - 1 / 12), truncate=6)
    assert torch.allclose(out[wide, 0], torch.from_numpy(theirs), atol=2e-3)
    assert 1.8**2 < float(sigma.max()) < 2**2 + 0.2


def test_gradient_is_a_plane() -> None:
    images = torch.randn(30, 1, 33, 33)
    plane = gradient(images, 3.0, _draw()) - images
    assert plane.diff(n=2, dim=3).abs().max() < 1e-5
    assert plane.diff(n=2, dim=2).abs().max() < 1e-5
    assert plane[:, 0, 16, 16].abs().max() < 1e-5
    assert 1.0 < plane.abs().max() < 3.0 * 2**0.5 * 1.2


def test_cosmic_rays_come_at_their_rate_in_one_band() -> None:
    images = torch.randn(300, 2, 20, 20)
    more = cosmic_rays(images, 1.0, _draw()) - images
    assert more.min() > -1e-4
    hit = (more > 1e-3).flatten(2).any(2)
    assert not hit.all(1).any()
    assert hit.any(1).float().mean().item() == pytest.approx(1 - math.exp(-1), abs=0.08)


def test_masks_hide_a_rectangle_of_at_most_their_share() -> None:
    out = mask(torch.ones(200, 2, 30, 40), 0.3, _draw())
    hidden = out.isnan()
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    share = hidden.float().mean((1, 2, 3))
    assert share.max() < 0.34
    assert share.mean().item() == pytest.approx(0.15, abs=0.03)
    for image in hidden[:20, 0]:
        rows, columns = image.any(1), image.any(0)
        assert torch.equal(image, rows[:, None] & columns)


def test_cycled_images_show_all_faces_in_eight_epochs() -> None:
    images, ids = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 7, 1000])
    augment = Augmenter(Augment(cycle=True), view=View(1.0, 0.0, 0.0))
    batch = Batch(images, ids * 0, torch.empty(5, 0), ids)
    faces = torch.stack([augment(batch, _draw(), epoch=e).image for e in range(8)])
    for k in range(5):
        assert len({tuple(face.flatten().tolist()) for face in faces[:, k]}) == 8
    again = augment(batch, _draw(5), epoch=8).image
    assert torch.equal(again, faces[0])
