"""A small residual network for images of lenses, made to train quickly on a CPU.

The first two convolutions halve the image each, so that most arithmetic happens on a sixteenth of the pixels.
Measurements in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


def convolution(n_in: int, n_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """With its norm, at half the size where `stride` is 2."""
    return [nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(n_out)]


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382), or nothing."""
    if not rate:
        return nn.Identity()
    from timm.layers import DropPath  # its import takes seconds

    return DropPath(rate)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two convolutions; the shortcut averages before it projects (He et al. 2019, arXiv:1812.01187)."""

    layers = staticmethod(convolution)
    kernel = 3

    def __init__(self, n_in: int, n_out: int, stride: int, rate: float) -> None:
        super().__init__()
        first, second = (self.layers(n, n_out, self.kernel, s) for n, s in ((n_in, stride), (n_out, 1)))
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if n_in != n_out:
            self.shortcut.extend(convolution(n_in, n_out, 1))
        self.drop_path = drop_path(rate)
        self.activation = nn.ReLU(inplace=True)
        # each block starts as its shortcut
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.drop_path(self.body(x)) + self.shortcut(x))  # type: ignore[no-any-return]


class Compact(nn.Module):
    """A ResNet of 0.6 M parameters.

    Attributes:
        block: of what it is made.

    Args:
        in_chans: channels of the image.
        image_size: (height, width); any of at least 8 pixels will do.
        widths, depths: channels and blocks of each stage; each stage halves the image.
        drop_rate: dropout of the features.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        stem_stride: of the first convolution; 1 doubles the resolution throughout, at four times the cost.
    """

    block: type[Block] = Block

    def __init__(
        self,
        in_chans: int,
        image_size: tuple[int, int],
        widths: Sequence[int] = (24, 48, 96, 160),
        depths: Sequence[int] = (1, 1, 1, 1),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(in_chans, widths[0], 5, stem_stride), nn.ReLU(inplace=True))
        plan = [
            (n_in if i == 0 else n_out, n_out, 2 if i == 0 else 1)
            for (n_in, n_out), depth in zip(pairwise([widths[0], *widths]), depths, strict=True)
            for i in range(depth)
        ]
        last = max(len(plan) - 1, 1)
        self.blocks = nn.Sequential(*(self.block(*p, drop_path_rate * i / last) for i, p in enumerate(plan)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate))
        self.num_features = widths[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        return self.pool(self.blocks(self.stem(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
