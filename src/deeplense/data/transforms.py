"""From raw pixels to the network's input: crop, resize by area, stretch, normalise.

A `Preprocessor` is a module whose fitted numbers are buffers: it travels in the bundle and in the ONNX graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from deeplense import recipe
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError


def resample_matrix(n_in: int, n_out: int, ratio: float | None = None) -> Tensor:
    """(n_out, n_in) weights that average `n_in` pixels into `n_out` by the area that they share.

    The two grids have one centre. Each row sums to 1, so that surface brightness is kept; a row that no input
    pixel touches is 0.

    Args:
        ratio: input pixels per output pixel; `n_in / n_out` when not given.
    """
    ratio = n_in / n_out if ratio is None else ratio
    edge = n_in / 2 + (torch.arange(n_out + 1, dtype=torch.float64) - n_out / 2) * ratio
    pixel = torch.arange(n_in, dtype=torch.float64)
    shared = torch.minimum(edge[1:, None], pixel + 1) - torch.maximum(edge[:-1, None], pixel)
    # an overlap of rounding errors is none
    weight = torch.where(shared > 1e-9, shared, 0.0)
    return (weight / weight.sum(1, keepdim=True).clamp(min=1e-9)).float()


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
        self._resize = config.size is not None and (height, width) != (config.size, config.size)
        if config.size is not None and self._resize:
            if config.size < 1:
                raise UserError(f"preprocess.size is {config.size}; it must be at least 1 pixel")
            if height != width:
                raise UserError(
                    f"preprocess.size needs square images, these are {height} x {width}; set preprocess.crop"
                )
            self.register_buffer("rows", resample_matrix(height, config.size), persistent=False)
            self.register_buffer("columns", resample_matrix(width, config.size).T.contiguous(), persistent=False)
            height = width = config.size
        self.output_shape = (image.channels, height, width)
        self.view = self._view(image)
        for name, value in {"sky": 0.0, "scale": config.scale or 1.0, "mean": 0.0, "std": 1.0}.items():
            self.register_buffer(name, torch.full((image.channels, 1, 1), value))

    @classmethod
    def fit(cls, config: recipe.Preprocess, image: ImageInfo, images: Iterable[Tensor]) -> Preprocessor:
        """Measure sky, scale, mean and standard deviation, each per channel, on batches of training images.

        Raises:
            UserError: see the class; also when no pixel is finite.
        """
        self = cls(config, image)
        sample = torch.cat(list(images))
        channels = sample.transpose(0, 1).flatten(1)
        good = torch.isfinite(channels)
        if not good.any(1).all():
            raise UserError("the training images have a channel without a finite pixel; make the dataset without it")
        sky = np.array([np.median(row[ok].numpy()) for row, ok in zip(channels, good, strict=True)], np.float32)
        self.sky.copy_(torch.from_numpy(sky)[:, None, None])
        sample = self._geometry(sample)
        if config.scale is None and config.stretch != "none":
            self.scale.copy_(_stretch_scale(sample)[:, None, None])
        if config.normalise == "per_set":
            sample = self._stretch(sample).transpose(0, 1).flatten(1).double()
            self.mean.copy_(sample.mean(1)[:, None, None])
            # a constant channel stays as it is
            spread = sample.std(1, correction=0)
            self.std.copy_(torch.where(spread > 1e-6, spread, 1.0)[:, None, None])
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
        return x

    def _geometry(self, x: Tensor) -> Tensor:
        x = torch.where(torch.isfinite(x), x, self.sky)
        if self.config.crop is not None:
            top, left = self._corner
            x = x[:, :, top : top + self.config.crop, left : left + self.config.crop]
        return self.rows @ x @ self.columns if self._resize else x

    def _stretch(self, x: Tensor) -> Tensor:
        if self.config.stretch == "asinh":
            return torch.asinh(x / self.scale)
        if self.config.stretch == "log":
            return torch.log1p(x.clamp(min=0) / self.scale)
        return x


def _stretch_scale(images: Tensor) -> Tensor:
    """(C,) where a stretch turns from linear to logarithmic: the noise, at least 1 % of the bright pixels.

    The noise comes from the median absolute second difference, which smooth light leaves almost untouched
    (Donoho & Johnstone 1994, doi:10.1093/biomet/81.3.425); clean images are left with the second rule.
    """
    pixels = images.transpose(0, 1).flatten(1).numpy()
    bright = np.percentile(pixels, 99, axis=1) / 100
    noise = np.zeros_like(bright)
    if min(images.shape[2:]) > 1:
        difference = images.diff(dim=2).diff(dim=3).transpose(0, 1).flatten(1)
        noise = 1.4826 / 2 * difference.abs().median(dim=1).values.numpy()
    scale = np.maximum(noise, bright)
    spread = pixels.std(axis=1)
    scale = np.where(scale > 1e-12, scale, np.where(spread > 0, spread, 1.0))
    return torch.from_numpy(scale.astype(np.float32))
