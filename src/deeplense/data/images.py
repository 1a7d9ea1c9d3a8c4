"""Images as people hold them in memory, as one tensor (N, C, H, W)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from deeplense.data.schema import ImageInfo
from deeplense.errors import UserError


def as_images(images: Any, info: ImageInfo) -> Tensor:
    """(N, C, H, W) float32 from a torch, NumPy or astropy array of any number type and byte order.

    Args:
        images: (N, C, H, W), (N, H, W) of one channel, (C, H, W) or (H, W) of one image; or channels last. Masked
            pixels become NaN.
        info: the shape that is wanted.

    Raises:
        UserError: not numbers, or another shape.
    """
    if not isinstance(images, Tensor):
        array = np.ma.filled(np.ma.asanyarray(images).astype(np.float32), np.nan) if _is_number(images) else None
        if array is None:
            raise UserError(f"images of type {getattr(images, 'dtype', type(images).__name__)} are not numbers")
        images = torch.from_numpy(np.ascontiguousarray(array))
    x: Tensor = images
    c, h, w = info.channels, info.height, info.width
    if tuple(x.shape) in ((c, h, w), (h, w, c)) or (tuple(x.shape) == (h, w) and c == 1):
        x = x[None]
    if tuple(x.shape[1:]) == (h, w) and c == 1:
        x = x[:, None]
    elif tuple(x.shape[1:]) == (h, w, c) and (h, w, c) != (c, h, w):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or tuple(x.shape[1:]) != (c, h, w):
        raise UserError(f"images are {tuple(images.shape)}, this bundle takes (N, {c}, {h}, {w})")
    return x


def _is_number(images: Any) -> bool:
    return np.asanyarray(images).dtype.kind in "biuf"
