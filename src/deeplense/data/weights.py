"""What stands beside an image where the user names it: a mask, whose pixels become missing, and a noise map to keep.

Both are an extension of the same FITS file, an array beside the images, or a file beside the file: of this very name
(`noise.fits`), or of the image's with the name as a last word, or in place of a word for science (`7_sci`, `7_wht`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplense.data import parts
from deeplense.data.arrays import as_image, without_ones
from deeplense.data.budget import Unreadable
from deeplense.data.found import Asked, Found

SIDE_BY_SIDE = "pixels marked in '{}' made NaN"


def wanted(asked: Asked) -> list[str]:
    """The names that the user gives."""
    return [name for name in (asked.mask, asked.noise) if name]


def with_maps(found: Found, beside: Mapping[str, NDArray[Any] | None], asked: Asked) -> Found:
    """The image with what is beside it.

    Args:
        beside: name -> (H, W) or (C, H, W); None where there is none.

    Raises:
        Unreadable: of another shape than the image.
    """
    image, notes, noise = found.image, list(found.notes), found.noise
    for name in wanted(asked):
        if (array := beside.get(name)) is None:
            notes.append(f"no '{name}' beside the image")
            continue
        array = without_ones(array)
        if array.shape not in (image.shape, image.shape[1:]):
            shapes = "x".join(map(str, array.shape)), "x".join(map(str, image.shape))
            raise Unreadable(f"'{name}' has the shape {shapes[0]}, the image {shapes[1]}")
        if name == asked.mask:
            image = np.where(~np.isfinite(array) | (array != 0), np.float32(np.nan), image)
            notes.append(SIDE_BY_SIDE.format(name))
            if not np.isfinite(image).any():
                raise Unreadable(f"'{name}' marks every pixel")
        if name == asked.noise:
            noise = as_image(array)
    return found._replace(image=image, notes=tuple(notes), noise=noise)


def file_names(member: str, name: str) -> list[str]:
    """Names, without their folder, that a file beside `member` may have."""
    last = member.rsplit("/", 1)[-1]
    stem = parts.stem(last)
    ending = last[len(stem) :]
    if parts.stem(name) != name:
        return [name]
    found = [f"{stem}{sign}{name}{ending}" for sign in "_.-"]
    if parts.SCIENCE.search(stem):
        found.insert(0, parts.SCIENCE.sub(name, stem) + ending)
    return found
