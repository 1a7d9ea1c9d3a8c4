"""Random symmetries of the training images. Dark matter does not know which way is up."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deeplense import recipe


class Augmenter:
    """Turn, mirror and shift each image at random; applied to preprocessed images.

    The symmetries of the square (d4) move pixels without changing them. Shifts and rotations interpolate
    once, bicubically; what comes in at the border is mirrored.
    """

    def __init__(self, config: recipe.Augment) -> None:
        self.config = config

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) -> the same shape. Images that are not square get the four flips only."""
        if self.config.d4:
            images = _symmetry(images, generator)
        if self.config.shift or self.config.rotate:
            images = self._affine(images, generator)
        return images

    def _affine(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        draw = 2 * torch.rand((3, n), generator=generator, device=generator.device) - 1
        angle = draw[0] * math.radians(self.config.rotate)
        dx, dy = 2 * self.config.shift * draw[1] / width, 2 * self.config.shift * draw[2] / height
        cos, sin = angle.cos(), angle.sin()
        # grid_sample counts each axis from -1 to 1
        matrix = torch.stack([cos, -sin * height / width, dx, sin * width / height, cos, dy], dim=1)
        theta = matrix.view(n, 2, 3).to(images.device, images.dtype)
        grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
        return nn.functional.grid_sample(images, grid, "bicubic", "reflection", align_corners=False)


def _symmetry(images: Tensor, generator: torch.Generator) -> Tensor:
    """Transpose, flip rows, flip columns, each with probability 1/2: all of D4, equally often."""
    coins = torch.rand((3, len(images), 1, 1, 1), generator=generator, device=generator.device) < 0.5
    transpose, rows, columns = coins.to(images.device)
    if images.shape[2] == images.shape[3]:
        images = torch.where(transpose, images.transpose(2, 3), images)
    images = torch.where(rows, images.flip(2), images)
    return torch.where(columns, images.flip(3), images)
