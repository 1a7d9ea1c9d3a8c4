"""A network that gives a lens and its eight turned and mirrored images the same features, exactly.

Features are functions on D4 (Cohen & Welling 2016, arXiv:1602.07576): eight maps a channel, one for each symmetry, and
a turn of the image turns each map and permutes the eight. A convolution is separable (Lengyel & van Gemert 2021,
arXiv:2110.13059): each map is filtered by its channel's filter turned by the map's own symmetry, then a 1x1 convolution
mixes channels and symmetries, g with h by weights of g⁻¹h. In plain torch; the banks of turned filters are made anew
in each pass when training, and once when not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from deeplense.models.compact import drop_path

ORDER = 8  # of D4


def turned(filters: Tensor) -> Tensor:
    """(…, k, k) -> (…, 8, k, k): element 4m + r is mirrored m times, then turned by r quarters."""
    both = (filters, filters.flip(-1))
    return torch.stack([torch.rot90(f, r, (-2, -1)) for f in both for r in range(4)], -3)


def _table() -> Tensor:
    """(8, 8) long: [g, h] is the number of g⁻¹h, read off how the elements turn a square of eight different corners."""
    square = torch.arange(16.0).reshape(4, 4)
    all_ = turned(square)
    table = torch.empty(ORDER, ORDER, dtype=torch.long)
    for k, of in enumerate(turned(all_).unbind(1)):  # of[h] = k·h
        for h, image in enumerate(of):
            g_h = next(i for i, other in enumerate(all_) if torch.equal(image, other))
            # k·h = g_h, so that h = k⁻¹·g_h
            table[k, g_h] = h
    return table


class _Lift(nn.Module):
    """Image (B, C, H, W) -> (B, 8 n_out, H', W'), at half the size: pixels pair up alike from both sides."""

    def __init__(self, n_in: int, n_out: int, size: int, stride: int) -> None:
        super().__init__()
        # an even image is halved evenly by an even kernel, an odd one by an odd kernel
        kernel = 5 if stride == 1 or size % 2 else 4
        self.stride, self.padding = stride, 2 if kernel == 5 else 1
        self.weight = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        bank = turned(self.weight).transpose(1, 2).flatten(0, 1)
        return nn.functional.conv2d(x, bank, None, self.stride, self.padding)


class _Mix(nn.Module):
    """1x1 convolution over channels and symmetries."""

    table: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, ORDER) * (2 / (ORDER * n_in)) ** 0.5)
        self.register_buffer("table", _table(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n_out, n_in, _ = self.weight.shape
        # [d, c, g, h] -> rows (d, g), columns (c, h)
        full = self.weight[:, :, self.table].transpose(1, 2).reshape(n_out * ORDER, n_in * ORDER, 1, 1)
        return nn.functional.conv2d(x, full)


class _Filter(nn.Module):
    """Each of the maps by its own filter."""

    def __init__(self, n: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, kernel, kernel))
        nn.init.normal_(self.weight, std=1 / kernel)

    def forward(self, x: Tensor) -> Tensor:
        bank = turned(self.weight).flatten(0, 1)[:, None]
        return nn.functional.conv2d(x, bank, None, 1, self.weight.shape[-1] // 2, groups=len(bank))


class _Norm(nn.Module):
    """Batch norm of channels: the eight maps of one share their statistics."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return self.norm(x.reshape(b, c // ORDER, ORDER * h, w)).reshape(b, c, h, w)  # type: ignore[no-any-return]


class _Halve(nn.Module):
    """Mean of neighbours; of an odd number of pixels, about every second one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False) if size % 2 else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, halve: nn.Module, drop: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Filter(n_in, kernel), _Norm(n_in), halve, _Mix(n_in, n_out), _Norm(n_out), nn.ReLU(inplace=True),
            _Filter(n_out, kernel), _Norm(n_out), _Mix(n_out, n_out), _Norm(n_out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(halve)
        if n_in != n_out:
            self.shortcut.extend([_Mix(n_in, n_out), _Norm(n_out)])
        self.drop_path = drop_path(drop)
        nn.init.zeros_(self.body[-1].norm.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop_path(self.body(x)) + self.shortcut(x))


class Equivariant(nn.Module):
    """A residual network over D4; its features are invariant for square images.

    Args:
        in_chans: channels of the image.
        image_size: (height, width).
        widths, depths: channels (of eight maps each) and blocks of each stage; each stage halves the image.
        kernel: of the filters in the blocks; odd.
        drop_rate: dropout of the features.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        stem_stride: of the first convolution, 1 or 2.
    """

    def __init__(
        self,
        in_chans: int,
        image_size: tuple[int, int],
        widths: Sequence[int] = (6, 12, 24, 40),
        depths: Sequence[int] = (1, 1, 1, 1),
        kernel: int = 5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; it must be odd")
        size = max(image_size)
        lift = _Lift(in_chans, widths[0], size, stem_stride)
        self.stem = nn.Sequential(lift, _Norm(widths[0]), nn.ReLU(inplace=True))
        size = (size + 1) // 2 if stem_stride == 2 else size
        blocks: list[nn.Module] = []
        last = max(sum(depths) - 1, 1)
        for (n_in, n_out), depth in zip(pairwise([widths[0], *widths]), depths, strict=True):
            for i in range(depth):
                halve: nn.Module = nn.Identity()
                if i == 0:
                    halve, size = _Halve(size), (size + 1) // 2
                blocks.append(_Block(n_out if i else n_in, n_out, kernel, halve, drop_path_rate * len(blocks) / last))
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(drop_rate)
        self.num_features = widths[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        # channels last would copy what the norms take together
        x = self.blocks(self.stem(x.contiguous()))
        b, c, h, w = x.shape
        return self.dropout(x.reshape(b, c // ORDER, ORDER * h * w).mean(2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)
