"""How far an image lies from the training images: a network answers any image, also one that it cannot know.

Three distances see different things, and the largest of them counts, each in units of what held-out images reach: a
Mahalanobis distance of the network's features (Lee et al. 2018, arXiv 1807.03888), one of pixel statistics, and the
statistic that lies farthest out by itself. They are fitted on held-out images, because a network's features of images
that it was trained on are not those of others; it travels in the bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deeplense.models.pixel_statistics import PixelStatistics

FALSE_ALARMS = 0.01  # share of images like the training images whose distance is above 1
MARGIN = 1.1  # on the largest distance of too few images for that share
FOLDS = 10
FEATURES = 256  # more are projected onto so many random directions
TAIL = 0.02  # on either side of a statistic, what measures how far it reaches there
FAR = 1e6  # what is farther, or not a number

Fit = Callable[[Tensor], nn.Module]


class OutOfDistribution(nn.Module):
    """Preprocessed images (B, C, H, W) and their features (B, D) -> distance (B,); above 1 is strange.

    Args:
        shape: (C, H, W) of the preprocessed images. num_features: D.
    """

    limits: Tensor
    directions: Tensor | None

    def __init__(self, shape: tuple[int, int, int], num_features: int) -> None:
        super().__init__()
        self.statistics = PixelStatistics(shape)
        self.register_buffer("directions", _directions(num_features) if num_features > FEATURES else None)
        n, p = min(num_features, FEATURES), self.statistics.number
        self.features, self.jointly, self.singly = Gaussian(n), Gaussian(p), Tails(p)
        self.register_buffer("limits", torch.ones(3))

    @classmethod
    @torch.no_grad()
    def fit(cls, statistics: PixelStatistics, measured: Tensor, features: Tensor) -> OutOfDistribution:
        """From images that the network was not trained on; the limit is that of images that the fit has not seen.

        Args:
            statistics: of pixels. measured: (N, P) by them, features: (N, D): of held-out images.
        """
        self = cls(statistics.shape, features.shape[1])
        self.statistics.load_state_dict(statistics.state_dict())
        measured, features = measured.float().cpu(), self._projected(features.float().cpu())
        fits: list[tuple[Fit, Tensor]] = [(Gaussian.fit, features), (Gaussian.fit, measured), (Tails.fit, measured)]
        self.features, self.jointly, self.singly = Gaussian.fit(features), Gaussian.fit(measured), Tails.fit(measured)
        unseen = torch.stack([_unseen(fit, rows) for fit, rows in fits], 1)
        ordered = unseen.sort(0).values
        n = len(unseen)
        rank = math.ceil((n + 1) * (1 - FALSE_ALARMS))
        usual = ordered[min(rank, n) - 1].clamp_min(1e-6)
        largest = (unseen / usual).amax(1).sort().values
        self.limits.copy_(usual * (largest[rank - 1] if rank <= n else MARGIN * largest[-1]).clamp_min(1e-6))
        return self

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        measured = self.statistics(images)
        found = [self.features(self._projected(features)), self.jointly(measured), self.singly(measured)]
        distance = (torch.stack(found, 1) / self.limits).amax(1)
        return torch.where(distance < FAR, distance, FAR)

    def _projected(self, features: Tensor) -> Tensor:
        return features if self.directions is None else features @ self.directions


class Gaussian(nn.Module):
    """Rows (B, n) -> Mahalanobis distance (B,), about 1 for a row like those of the fit."""

    mean: Tensor
    whiten: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("whiten", torch.zeros(n, n))

    @classmethod
    def fit(cls, rows: Tensor) -> Gaussian:
        """Correlations shrunk towards none, the more the fewer rows (Chen et al. 2010, doi:10.1109/TSP.2010.2053029,
        eq. 23)."""
        n, p = rows.shape
        self = cls(p)
        mean, scale = rows.double().mean(0), _floored(rows.double().std(0, correction=0))
        z = (rows.double() - mean) / scale
        covariance = z.T @ z / n
        of_square, squared = covariance.square().sum(), covariance.trace().square()
        over = (n + 1 - 2 / p) * (of_square - squared / p)
        shrink = (((1 - 2 / p) * of_square + squared) / over.clamp_min(1e-12)).clamp(0, 1)
        covariance = (1 - shrink) * covariance + shrink * covariance.trace() / p * torch.eye(p, dtype=z.dtype)
        values, vectors = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.whiten.copy_(vectors / scale[:, None] * _floored(values).rsqrt())
        return self

    def forward(self, rows: Tensor) -> Tensor:
        return ((rows - self.mean) @ self.whiten).square().mean(1).sqrt()


class Tails(nn.Module):
    """Rows (B, n) -> how far out the farthest of the n lies (B,); 1 where a fiftieth of the rows of the fit lies
    farther on that side."""

    centre: Tensor
    below: Tensor
    above: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        for name in ("centre", "below", "above"):
            self.register_buffer(name, torch.ones(n))

    @classmethod
    def fit(cls, rows: Tensor) -> Tails:
        self = cls(rows.shape[1])
        low, centre, high = torch.quantile(rows, torch.tensor([TAIL, 0.5, 1 - TAIL], dtype=rows.dtype), 0)
        self.centre.copy_(centre)
        self.below.copy_(_floored(centre - low))
        self.above.copy_(_floored(high - centre))
        return self

    def forward(self, rows: Tensor) -> Tensor:
        away = rows - self.centre
        return torch.maximum(away / self.above, -away / self.below).amax(1)


def _unseen(fit: Fit, rows: Tensor) -> Tensor:
    """(N,) the distance of each row by a fit to the rows of the other folds."""
    fold = torch.arange(len(rows)) % FOLDS
    found = torch.zeros(len(rows))
    for k in range(FOLDS):
        # a single row can only be compared with itself
        others = rows[fold != k] if len(rows) > 1 else rows
        if (fold == k).any():
            found[fold == k] = fit(others)(rows[fold == k])
    return found


def _floored(scale: Tensor) -> Tensor:
    """None is so much smaller than the largest that rounding errors count."""
    return scale.clamp_min(1e-3 * float(scale.max().clamp_min(1e-3)))


def _directions(n: int) -> Tensor:
    """(n, FEATURES) at random, the same ones always."""
    return torch.randn((n, FEATURES), generator=torch.Generator().manual_seed(0)) / math.sqrt(n)
