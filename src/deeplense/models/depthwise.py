"""The compact network with separable convolutions: several times the images a second on a CPU.

Each 3x3 convolution becomes a 5x5 one of every channel by itself, then a mixing of channels (Sandler et al. 2018,
arXiv:1801.04381; the large kernel as in Liu et al. 2022, arXiv:2201.03545). Measurements in docs/benchmarks.md.
"""

from __future__ import annotations

from torch import nn

from deeplense.models.compact import Block, Compact, convolution


def separable(n_in: int, n_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A filter of its own for each channel, then the channels mixed; no activation between the two."""
    alone = nn.Conv2d(n_in, n_in, kernel, stride, kernel // 2, groups=n_in, bias=False)
    return [alone, nn.BatchNorm2d(n_in), *convolution(n_in, n_out, 1)]


class SeparableBlock(Block):
    """`Block` of separable convolutions."""

    layers = staticmethod(separable)
    kernel = 5


class Depthwise(Compact):
    """`Compact`, a tenth of its arithmetic in the blocks; the same arguments."""

    block = SeparableBlock
