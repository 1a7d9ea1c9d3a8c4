"""Pictures of the images on which a network is most and least certain, right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from astropy.visualization import make_lupton_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deeplense.data.store import Split
from deeplense.evaluation.plots import INK, MUTED, plain, styled

COLUMNS = 6
UNKNOWN = 0.65  # grey of pixels that are not finite
SOFT, SOFTEST = 5.0, 0.03  # below so many times the noise, and that share of the bright pixels, colours are linear
TITLE, CELL, CAPTION = 0.26, 1.55, 0.54  # heights in a row [inch]


@dataclass
class Row:
    """A row of the gallery: which images, best example first."""

    title: str
    chosen: NDArray[np.int64]


def row(title: str, allowed: NDArray[np.bool_], order: NDArray[np.float64]) -> Row:
    """The first of the allowed images by `order`."""
    indices = np.flatnonzero(allowed)
    return Row(title, indices[np.argsort(order[indices], kind="stable")][:COLUMNS])


@styled
def gallery(rows: Sequence[Row], captions: Sequence[str], position: NDArray[np.int64], split: Split) -> Figure:
    """Rows of images, each with its id and caption.

    Args:
        captions: of every image that a row may choose. position: (N,) theirs in the split.
    """
    height = len(rows) * (TITLE + CELL + CAPTION)
    figure = Figure(figsize=(CELL * COLUMNS, height))
    figure.set_layout_engine("none")
    cmap = mpl.colormaps["magma"].with_extremes(bad="#9CA3AF")
    for k, row in enumerate(rows):
        top = height - k * (TITLE + CELL + CAPTION)
        place: dict[str, Any] = {"x": 0.008, "va": "top"}
        figure.text(y=(top - 0.08) / height, s=row.title, fontsize=10, fontweight="bold", color=INK, **place)
        if not len(row.chosen):
            figure.text(y=(top - 0.45) / height, s="none", color=MUTED, **place)
        for column, n in enumerate(row.chosen):
            corner = (column + 0.03) / COLUMNS, (top - TITLE - CELL) / height
            axes = figure.add_axes((*corner, 0.94 / COLUMNS, 0.94 * CELL / height))
            axes.axis("off")
            image = split.images(position[n : n + 1])[0].numpy()
            axes.imshow(
                picture(image, bool(split.manifest.image.bands)),
                cmap=cmap,
                vmin=0,
                vmax=1,
                origin="lower",
                interpolation="nearest",
            )
            text = f"{_short(split.ids[position[n]])}\n{captions[n]}"
            style: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "top", "linespacing": 1.35}
            axes.text(0.5, -0.04, plain(text), transform=axes.transAxes, **style)
    return figure


def stretch(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C, H, W) pixels -> (H, W) between 0 and 1: mean of the channels, asinh stretch above the sky."""
    finite = np.where(np.isfinite(image), image, np.nan).astype(np.float64)
    known = np.isfinite(finite).any(0)
    mean = np.where(known, np.nansum(finite, 0) / np.maximum(np.isfinite(finite).sum(0), 1), np.nan)
    if not known.any():
        return mean
    sky = np.nanmedian(mean)
    noise = 1.4826 * np.nanmedian(np.abs(mean - sky))
    peak = np.nanpercentile(mean, 99.8) - sky
    scale = max(2 * noise, 0.03 * peak, 1e-12)
    low, high = np.arcsinh(-noise / scale), np.arcsinh(max(peak, scale) / scale)
    return np.asarray(np.clip((np.arcsinh((mean - sky) / scale) - low) / (high - low), 0, 1))


def picture(image: NDArray[np.float32], blue_first: bool) -> NDArray[np.float64]:
    """(C, H, W) pixels -> (H, W) between 0 and 1 as `stretch` makes it, or of three bands or more (H, W, 3) in colour.

    Colours by astropy's `make_lupton_rgb` (Lupton et al. 2004, astro-ph/0312483): one asinh stretch for the mean of
    first, middle and last band. Each is first divided by its bright pixels, so that the whole is white on average;
    unknown is grey.

    Args:
        blue_first: the order of the channels, else red first.
    """
    known = np.asarray(np.isfinite(image).all(0))
    if len(image) < 3 or not known.any():
        return stretch(image)
    channels = np.where(known, image, np.nan).astype(np.float64)[[0, len(image) // 2, len(image) - 1]]
    channels = channels - np.nanmedian(channels, axis=(1, 2), keepdims=True)
    bright = np.nanpercentile(channels, 99.8, axis=(1, 2), keepdims=True)
    channels = channels / np.where(bright > 0, bright, 1)
    noise = 1.4826 * float(np.nanmedian(np.abs(channels), axis=(1, 2)).max())  # of the noisiest
    soft = max(SOFT * noise, SOFTEST)
    Q = 10 * np.sinh(0.1 * np.arcsinh(1 / soft))  # so that the bright pixels are just white
    channels = np.where(known, channels, 0)
    red, green, blue = channels[::-1] if blue_first else channels
    rgb = make_lupton_rgb(red, green, blue, minimum=0, stretch=soft * Q, Q=Q)
    return np.where(known[..., None], rgb / 255, UNKNOWN)


def _short(text: str, most: int = 22) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]
