"""How far an image lies from the training images: a network answers any image, also one that it cannot know.

A Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888, there of a network's features) of plain features of the
preprocessed image: mean and spread of the pixels in 8 x 8 cells. It travels in the bundle.
"""

from __future__ import annotations

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torch.nn import functional

CELLS = 8  # a side, fewer in small images
MARGIN = 1.1  # on the largest distance of training images that the covariance has not seen


class Familiarity(nn.Module):
    """Preprocessed images (B, C, H, W) -> distance (B,) in units of the training images' own; above 1 is unfamiliar.

    Args:
        shape: (C, H, W) of the preprocessed images.
    """

    mean: Tensor
    whiten: Tensor
    limit: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.cells = max(1, min(CELLS, height // 2, width // 2))
        n = 2 * channels * self.cells**2
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("whiten", torch.zeros(n, n))
        self.register_buffer("limit", torch.tensor(1.0))

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Tensor) -> Familiarity:
        """Covariance from one half of the preprocessed training images, the limit from the other half."""
        self = cls((images.shape[1], images.shape[2], images.shape[3]))
        features = self._features(images)
        covariance = LedoitWolf().fit(features[::2].double().cpu().numpy())
        values, vectors = torch.linalg.eigh(torch.from_numpy(covariance.covariance_))
        scale = values.clamp_min(1e-6 * values.max().clamp_min(1e-12)).rsqrt()
        self.mean.copy_(torch.from_numpy(covariance.location_))
        self.whiten.copy_(vectors * scale)
        unseen = features[1::2] if len(features) > 1 else features
        self.limit.copy_(MARGIN * self._distance(unseen).max().clamp_min(1e-6))
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self._distance(self._features(images)) / self.limit

    def _features(self, images: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(images, self.cells)
        spread = (functional.adaptive_avg_pool2d(images.square(), self.cells) - cells.square()).clamp_min(0)
        return torch.cat([cells.flatten(1), (spread.sqrt() + 1e-3).log().flatten(1)], dim=1)

    def _distance(self, features: Tensor) -> Tensor:
        return ((features - self.mean) @ self.whiten).square().mean(1).sqrt()
