"""Images as people hold them in memory, as one tensor (N, C, H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError


def as_images(images: Any, info: ImageInfo) -> Tensor:
    """(N, C, H, W) from a torch, NumPy or astropy array, or lists, of any number type and byte order.

    Args:
        images: (N, C, H, W), (N, H, W) of one channel, (C, H, W) or (H, W) of one image; or channels last. Masked
            pixels become NaN.
        info: the shape that is wanted.

    Returns:
        float32, or the number type of a tensor.

    Raises:
        UserError: not numbers, or another shape.
    """
    x = images if isinstance(images, Tensor) else torch.from_numpy(_array(images))
    if x.is_complex() or x.layout != torch.strided:
        raise UserError(f"images of type {x.dtype}, {x.layout} are not plain numbers; give real, dense ones")
    told = tuple(x.shape)
    c, h, w = info.channels, info.height, info.width
    if tuple(x.shape) in ((c, h, w), (h, w, c)) or (tuple(x.shape) == (h, w) and c == 1):
        x = x[None]
    if tuple(x.shape[1:]) == (h, w) and c == 1:
        x = x[:, None]
    elif tuple(x.shape[1:]) == (h, w, c) and (h, w, c) != (c, h, w):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or tuple(x.shape[1:]) != (c, h, w):
        raise UserError(f"images are {told}, this bundle takes (N, {c}, {h}, {w})")
    return x


def _array(images: Any) -> NDArray[np.float32]:
    """Contiguous; what is masked or too large for the type is not finite."""
    if not isinstance(images, np.ndarray) and isinstance(getattr(images, "data", None), np.ndarray):
        # FITS HDUs, NDData and CCDData of astropy
        mask = getattr(images, "mask", None)
        images = images.data if mask is None else np.ma.masked_array(images.data, mask)
    try:
        array = np.ma.asanyarray(images)
    except Exception as error:  # lists of unequal lengths, or whatever an object raises that is asked for an array
        why = " ".join(str(error).split())[:160]
        raise UserError(f"images of type {type(images).__name__} are no array of numbers ({why})") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"images of type {getattr(images, 'dtype', type(images).__name__)} are not numbers")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(np.ma.filled(array.astype(np.float32), np.nan))
