"""From raw pixels to the network's input: crop, resize by area, stretch, normalise.

A `Preprocessor` is a module whose fitted numbers are buffers: it travels in the bundle and in the ONNX graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deeplense import recipe
from deeplense.data.resample import resample_matrix
from deeplense.data.schema import ImageInfo
from deeplense.data.stretches import STRETCHES
from deeplense.errors import UserError

PART = 64  # images looked at together
PIECE = 2**16  # values


class View(NamedTuple):
    """Where the pixels of a preprocessed image lie: their size, and their centre from the raw image's, arcsec."""

    pixel_scale: float  # NaN when unknown
    x: float
    y: float


class Preprocessor(nn.Module):
    """Raw images (B, C, H, W) -> network input of `output_shape`.

    Pixels that are not finite become the training images' median: the sky.

    Attributes:
        output_shape: (C, H, W) of the result. view: where its pixels lie.

    Raises:
        UserError: a crop or size that the images do not allow.
    """

    sky: Tensor
    scale: Tensor
    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor
    rings: Tensor

    def __init__(self, config: recipe.Preprocess, image: ImageInfo) -> None:
        super().__init__()
        self.config = config
        height, width = image.height, image.width
        if config.crop is not None:
            if not 0 < config.crop <= min(height, width):
                raise UserError(
                    f"preprocess.crop is {config.crop}, the images are {height}x{width} pixels; choose less"
                )
            self._corner = (height - config.crop) // 2, (width - config.crop) // 2
            height = width = config.crop
        if config.size == "auto":
            raise UserError("preprocess.size is auto, which training settles; give a number")
        self._resize = config.size is not None and (height, width) != (config.size, config.size)
        if config.size is not None and self._resize:
            if config.size < 1:
                raise UserError(f"preprocess.size is {config.size}; it must be at least 1 pixel")
            if height != width:
                raise UserError(
                    f"preprocess.size needs square images, these are {height} x {width}; set preprocess.crop"
                )
            rows, columns = (torch.from_numpy(resample_matrix(n, config.size)) for n in (height, width))
            self.register_buffer("rows", rows, persistent=False)
            self.register_buffer("columns", columns.T.contiguous(), persistent=False)
            height = width = config.size
        self.output_shape = (image.channels, height, width)
        self.view = self._view(image)
        if config.subtract == "radial":
            self.register_buffer("rings", _rings(height, width), persistent=False)
        scale = config.scale if isinstance(config.scale, float | int) else 1.0
        for name, value in {"sky": 0.0, "scale": scale, "mean": 0.0, "std": 1.0}.items():
            self.register_buffer(name, torch.full((image.channels, 1, 1), value))

    @classmethod
    def fit(cls, config: recipe.Preprocess, image: ImageInfo, images: Iterable[Tensor]) -> Preprocessor:
        """Measure sky, scale, mean and standard deviation, each per channel, on batches of training images.

        It takes one copy of the images, to sort; they may fill almost half of the memory.

        Raises:
            UserError: see the class; also when no pixel is finite.
        """
        self = cls(config, image)
        parts = [part for batch in images for part in torch.split(batch, PART)]
        room = np.empty((image.channels, sum(part[:, 0].numel() for part in parts)), np.float32)
        for sky, row in zip(self.sky, _gather(((part, part.isfinite()) for part in parts), room), strict=True):
            if not len(row):
                raise UserError("the training images have a channel without a finite pixel; make them without it")
            sky.fill_(float(np.median(row, overwrite_input=True)))
        if config.scale is None and config.stretch != "none":
            self.scale.copy_(_stretch_scale(lambda: map(self._geometry, parts), room)[:, None, None])
        if config.normalise == "per_set":
            stretched = ((self._stretch(self._geometry(part)), None) for part in parts)
            for mean, std, row in zip(self.mean, self.std, _gather(stretched, room), strict=True):
                centre = row.mean(dtype=np.float64)
                squares = sum(np.square(row[k : k + PIECE] - centre).sum() for k in range(0, len(row), PIECE))
                spread = math.sqrt(squares / len(row))
                mean.fill_(centre)
                std.fill_(spread if spread > 1e-6 else 1.0)  # a constant channel stays as it is
        return self

    def _view(self, image: ImageInfo) -> View:
        scale = math.nan if image.pixel_scale is None else image.pixel_scale
        if self.config.crop is None:
            return View(scale * image.height / self.output_shape[1], 0.0, 0.0)
        # an odd number of pixels cannot be cut off evenly
        top, left = self._corner
        y, x = top - (image.height - self.config.crop) / 2, left - (image.width - self.config.crop) / 2
        return View(scale * self.config.crop / self.output_shape[1], x and x * scale, y and y * scale)

    def forward(self, images: Tensor) -> Tensor:
        x = self._stretch(self._geometry(images))
        if self.config.normalise == "per_set":
            return (x - self.mean) / self.std
        if self.config.normalise == "per_image":
            x = x - x.mean((1, 2, 3), keepdim=True)
            return x / (x.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6)
        if self.config.normalise == "min_max":
            x = x - x.amin((1, 2, 3), keepdim=True)
            return 2 * x / (x.amax((1, 2, 3), keepdim=True) + 1e-6) - 1
        return x

    def _geometry(self, x: Tensor) -> Tensor:
        x = torch.where(torch.isfinite(x), x, self.sky)
        if self.config.crop is not None:
            top, left = self._corner
            x = x[:, :, top : top + self.config.crop, left : left + self.config.crop]
        if self._resize:
            x = self.rows @ x @ self.columns
        if self.config.subtract == "radial":
            x = x - (x.flatten(2) @ self.rings @ (self.rings > 0).to(x).T).view_as(x)
        return x

    def _stretch(self, x: Tensor) -> Tensor:
        if self.config.scale == "per_image":
            return STRETCHES[self.config.stretch](x / noise_of(x))
        return x if self.config.stretch == "none" else STRETCHES[self.config.stretch](x / self.scale)


def noise_of(x: Tensor) -> Tensor:
    """(B, C, 1, 1) standard deviation of white noise in images (B, C, H, W), never 0.

    The geometric mean of differences of differences, which the few pixels that have light hardly move; of a standard
    normal number's absolute value it is e^(−(γ + ln 2)/2) = .53.
    """
    twice = x.diff(dim=2).diff(dim=3).abs()
    least = 1e-3 * twice.mean((2, 3), keepdim=True) + 1e-12  # of what has no logarithm
    return torch.log(twice + least).mean((2, 3), keepdim=True).exp() * (0.5 / 0.5298)


def _rings(height: int, width: int) -> Tensor:
    """(H W, R) weights that average over rings one pixel wide about the centre."""
    y, x = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    inside = nn.functional.one_hot(torch.hypot(y[:, None], x[None]).round().long().flatten()).float()
    inside = inside[:, inside.sum(0) > 0]
    return inside / inside.sum(0)


def _gather(parts: Iterable[tuple[Tensor, Tensor | None]], room: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The values of each channel in one row, written into `room` (C, at least N), to be sorted at will.

    Args:
        parts: (b, C, H, W), and which of its values to take; all for None.
    """
    ends = [0] * len(room)
    for part, chosen in parts:
        for c, row in enumerate(room):
            values = part[:, c].flatten() if chosen is None else part[:, c][chosen[:, c]]
            row[ends[c] : ends[c] + len(values)] = values.numpy()
            ends[c] += len(values)
    return [row[:end] for row, end in zip(room, ends, strict=True)]


def _stretch_scale(images: Callable[[], Iterable[Tensor]], room: NDArray[np.float32]) -> Tensor:
    """(C,) where a stretch turns from linear to logarithmic: the noise, at least 1 % of the bright pixels.

    The noise comes from the median absolute second difference, which smooth light leaves almost untouched
    (Donoho & Johnstone 1994, doi:10.1093/biomet/81.3.425); clean images are left with the second rule.

    Args:
        images: gives the parts of the images anew. room: as much as all of them.
    """
    rows = _gather(((part, None) for part in images()), room)
    bright = np.array([np.percentile(row, 99, overwrite_input=True) for row in rows]) / np.float32(100)
    rows = _gather(((part.diff(dim=2).diff(dim=3).abs(), None) for part in images()), room)
    noise = np.array([1.4826 / 2 * _lower_median(row) if len(row) else 0 for row in rows], np.float32)
    scale = np.maximum(noise, bright)
    if not (scale > 1e-12).all():
        rows = _gather(((part, None) for part in images()), room)
        spread = np.array([_spread(row) for row in rows])
        scale = np.where(scale > 1e-12, scale, np.where(spread > 0, spread, 1.0))
    return torch.from_numpy(scale.astype(np.float32))


def _lower_median(row: NDArray[np.float32]) -> np.float32:
    """As `Tensor.median`: of an even number the lower of the two. Sorts the row."""
    middle = (len(row) - 1) // 2
    row.partition(middle)
    return np.float32(np.nan) if np.isnan(row.max()) else row[middle]


def _spread(row: NDArray[np.float32]) -> np.float32:
    """As `row.std()`, without a copy; the row is used up."""
    row -= row.mean()
    row *= row
    return np.float32(np.sqrt(row.mean()))
