"""A graph network: the brightest patches of an image are nodes, joined to those that look and lie alike.

A convolutional stem describes patches; the brightest hold the arcs, the rest is sky. Each node then takes from its k
nearest neighbours what differs most from itself (max-relative graph convolution: Li et al. 2019, arXiv:1904.03751; for
images, Han et al. 2022, arXiv:2206.00272). Plain torch, with k and the number of nodes fixed, so that it exports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deeplense.models.compact import convolution, drop_path


def neighbours(x: Tensor, k: int) -> Tensor:
    """(B, N, k) long: the nearest of N points (B, N, D), each itself among them."""
    squares = x.square().sum(-1)
    distance = squares[:, :, None] - 2 * x @ x.transpose(1, 2) + squares[:, None, :]
    return distance.topk(k, dim=-1, largest=False).indices


def gather(x: Tensor, chosen: Tensor) -> Tensor:
    """(B, N, D) at (B, …) -> (B, …, D)."""
    first = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    # whole rows, of which an embedding knows the fastest way back
    return nn.functional.embedding(chosen + first.view(-1, *[1] * (chosen.ndim - 1)), x.flatten(0, 1))


class _Node(nn.Module):
    """Layers over the nodes' features (B, N, D), with batch norm over all nodes."""

    def __init__(self, n_in: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_in, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, n_out, bias=False), nn.BatchNorm1d(n_out),
        )  # fmt: skip
        # each block starts as its shortcut
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(0, 1)).view(*x.shape[:2], -1)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int, k: int, rate: float) -> None:
        super().__init__()
        self.k = k
        self.message, self.mix = _Node(2 * width, 2 * width, width), _Node(width, 2 * width, width)
        self.drop_path = drop_path(rate)

    def forward(self, x: Tensor) -> Tensor:
        chosen = neighbours(nn.functional.normalize(x, dim=-1), self.k)
        relative = gather(x, chosen).amax(2) - x
        x = x + self.drop_path(self.message(torch.cat([x, relative], -1)))
        return x + self.drop_path(self.mix(x))  # type: ignore[no-any-return]


class Graph(nn.Module):
    """Some 0.2 M parameters.

    Args:
        in_chans: channels of the image.
        image_size: (height, width); at least 16 pixels.
        nodes: patches kept, at most; a patch is 4 pixels wide (2 with `stem_stride` 1).
        width: features of a node. depth: blocks. k: neighbours.
        drop_rate: dropout of the features.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        stem_stride: of the first convolution; 1 halves the patches.
    """

    place: Tensor

    def __init__(
        self,
        in_chans: int,
        image_size: tuple[int, int],
        nodes: int = 128,
        width: int = 64,
        depth: int = 3,
        k: int = 9,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *convolution(in_chans, width // 4, 5, stem_stride), nn.ReLU(inplace=True),
            *convolution(width // 4, width // 2, 3, 2), nn.ReLU(inplace=True),
            *convolution(width // 2, width, 3), nn.ReLU(inplace=True),
        )  # fmt: skip
        rows, columns = (_halved(_halved(n, stem_stride), 2) for n in image_size)
        self.nodes = min(nodes, rows * columns)
        if self.nodes < k:
            raise ValueError(f"{rows * columns} patches are fewer than k = {k} neighbours")
        self.pool = nn.AdaptiveAvgPool2d((rows, columns))
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        place = torch.stack([x, y, x * x + y * y, x * y], -1).reshape(1, rows * columns, 4)
        self.register_buffer("place", place, persistent=False)
        self.embed = nn.Linear(4, width)
        last = max(depth - 1, 1)
        self.blocks = nn.Sequential(*(_Block(width, k, drop_path_rate * i / last) for i in range(depth)))
        self.dropout = nn.Dropout(drop_rate)
        self.num_features = 2 * width

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_features)."""
        patches = self.stem(x).flatten(2).transpose(1, 2) + self.embed(self.place)
        brightest = self.pool(x.mean(1)).flatten(1).topk(self.nodes, dim=1).indices
        nodes = self.blocks(gather(patches, brightest))
        return self.dropout(torch.cat([nodes.mean(1), nodes.amax(1)], 1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def _halved(n: int, stride: int) -> int:
    return (n + stride - 1) // stride
