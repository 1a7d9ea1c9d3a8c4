"""A foreign image becomes one that a bundle takes, and says what was done to it.

Pixels hold flux, so where the pixel scale changes the resampled image keeps the flux, not a pixel's
value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deeplense.data.resample import resample_matrix
from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError

Image = NDArray[np.float32]

SAME_SCALE = 0.01  # relative difference of pixel scales that is none


def adapt(image: Image, pixel_scale: float | None, wanted: ImageInfo) -> tuple[Image, list[str]]:
    """Missing pixels filled, resampled to the bundle's pixel scale, cropped or padded to its size.

    Missing pixels and the padding get the sky: the median of the border, for each channel.

    Args:
        image: (C, H, W), NaN where pixels are missing. pixel_scale: arcsec, None when unknown.

    Returns:
        The image as the bundle takes it, and warnings.

    Raises:
        UserError: other channels than the bundle's, or a channel without a finite pixel.
    """
    channels, height, width = image.shape
    if channels != wanted.channels:
        raise UserError(f"{channels} channels, the bundle takes {wanted.channels}")
    warnings = []
    finite = np.isfinite(image)
    whole = bool(finite.all())
    if not whole and not finite.any((1, 2)).all():
        raise UserError("a channel without a finite pixel")
    if not whole:
        warnings.append(f"{1 - finite.mean():.1%} of the pixels are NaN")
    ratio = 1.0
    if pixel_scale is None or wanted.pixel_scale is None:
        warnings.append("pixel scale unknown")
    else:
        ratio = wanted.pixel_scale / pixel_scale
    same = math.isclose(ratio, 1.0, rel_tol=SAME_SCALE)
    if whole and same and (height, width) == (wanted.height, wanted.width):  # the rule, and a sky takes long
        return np.ascontiguousarray(image, dtype=np.float32), warnings
    sky = _sky(image, finite)
    image = np.where(finite, image, sky[:, None, None])
    if not same:
        warnings.append(f"resampled from {pixel_scale:g} to {wanted.pixel_scale:g} arcsec/pixel")
        seen = round(height / ratio), round(width / ratio)
        image = _resample(image, wanted, ratio, sky)
    else:
        seen = height, width
        image = centred(image, wanted, sky)
    if seen != (wanted.height, wanted.width):
        sizes = f"{seen[0]}x{seen[1]} to {wanted.height}x{wanted.width}"
        done = "padded" if seen[0] <= wanted.height and seen[1] <= wanted.width else "cropped"
        warnings.append(f"{done} from {sizes} pixels")
    return np.ascontiguousarray(image, dtype=np.float32), warnings


def in_bands(image: Image, bands: Sequence[str], wanted: ImageInfo) -> tuple[Image, list[str]]:
    """The channels that a bundle takes, in its order, where both name their bands.

    Args:
        image: (C, H, W). bands: its channels' names, empty when unknown.

    Returns:
        The image, and warnings of bands that are left out or have other names.

    Raises:
        UserError: joined bands of another number and of other names.
    """
    if not bands:
        return image, []
    have, want = [b.lower() for b in bands], [b.lower() for b in wanted.bands]
    if want and set(want) <= set(have):
        left = [b for b in bands if b.lower() not in want]
        return image[[have.index(b) for b in want]], [f"bands {', '.join(left)} left out"] * bool(left)
    if len(bands) != wanted.channels:
        takes = f"{wanted.channels} ({', '.join(wanted.bands)})" if want else str(wanted.channels)
        raise UserError(f"bands {', '.join(bands)}, the bundle takes {takes}; --bands names those to take")
    return image, [f"bands {', '.join(bands)} taken as {', '.join(wanted.bands)}"] * bool(want)


def crop_or_pad(image: Image, wanted: ImageInfo) -> Image:
    """(C, H, W) of the wanted size about the same centre; missing pixels stay missing, the padding is the sky."""
    if image.shape[1:] == (wanted.height, wanted.width):
        return image
    finite = np.isfinite(image)
    sky = np.zeros(len(image), dtype=np.float32)
    some = finite.any((1, 2))
    sky[some] = _sky(image[some], finite[some])
    return np.ascontiguousarray(centred(image, wanted, sky), dtype=np.float32)


def _sky(image: Image, finite: NDArray[np.bool_]) -> Image:
    """(C,) median of a frame 5 % wide; of the whole image where the frame holds nothing."""
    _, height, width = image.shape
    frame = np.ones((height, width), dtype=bool)
    edge = max(1, min(height, width) // 20)
    frame[edge:-edge, edge:-edge] = False
    levels = []
    for pixels, good in zip(image, finite, strict=True):
        use = good & frame if (good & frame).any() else good
        levels.append(np.median(pixels[use]))
    return np.array(levels, dtype=np.float32)


_matrix = functools.lru_cache(maxsize=8)(resample_matrix)  # images of one input are mostly alike


def _resample(image: Image, wanted: ImageInfo, ratio: float, sky: Image) -> Image:
    """By area, straight onto the wanted grid about the image's centre."""
    rows = _matrix(image.shape[1], wanted.height, ratio)
    columns = _matrix(image.shape[2], wanted.width, ratio)
    # the flux above the sky is kept, and the sky of a larger pixel is larger by its area
    out = rows @ image @ columns.T * ratio**2
    outside = (rows.sum(1) == 0)[:, None] | (columns.sum(1) == 0)[None]
    return np.where(outside, sky[:, None, None] * ratio**2, out)


def centred(image: Image, wanted: ImageInfo, sky: Image) -> Image:
    """Centre crop, then centred on a sky of the wanted size."""
    _, height, width = image.shape
    top, left = max(0, height - wanted.height) // 2, max(0, width - wanted.width) // 2
    image = image[:, top : top + wanted.height, left : left + wanted.width]
    _, height, width = image.shape
    if (height, width) == (wanted.height, wanted.width):
        return image
    out = np.broadcast_to(sky[:, None, None], (len(sky), wanted.height, wanted.width)).astype(np.float32)
    top, left = (wanted.height - height) // 2, (wanted.width - width) // 2
    out[:, top : top + height, left : left + width] = image
    return out
