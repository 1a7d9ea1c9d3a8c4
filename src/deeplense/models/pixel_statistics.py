"""What a ruler measures in an image: noise, sharpness on every scale, light at every radius, extremes.

None of it changes when the image is turned or mirrored, nor with what was learned, so that a handful of images shows
what is usual.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

RINGS = 8  # fewer in small images
TOP = 4  # brightest and faintest pixels that are looked at
FLOOR = 1e-3  # of a logarithm, in units of the images' spread
LARGEST = 1e4  # in the same units; what is more is as strange, and its cube stays finite


class PixelStatistics(nn.Module):
    """Preprocessed images (B, C, H, W) -> statistics (B, P), C of each kind.

    In units of the training images' spread: logarithms of the noise and of the differences between neighbours in the
    image averaged over 1, 2, 4, ... pixels; mean and log spread in rings about the centre; the brightest pixels and how
    far they lie apart (they do not, where light is cut off), the faintest; skewness.

    Args:
        shape: (C, H, W) of the preprocessed images.

    Attributes:
        number: P.
    """

    unit: Tensor
    rings: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape
        channels, height, width = shape
        self.register_buffer("unit", torch.ones(channels, 1, 1))
        self.register_buffer("rings", _rings(height, width), persistent=False)
        with torch.no_grad():
            self.number = self(torch.zeros(1, *shape)).shape[1]

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Tensor) -> PixelStatistics:
        """Measure the spread of preprocessed training images (N, C, H, W)."""
        self = cls((images.shape[1], images.shape[2], images.shape[3]))
        spread = torch.stack([images[:, c].std() for c in range(images.shape[1])])
        self.unit.copy_(torch.where(spread > 1e-12, spread, 1.0)[:, None, None])
        return self

    def forward(self, images: Tensor) -> Tensor:
        x = (images / self.unit).clamp(-LARGEST, LARGEST)
        pixels = x.flatten(2)
        top, bottom = _extreme(x, largest=True), _extreme(x, largest=False)
        mean = pixels @ self.rings
        spread = ((pixels * pixels) @ self.rings - mean.square()).clamp_min(0).sqrt()
        centred = pixels - pixels.mean(2, keepdim=True)
        squares = centred * centred
        skewness = (squares * centred).mean(2) / (squares.mean(2) + FLOOR**2).pow(1.5)
        found = [mean.flatten(1), _log(spread).flatten(1), top[:, :, -1], -bottom[:, :, -1], skewness]
        if min(x.shape[2:]) > 1:
            # the mean of logarithms hardly sees the few pixels that have light
            noise = _log(x.diff(dim=2).diff(dim=3).abs()).mean((2, 3))
            apart = (top[:, :, 0] - top[:, :, -1]) / noise.exp()
            found += [noise, torch.log(apart + FLOOR**2), *_sharpness(x)]
        return torch.cat(found, 1)


def _extreme(x: Tensor, largest: bool) -> Tensor:
    """(B, C, at most TOP) values, the most extreme first; they lie in as many rows, which are found first."""
    k = min(TOP, x.shape[2])
    rows = (x.amax(3) if largest else x.amin(3)).topk(k, 2, largest).indices
    chosen = x.gather(2, rows[..., None].expand(-1, -1, -1, x.shape[3])).flatten(2)
    return chosen.topk(min(TOP, chosen.shape[2]), 2, largest).values


def _sharpness(x: Tensor) -> list[Tensor]:
    found = []
    while True:
        down, right = x.diff(dim=2), x.diff(dim=3)
        squares = (down * down).mean((2, 3)) + (right * right).mean((2, 3))
        found.append(_log(squares.sqrt()))
        if min(x.shape[2:]) < 16:
            return found
        x = _halved(_halved(x, 2), 3)


def _halved(x: Tensor, dim: int) -> Tensor:
    """Means of neighbours; of an odd number of pixels, of three that share one, so that both ends are alike."""
    n = x.shape[dim]
    if n % 2:
        kernel, stride, padding = ((3, 1), (2, 1), (1, 0)) if dim == 2 else ((1, 3), (1, 2), (0, 1))
        return functional.avg_pool2d(x, kernel, stride, padding, count_include_pad=False)
    at = (slice(None),) * dim
    return 0.5 * (x[(*at, slice(0, None, 2))] + x[(*at, slice(1, None, 2))])


def _log(x: Tensor) -> Tensor:
    return torch.log(x + FLOOR)


def _rings(height: int, width: int) -> Tensor:
    """(H W, R) weights that average over rings of one width; the last one has the corners."""
    n = max(1, min(RINGS, height // 4, width // 4))
    y = (torch.arange(height) - (height - 1) / 2) / (height / 2)
    x = (torch.arange(width) - (width - 1) / 2) / (width / 2)
    radius = torch.hypot(y[:, None], x[None])
    inside = functional.one_hot((radius / 1.2 * n).long().clamp(max=n - 1).flatten(), n).float()
    return inside / inside.sum(0)
